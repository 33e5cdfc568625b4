"""Aff-Wild2 and s-Aff-Wild2: rows belong to images by number, tasks merge by image, markers become unknown."""

import numpy as np
import pytest
from label_files import ABAW_CLASSES, abaw_crops, abaw_task, by_image, imported, known, rows, touch, write, write_lines

from mma.descriptors import ABAW22, MMA26
from mma.labels import label_arrays
from mma.labels.registry import LayoutError

ORDER = ["neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other"]
UNITS = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"


def expr(folder, video, lines, header=ABAW_CLASSES, **where):
    return abaw_task(folder, "EXPR", video, lines, header=header, **where)


def va(folder, video, lines, header="valence,arousal", **where):
    return abaw_task(folder, "VA", video, lines, header=header, **where)


def test_the_header_is_no_row_and_row_k_is_crop_k_in_the_challenge_s_class_order(tmp_path):
    expr(tmp_path, "v", range(8))
    abaw_crops(tmp_path, "v", range(1, 9))
    labels = imported("affwild2", tmp_path)
    assert by_image(labels, "expression") == {f"v/{k + 1:05d}.jpg": name for k, name in enumerate(ORDER)}
    assert set(labels.table["crop"].to_pylist()) == {"given"}
    assert set(labels.table["frame"].to_pylist()) == {None}
    assert labels.notes == {"missing": 0, "unlabelled": 0, "split_conflicts": 0}


def test_a_header_in_another_order_wins(tmp_path):
    expr(tmp_path, "v", [0, 1], header="Happiness,Neutral")
    va(tmp_path, "v", ["0.25,-0.5"], header="arousal,valence")
    abaw_task(tmp_path, "AU", "v", ["1,0", "0,1"], header="AU12,AU1")
    abaw_crops(tmp_path, "v", [1, 2])
    labels = imported("affwild2", tmp_path)
    assert known(labels) == {"expression": "happiness", "valence": -0.5, "arousal": 0.25, "AU01": 0.0, "AU12": 1.0}
    assert known(labels, 1) == {"expression": "neutral", "AU01": 1.0, "AU12": 0.0}


def test_fewer_crops_than_rows_shift_no_label(tmp_path):
    expr(tmp_path, "v", [0, 1, 2, 3, 4])
    abaw_crops(tmp_path, "v", [2, 5])
    labels = imported("affwild2", tmp_path)
    assert by_image(labels, "expression") == {"v/00002.jpg": "anger", "v/00005.jpg": "happiness"}
    assert labels.notes["missing"] == 3


def test_crops_beyond_99999_have_six_digits(tmp_path):
    expr(tmp_path, "v", [0] * 99_999 + [4])
    abaw_crops(tmp_path, "v", [100_000])
    touch(tmp_path, "batch1/cropped_aligned/v/000001.jpg")
    assert by_image(imported("affwild2", tmp_path), "expression") == {"v/100000.jpg": "happiness"}


def test_tasks_of_a_video_are_merged_by_image_whatever_their_lengths(tmp_path):
    expr(tmp_path, "v", [4, 5, 6])
    va(tmp_path, "v", ["0.5,0.25"], above="Annotations/")
    abaw_task(tmp_path, "AU", "v", ["1" + ",0" * 11, "0" + ",1" * 11], header=UNITS)
    abaw_crops(tmp_path, "v", [1, 2, 3])
    labels = imported("affwild2", tmp_path)
    assert labels.table.num_rows == 3
    assert known(labels, 0)["expression"] == "happiness"
    assert (known(labels, 0)["valence"], known(labels, 0)["AU01"], known(labels, 0)["AU26"]) == (0.5, 1.0, 0.0)
    assert "valence" not in known(labels, 1)
    assert (known(labels, 1)["AU01"], known(labels, 1)["AU02"]) == (0.0, 1.0)
    assert known(labels, 2) == {"expression": "surprise"}


def test_markers_are_unknown_and_one_of_valence_and_arousal_takes_the_other_with_it(tmp_path):
    va(tmp_path, "v", ["-5,-5", "-5,0.5", "0.5,-5", "-1,1"])
    expr(tmp_path, "v", [0, -1, -1, -1])
    abaw_task(tmp_path, "AU", "v", ["-1,-1", "-1,-1", "1,-1", "-1,0"], header="AU1,AU2")
    abaw_crops(tmp_path, "v", [1, 2, 3, 4])
    labels = imported("affwild2", tmp_path)
    assert [known(labels, row) for row in range(3)] == [
        {"expression": "neutral"},
        {"AU01": 1.0},
        {"valence": -1.0, "arousal": 1.0, "AU02": 0.0},
    ]
    assert labels.notes["unlabelled"] == 1
    arrays = label_arrays(labels.table, MMA26)
    np.testing.assert_array_equal(arrays.valence_arousal_known, [[False] * 2, [False] * 2, [True] * 2])
    np.testing.assert_array_equal(arrays.action_units_known.sum(axis=1), [0, 1, 1])
    np.testing.assert_array_equal(arrays.expression, [0, -1, -1])


