"""AffectNet in both releases, RAF-DB and EmotioNet: class numbers by name, markers unknown, images by their paths."""

import numpy as np
import pytest
from label_files import (
    AFFECTNET_HEADER,
    LANDMARKS,
    affectnet_2021,
    affectnet_row,
    by_image,
    imported,
    known,
    rafdb,
    rows,
    touch,
    write,
    write_lines,
)

from mma.descriptors import ABAW22, MMA26
from mma.labels import label_arrays
from mma.labels.registry import LayoutError

AFFECTNET_ORDER = ["neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt"]
RAFDB_ORDER = ["surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral"]


def test_affectnet_s_crops_and_files_of_one_value(tmp_path):
    affectnet_2021(tmp_path, {str(k): (k, "-0.5", "0.25") for k in range(8)})
    affectnet_2021(tmp_path, {"99": (1, 1, -1)}, split="val")
    labels = imported("affectnet", tmp_path)
    expected = {f"images/{k}.jpg": name for k, name in enumerate(AFFECTNET_ORDER)}
    assert by_image(labels, "expression") == {**expected, "images/99.jpg": "happiness"}
    assert rows(labels, "split", "crop", "valence", "arousal", "points")[0] == (
        ("images/0.jpg", "train", "given", -0.5, 0.25, None)
    )
    assert rows(labels, "split", "valence")[-1] == ("images/99.jpg", "val", 1.0)


