"""DISFA, BP4D and the made corpus: action units by number, frames by number, truth never read."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_files import bp4d, by_image, disfa, imported, known, rows, synth, touch, write, write_lines

from mma.labels.registry import LayoutError


def test_disfa_s_first_frame_is_frame_0_and_intensity_2_occurs(tmp_path):
    disfa(tmp_path, "SN001", {1: range(6)})
    touch(tmp_path, "Videos_LeftCamera/LeftVideoSN001_comp.avi", "Videos_RightCamera/RightVideoSN001_comp.avi")
    labels = imported("disfa", tmp_path)
    video = "Videos_LeftCamera/LeftVideoSN001_comp.avi"
    assert by_image(labels, "AU01") == {
        (video, 0): 0,
        (video, 1): 0,
        (video, 2): 1,
        (video, 3): 1,
        (video, 4): 1,
        (video, 5): 1,
    }
    assert rows(labels, "subject", "split", "crop")[0] == ((video, 0), "SN001", None, "cut")


def test_disfa_s_action_units_go_by_the_number_in_the_name(tmp_path):
    """Lexicographically au12 stands between au1 and au2."""
    disfa(tmp_path, "SN001", {1: [5, 0, 0], 2: [0, 5, 0], 12: [0, 0, 5], 45: [5, 5, 5]})
    touch(tmp_path, "SN001.mp4")
    labels = imported("disfa", tmp_path)
    assert [known(labels, row) for row in range(3)] == [
        {"AU01": 1.0, "AU02": 0.0, "AU12": 0.0},
        {"AU01": 0.0, "AU02": 1.0, "AU12": 0.0},
        {"AU01": 0.0, "AU02": 0.0, "AU12": 1.0},
    ]


def test_disfa_s_rows_go_by_their_frame_s_number(tmp_path):
    write_lines(tmp_path / "ActionUnit_Labels/SN001/SN001_au1.txt", ["3,5", "1,0"])
    write_lines(tmp_path / "ActionUnit_Labels/SN001/SN001_au2.txt", ["3,0"])
    touch(tmp_path, "SN001.mp4")
    labels = imported("disfa", tmp_path)
    assert rows(labels, "AU01", "AU02") == [(rows(labels)[0][0], 0.0, None), (rows(labels)[1][0], 1.0, 0.0)]
    assert labels.table["frame"].to_pylist() == [0, 2]
    assert labels.notes == {"missing": 0, "unlabelled": 1}


@pytest.mark.parametrize(("first", "pattern"), [(1, "frames/SN001/{}.png"), (0, "SN001/left/SN001_{:04d}.jpg")])
def test_disfa_s_frames_as_images_are_found_by_number(tmp_path, first, pattern):
    disfa(tmp_path, "SN001", {1: [0, 5, 0]})
    names = [pattern.format(first + k) for k in range(3)]
    touch(tmp_path, *names, "frames/SN0012/1.png")
    (tmp_path / names[2]).unlink()
    labels = imported("disfa", tmp_path)
    found = dict(
        zip(
            (name.removeprefix(f"{tmp_path}/") for name in labels.table["source"].to_pylist()),
            labels.table["AU01"].to_pylist(),
        )
    )
    assert found == {names[0]: 0.0, names[1]: 1.0}
    assert labels.table["frame"].to_pylist() == [None, None]
    assert labels.notes["missing"] == 1


def test_disfa_s_subjects_have_their_own_videos_and_one_without_is_missing(tmp_path):
    disfa(tmp_path, "SN001", {1: [5]})
    disfa(tmp_path, "SN002", {1: [5, 5]})
    touch(tmp_path, "LeftVideoSN001_comp.avi", "LeftVideoSN0021_comp.avi")
    labels = imported("disfa", tmp_path)
    assert labels.table["subject"].to_pylist() == ["SN001"]
    assert labels.notes["missing"] == 2


def test_disfa_s_wrong_files_are_refused(tmp_path):
    touch(tmp_path, "LeftVideoSN001_comp.avi")
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: there is no such txt.*SN001_au1\.txt"):
        imported("disfa", tmp_path)
    for lines, told in (
        (["1,0", "2,6"], r"SN001_au1\.txt, line 2: intensity is '6'"),
        (["0,1"], r"SN001_au1\.txt, line 1: frame is '0'; expected a whole number from 1"),
        (["1,1", "1,2"], r"SN001_au1\.txt: a frame has two rows"),
        (["1,1,1"], r"SN001_au1\.txt: .*Expected 2 columns, got 3"),
    ):
        write_lines(tmp_path / "ActionUnit_Labels/SN001/SN001_au1.txt", lines)
        with pytest.raises(LayoutError, match=told):
            imported("disfa", tmp_path)
    disfa(tmp_path, "SN001", {1: [0]})
    touch(tmp_path, "more/LeftVideoSN001.mp4")
    with pytest.raises(LayoutError, match="are videos of SN001; keep one"):
        imported("disfa", tmp_path)


def test_bp4d_s_header_names_the_units_and_nine_is_unknown(tmp_path):
    bp4d(tmp_path, "F001_T1", "0,1,12,2,45", ["24,1,0,9,1", "25,9,9,9,1", "26,0,1,1,1", "27,1,1,1,1"])
    bp4d(tmp_path, "M002_T8", "Frame,AU4", ["1,1"])
    touch(
        tmp_path,
        "2D/F001/T1/0024.jpg",
        "2D/F001/T1/25.jpg",
        "2D/F001/T1/026.jpg",
        "2D/F001/T2/27.jpg",
        "2D/M002/T8/1.jpg",
    )
    labels = imported("bp4d", tmp_path)
    assert rows(labels, "subject", "AU01", "AU02", "AU12", "AU04") == [
        ("T1/0024.jpg", "F001", 1.0, None, 0.0, None),
        ("T1/026.jpg", "F001", 0.0, 1.0, 1.0, None),
        ("T8/1.jpg", "M002", None, None, None, 1.0),
    ]
    assert labels.notes == {"missing": 1, "unlabelled": 1}
    assert set(labels.table["crop"].to_pylist()) == {"cut"}


def test_bp4d_s_wrong_files_are_refused(tmp_path):
    touch(tmp_path, "F001/T1/1.jpg")
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: there is no such csv.*AU_OCC/F001_T1\.csv"):
        imported("bp4d", tmp_path)
    for header, line, told in (
        ("0,1,2", "1,2,0", r"F001_T1\.csv, line 2: AU01 is '2'; expected one of 0, 1, or 9"),
        ("0,1,2", "x,1,0", r"F001_T1\.csv, line 2: frame is 'x'"),
        ("0,1,brow", "1,1,0", r"F001_T1\.csv, line 1: 0,1,brow"),
        ("0,1,1", "1,1,0", r"F001_T1\.csv: two columns are called AU01"),
    ):
        bp4d(tmp_path, "F001_T1", header, [line])
        with pytest.raises(LayoutError, match=told):
            imported("bp4d", tmp_path)
    bp4d(tmp_path, "F001_T1", "0,1", ["1,1"])
    touch(tmp_path, "3D/F001/T1/001.jpg")
    with pytest.raises(LayoutError, match="are one frame of F001_T1; keep one"):
        imported("bp4d", tmp_path)


def test_the_made_corpus_gives_its_annotators_labels(tmp_path):
    synth(tmp_path)
    labels = imported("synth", tmp_path)
    assert rows(labels, "split", "subject", "valence", "expression", "AU12") == [
        (("mp4/00000.mp4", 0), "train", "s1", 0.5, "happiness", 1.0),
        (("mp4/00000.mp4", 3), "train", "s1", -0.5, None, None),
        (("mp4/00001.mp4", 0), "val", "s2", 0.0, "fear", 0.0),
    ]
    assert set(labels.table["crop"].to_pylist()) == {"cut"}
    assert labels.notes == {"missing": 0, "unlabelled": 0}


def test_the_made_corpus_s_truth_does_not_matter(tmp_path):
    path = synth(tmp_path)
    before = imported("synth", tmp_path).table
    table = pq.read_table(path)
    truth = [name for name in table.column_names if name.startswith("true_")]
    assert truth
    for name in truth:
        table = table.set_column(table.column_names.index(name), name, pa.array(["wrong", "wrong", None]))
    pq.write_table(table, path)
    assert imported("synth", tmp_path).table.equals(before)
    pq.write_table(table.drop_columns(truth), path)
    assert imported("synth", tmp_path).table.equals(before)


def test_rows_of_clips_that_are_not_there_are_missing(tmp_path):
    synth(tmp_path, clips=["val/mp4/00001.mp4", "test/mp4/00000.mp4"])
    labels = imported("synth", tmp_path)
    assert labels.table["subject"].to_pylist() == ["s2"]
    assert labels.notes["missing"] == 2


def test_another_folder_is_no_made_corpus(tmp_path):
    touch(tmp_path, "train/mp4/00000.mp4")
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: there is no frames\.parquet.*mp4"):
        imported("synth", tmp_path)
    write(tmp_path / "frames.parquet", "text")
    with pytest.raises(LayoutError, match=r"frames\.parquet is no Parquet file"):
        imported("synth", tmp_path)
    pq.write_table(pa.table({"video_id": ["00000"]}), tmp_path / "frames.parquet")
    with pytest.raises(LayoutError, match="lacks the column frame and split"):
        imported("synth", tmp_path)