def test_other_is_a_class_of_abaw_and_unknown_to_the_basic_seven(tmp_path):
    expr(tmp_path, "v", [7])
    abaw_crops(tmp_path, "v", [1])
    table = imported("affwild2", tmp_path).table
    assert label_arrays(table, ABAW22).expression.tolist() == [ABAW22.expressions.index("other")]
    assert label_arrays(table, MMA26).expression.tolist() == [-1]


def test_two_persons_of_a_video_are_two_subjects_with_their_own_crops(tmp_path):
    for video, label in (("v", 0), ("v_left", 1), ("v_right", 2)):
        expr(tmp_path, video, [label])
        abaw_crops(tmp_path, video, [1])
    assert rows(imported("affwild2", tmp_path), "subject", "expression") == [
        ("v/00001.jpg", "v", "neutral"),
        ("v_left/00001.jpg", "v_left", "anger"),
        ("v_right/00001.jpg", "v_right", "disgust"),
    ]


def test_a_video_in_both_splits_is_validation_for_all_tasks(tmp_path):
    expr(tmp_path, "both", [0, 1])
    va(tmp_path, "both", ["0,0"], split="Validation")
    expr(tmp_path, "train", [0])
    expr(tmp_path, "val", [0], split="Validation")
    for video in ("both", "train", "val"):
        abaw_crops(tmp_path, video, [1, 2])
    labels = imported("affwild2", tmp_path)
    assert by_image(labels, "split") == {
        "both/00001.jpg": "val",
        "both/00002.jpg": "val",
        "train/00001.jpg": "train",
        "val/00001.jpg": "val",
    }
    assert labels.notes["split_conflicts"] == 1


def test_the_later_challenges_name_of_the_expression_task_is_read_and_a_second_equal_release_is_one(tmp_path):
    first = expr(tmp_path, "v", [3])
    again = abaw_task(tmp_path, "EXPR_Recognition", "v", [3], header=ABAW_CLASSES, above="Sixth/")
    abaw_crops(tmp_path, "v", [1])
    assert by_image(imported("affwild2", tmp_path), "expression") == {"v/00001.jpg": "fear"}
    first.unlink()
    assert by_image(imported("affwild2", tmp_path), "expression") == {"v/00001.jpg": "fear"}
    expr(tmp_path, "v", [2])
    with pytest.raises(LayoutError, match=r"v\.txt and .*v\.txt differ"):
        imported("affwild2", tmp_path)
    assert again.exists()


def test_aligned_crops_are_taken_before_others_and_two_of_a_kind_are_refused(tmp_path):
    expr(tmp_path, "v", [3])
    abaw_crops(tmp_path, "v", [1], above="cropped/")
    abaw_crops(tmp_path, "v", [1], above="cropped_aligned/")
    (source,) = imported("affwild2", tmp_path).table["source"].to_pylist()
    assert source == str(tmp_path / "cropped_aligned/v/00001.jpg")
    abaw_crops(tmp_path, "v", [1], above="batch2/cropped_aligned/")
    with pytest.raises(LayoutError, match="crops of the video v lie in"):
        imported("affwild2", tmp_path)


def test_what_a_mac_leaves_behind_is_no_label(tmp_path):
    path = expr(tmp_path, "v", [3])
    write(path.with_name("._v.txt"), b"\x00\x05\x16\x07")
    write(path.with_name(".DS_Store"), b"\x00")
    abaw_crops(tmp_path, "v", [1])
    assert imported("affwild2", tmp_path).table.num_rows == 1