def test_affectnet_s_crops_with_markers_missing_images_and_wrong_files(tmp_path):
    affectnet_2021(
        tmp_path, {"a": (9, -2, -2), "b": (8, 0.5, 0), "c": (10, "-2", "-2"), "d": (3, "-2.0", "-2.0"), "e": (1, 0, 0)}
    )
    (tmp_path / "train_set/images/e.jpg").unlink()
    labels = imported("affectnet", tmp_path)
    assert by_image(labels, "expression") == {"images/b.jpg": None, "images/d.jpg": "surprise"}
    assert known(labels, 0) == {"valence": 0.5, "arousal": 0.0}
    assert known(labels, 1) == {"expression": "surprise"}
    assert labels.notes == {"missing": 1, "unlabelled": 2}

    affectnet_2021(tmp_path, {"b": (11, 0, 0)})
    with pytest.raises(LayoutError, match=r"train_set/annotations/b_.*expression is '11'"):
        imported("affectnet", tmp_path)
    np.save(tmp_path / "train_set/annotations/b_exp.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(LayoutError, match=r"b_exp.npy: not a plain npy file"):
        imported("affectnet", tmp_path)
    (tmp_path / "train_set/annotations/b_aro.npy").unlink()
    with pytest.raises(LayoutError, match=r"b_exp.npy is there and .*b_aro.npy is not"):
        imported("affectnet", tmp_path)


def test_affectnet_s_older_tables_give_whole_images_with_a_box_and_five_points(tmp_path):
    lines = [affectnet_row(f"{k}/x.jpg", k) for k in range(8)]
    write_lines(tmp_path / "Manually/training.csv", [AFFECTNET_HEADER, *lines])
    write_lines(tmp_path / "Manually/validation.csv", [AFFECTNET_HEADER, affectnet_row("9/y.JPG", 1)])
    write_lines(tmp_path / "automatically_annotated.csv", ["never read"])
    touch(tmp_path, *(f"Manually_Annotated_Images/{k}/x.jpg" for k in range(8)), "Manually_Annotated_Images/9/y.JPG")
    labels = imported("affectnet", tmp_path)
    expected = {f"{k}/x.jpg": name for k, name in enumerate(AFFECTNET_ORDER)}
    assert by_image(labels, "expression") == {**expected, "9/y.JPG": "happiness"}
    assert set(by_image(labels, "crop").values()) == {"cut"}
    assert by_image(labels, "split")["0/x.jpg"] == "train"
    assert by_image(labels, "split")["9/y.JPG"] == "val"
    assert by_image(labels, "box")["0/x.jpg"] == [10, 20, 30, 40]
    eyes = [float(np.mean(range(36, 42))), float(np.mean(range(42, 48)))]
    points = [eyes[0], 100 + eyes[0], eyes[1], 100 + eyes[1], *LANDMARKS[30], *LANDMARKS[48], *LANDMARKS[54]]
    assert by_image(labels, "points")["0/x.jpg"] == points


def test_affectnet_s_older_markers_and_images_that_are_gone(tmp_path):
    no_points = "2/b.jpg,1,2,0,0,,8,0.5,0.5"
    lines = [
        affectnet_row("1/a.jpg", 9, -2, -2),
        no_points,
        affectnet_row("3/c.jpg", 4, -2, -2),
        affectnet_row("4/d.jpg", 1),
    ]
    write_lines(tmp_path / "training.csv", [AFFECTNET_HEADER, *lines, affectnet_row("1/b.jpg", 10, -2, -2)])
    touch(tmp_path, "images/1/a.jpg", "images/2/b.jpg", "images/3/c.jpg", "images/1/b.jpg")
    labels = imported("affectnet", tmp_path)
    assert rows(labels, "expression", "valence", "box", "points")[0] == ("2/b.jpg", None, 0.5, None, None)
    assert known(labels, 1) == {"expression": "fear"}
    assert labels.notes == {"missing": 1, "unlabelled": 2}


def test_affectnet_s_automatic_labels_are_read_where_they_are_named(tmp_path):
    write_lines(tmp_path / "automatically_annotated.csv", [AFFECTNET_HEADER, affectnet_row("1/a.jpg", 6)])
    touch(tmp_path, "1/a.jpg")
    labels = imported("affectnet", tmp_path, "automatically_annotated.csv")
    assert rows(labels, "expression", "split") == [("1/a.jpg", "anger", None)]
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: there are neither .*_set"):
        imported("affectnet", tmp_path)


def test_affectnet_s_wrong_layouts_are_refused(tmp_path):
    affectnet_2021(tmp_path, {"a": (0, 0, 0)})
    path = write_lines(tmp_path / "training.csv", [AFFECTNET_HEADER, affectnet_row("1/a.jpg", 6)])
    with pytest.raises(LayoutError, match="holds both releases"):
        imported("affectnet", tmp_path)
    touch(tmp_path, "1/a.jpg")
    for text, told in (
        ("a,b\n1,2\n", "training.csv lacks the column subdirectory_filepath"),
        (f"{AFFECTNET_HEADER}\n{affectnet_row('1/a.jpg', 0, 1.5)}\n", r"training\.csv, line 2: valence is '1\.5'"),
        (f"{AFFECTNET_HEADER}\n{affectnet_row('1/a.jpg', 11)}\n", r"training\.csv, line 2: expression is '11'"),
    ):
        write(path, text)
        with pytest.raises(LayoutError, match=told):
            imported("affectnet", tmp_path, "training.csv")
    write_lines(path, [AFFECTNET_HEADER, affectnet_row("1/a.jpg", 6)])
    touch(tmp_path, "copy/1/a.jpg")
    with pytest.raises(LayoutError, match=r"both .*1/a.jpg and .*1/a.jpg end in 1/a.jpg"):
        imported("affectnet", tmp_path, "training.csv")


def test_contempt_is_kept_and_is_unknown_to_heads_that_lack_it(tmp_path):
    affectnet_2021(tmp_path, {"a": (7, 0, 0)})
    table = imported("affectnet", tmp_path).table
    assert table["expression"].to_pylist() == ["contempt"]
    for each in (MMA26, ABAW22):
        assert label_arrays(table, each).expression.tolist() == [-1]


def test_rafdb_s_classes_count_from_one_in_its_own_order(tmp_path):
    rafdb(tmp_path, [f"train_{k:05d}.jpg {k}" for k in range(1, 8)] + ["test_0001.jpg 7 "])
    labels = imported("rafdb", tmp_path)
    assert by_image(labels, "expression") == {
        **{f"aligned/train_{k:05d}_aligned.jpg": name for k, name in enumerate(RAFDB_ORDER, 1)},
        "aligned/test_0001_aligned.jpg": "neutral",
    }
    assert by_image(labels, "split")["aligned/test_0001_aligned.jpg"] == "test"
    assert by_image(labels, "split")["aligned/train_00001_aligned.jpg"] == "train"
    assert set(by_image(labels, "crop").values()) == {"given"}


def test_rafdb_s_originals_are_cut_and_missing_images_counted(tmp_path):
    rafdb(tmp_path, ["train_00001.jpg 5", "train_00002.jpg 4"], images="original")
    (tmp_path / "basic/Image/original/train_00001.jpg").unlink()
    labels = imported("rafdb", tmp_path)
    assert rows(labels, "crop", "expression") == [("original/train_00002.jpg", "cut", "happiness")]
    assert labels.notes == {"missing": 1, "unlabelled": 0}


def test_rafdb_s_compound_list_is_never_taken_for_the_basic_one(tmp_path):
    write_lines(tmp_path / "compound/EmoLabel/list_patition_label.txt", ["train_0001.jpg 1"])
    touch(tmp_path, "compound/Image/aligned/train_0001_aligned.jpg")
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: there is no EmoLabel.*aligned"):
        imported("rafdb", tmp_path)
    rafdb(tmp_path, ["train_0001.jpg 2"])
    assert list(by_image(imported("rafdb", tmp_path), "expression").values()) == ["fear"]


@pytest.mark.parametrize("line", ["train_00002.jpg 8", "train_00002.jpg", "other_2.jpg 1", "train_00002.jpg 1 2"])
def test_rafdb_s_other_lines_are_refused(tmp_path, line):
    rafdb(tmp_path, ["train_00001.jpg 5", line])
    with pytest.raises(LayoutError, match=rf"list_patition_label\.txt, line 2: '{line}'"):
        imported("rafdb", tmp_path)


EMOTIONET_HEADER = "URL,orig_url,\"'AU 1'\",\"'AU 2'\",\"'AU 12'\",\"'AU 60'\""


def test_emotionet_s_quoted_columns_and_unknown_markers(tmp_path):
    lines = [
        "http://a.org/x/1.jpg,u,1,0,999,7",
        "'http://a.org/x/2.jpg?size=3',u,-1,999,1,7",
        "http://a.org/b%20c.jpg,u,0,0,0,7",
        "http://a.org/gone.jpg,u,1,1,1,7",
        "http://a.org/x/none.jpg,u,999,999,-1,7",
    ]
    write_lines(tmp_path / "emotionet.csv", [EMOTIONET_HEADER, *lines])
    touch(tmp_path, "n/1.jpg", "n/2.jpg", "n/b c.jpg", "n/none.jpg")
    labels = imported("emotionet", tmp_path)
    assert [known(labels, row) for row in range(3)] == [
        {"AU01": 1.0, "AU02": 0.0},
        {"AU12": 1.0},
        {"AU01": 0.0, "AU02": 0.0, "AU12": 0.0},
    ]
    assert list(by_image(labels, "crop").items()) == [("n/1.jpg", "cut"), ("n/2.jpg", "cut"), ("n/b c.jpg", "cut")]
    assert labels.notes == {"missing": 1, "unlabelled": 1, "ambiguous": 0}


@pytest.mark.parametrize("name", ["AU 4", "AU4", "AU04", "'AU 4'"])
def test_emotionet_s_column_names_in_all_their_spellings(tmp_path, name):
    write_lines(tmp_path / "a.csv", [f"{name},url,AU 45", "1,http://h/i.png,0"])
    write_lines(tmp_path / "b.csv", ["another"])
    touch(tmp_path, "i.png")
    assert known(imported("emotionet", tmp_path, "a.csv")) == {"AU04": 1.0}
    with pytest.raises(LayoutError, match="several of csv"):
        imported("emotionet", tmp_path)


def test_emotionet_s_urls_that_end_alike_give_an_image_to_neither(tmp_path):
    lines = ["http://a.org/1.jpg,u,1,0,0,0", "http://b.org/1.jpg,u,0,1,1,0", "http://b.org/2.jpg,u,0,1,1,0"]
    write_lines(tmp_path / "e.csv", [EMOTIONET_HEADER, *lines])
    touch(tmp_path, "1.jpg", "2.jpg")
    labels = imported("emotionet", tmp_path)
    assert list(by_image(labels, "AU01").values()) == [0.0]
    assert labels.notes == {"missing": 0, "unlabelled": 0, "ambiguous": 2}


def test_emotionet_s_wrong_tables_are_refused(tmp_path):
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: there is no csv in it; emotionet expects .*'AU 1'"):
        imported("emotionet", _made(tmp_path))
    for text, told in (
        (f"{EMOTIONET_HEADER}\nhttp://a/1.jpg,u,2,0,0,0\n", r"e\.csv, line 2: AU01 is '2'"),
        (f"{EMOTIONET_HEADER}\nhttp://a/1.jpg,u,,0,0,0\n", r"e\.csv, line 2: AU01 is ''"),
        ("name,AU 1\n1.jpg,1\n", "e.csv lacks a column URL"),
        ("URL,AU 1_intensity\n1.jpg,1\n", "e.csv lacks columns of action units"),
        ("URL,AU 1,'AU 1'\n1.jpg,1,0\n", "two columns are called AU01"),
    ):
        write(tmp_path / "e.csv", text)
        with pytest.raises(LayoutError, match=told):
            imported("emotionet", tmp_path)


def _made(folder):
    touch(folder, "1.jpg")
    return folder