@pytest.mark.parametrize(
    ("task", "header", "lines", "told"),
    [
        ("VA", "valence,arousal", ["0,0", "1.7,0"], r"v\.txt, line 3: valence is '1\.7'; expected -1 to 1, or -5"),
        ("VA", "valence,arousal", ["0,nan"], r"v\.txt, line 2: arousal"),
        ("VA", "valence,arousal", ["0,0", "0"], r"v\.txt: .*Row #3: Expected 2 columns, got 1"),
        ("VA", "0.5,0.5", ["0,0"], r"v\.txt, line 1: the header"),
        ("EXPR", ABAW_CLASSES, ["8"], r"v\.txt, line 2: expression is '8'"),
        ("EXPR", ABAW_CLASSES, ["0", "", "1"], r"v\.txt, line 3: expression is ''"),
        ("EXPR", "Neutral,Contempt", ["0"], r"v\.txt, line 1: the header .*contempt"),
        ("AU", "AU1,AU2", ["0,3"], r"v\.txt, line 2: AU02 is '3'; expected one of 0, 1, or -1 for unknown"),
        ("AU", "AU1,AU1", ["0,1"], r"v\.txt: two columns are called AU01"),
        ("AU", "AU1,face", ["0,1"], r"v\.txt, line 1: the header"),
    ],
)
def test_what_the_set_does_not_document_is_refused_by_file_line_and_value(tmp_path, task, header, lines, told):
    abaw_task(tmp_path, task, "v", lines, header=header)
    abaw_crops(tmp_path, "v", [1, 2, 3])
    with pytest.raises(LayoutError, match=told):
        imported("affwild2", tmp_path)


def test_a_folder_without_labels_or_without_crops_is_refused_with_what_was_expected(tmp_path):
    abaw_crops(tmp_path, "v", [1])
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: .*expects .*Train_Set,Validation_Set.*00001\.jpg"):
        imported("affwild2", tmp_path)
    other = tmp_path / "other"
    expr(other, "v", [3, 3])
    with pytest.raises(LayoutError, match=rf"^{other}: none of the images .* 2 rows.*00001\.jpg"):
        imported("affwild2", other)


MTL_HEADER = "image,valence,arousal,expression," + UNITS


def mtl(folder, lines, split="training", header=MTL_HEADER):
    write_lines(folder / f"{split}_set_annotations.txt", [header, *lines])


def test_the_multi_task_table_is_read_by_its_header_and_abaw_s_class_numbers(tmp_path):
    mtl(tmp_path, [f"v/{k + 1:05d}.jpg,0.5,-0.5,{k}{',0' * 11},1" for k in range(8)])
    mtl(tmp_path, ["w/00001.jpg,-0.25,0.25,4,1" + ",0" * 11], split="validation")
    abaw_crops(tmp_path, "v", range(1, 9), above="cropped_aligned/")
    abaw_crops(tmp_path, "w", [1], above="cropped_aligned/")
    labels = imported("s-affwild2", tmp_path)
    expected = {f"v/{k + 1:05d}.jpg": name for k, name in enumerate(ORDER)}
    assert by_image(labels, "expression") == {**expected, "w/00001.jpg": "happiness"}
    assert by_image(labels, "split")["v/00001.jpg"] == "train"
    assert rows(labels, "split", "subject", "crop", "AU01", "AU26", "valence")[-1] == (
        ("w/00001.jpg", "val", "w", "given", 1.0, 0.0, -0.25)
    )


def test_the_multi_task_table_s_columns_and_markers_go_by_name(tmp_path):
    header = "image,AU12,AU2,AU1,expression,arousal,valence"
    mtl(
        tmp_path,
        ["v/00001.jpg,1,-1,0,-1,0.5,-5", "v/00002.jpg,-1,-1,-1,-1,-5,-5", "v/00003.jpg,1,1,1,0,0,0"],
        header=header,
    )
    abaw_crops(tmp_path, "v", [1, 2], above="")
    labels = imported("s-affwild2", tmp_path)
    assert known(labels) == {"AU12": 1.0, "AU01": 0.0}
    assert labels.notes == {"missing": 1, "unlabelled": 1}


def test_wrong_multi_task_tables_are_refused(tmp_path):
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: there is no training_set_annotations\.txt.*AU26"):
        imported("s-affwild2", tmp_path)
    mtl(tmp_path, ["v/00001.jpg,0,0,8" + ",0" * 12])
    abaw_crops(tmp_path, "v", [1])
    with pytest.raises(LayoutError, match=r"annotations\.txt, line 2: expression is '8'"):
        imported("s-affwild2", tmp_path)
    mtl(tmp_path, ["00001.jpg,0,0,0" + ",0" * 12])
    with pytest.raises(LayoutError, match=r"line 2: the image is '00001.jpg'"):
        imported("s-affwild2", tmp_path)
    mtl(tmp_path, ["v/00001.jpg,0,0,0"], header="image,valence,arousal,class")
    with pytest.raises(LayoutError, match="lacks the column expression"):
        imported("s-affwild2", tmp_path)
    mtl(tmp_path, ["v/00001.jpg,0,0,0" + ",0" * 12] * 2)
    with pytest.raises(LayoutError, match=r"2 rows of labels are of .*v/00001.jpg"):
        imported("s-affwild2", tmp_path)
