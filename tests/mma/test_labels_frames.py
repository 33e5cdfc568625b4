"""The project's own table of frame labels, and what all formats share: names, the common table, arrays."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from label_files import imported, known, rows, touch, write, write_lines

from cluster.storage import Folder
from mma.labels import FORMATS, LABEL_SCHEMA, read_labels
from mma.labels.registry import MODULES, LayoutError


def table(folder, *lines, name="frames.csv"):
    return write_lines(folder / name, lines)


def test_images_by_path_with_whatever_is_known(tmp_path):
    table(
        tmp_path,
        "image,valence,arousal,expression,AU1,AU02,AU1_intensity,split,subject,x,y,w,h,note",
        "a/1.jpg,0.5,-1,Happiness,1,0,4.5,Train,p,1,2,30,40,hello",
        "./a/2.jpg,,nan,,,1,,Devel,,,,,,",
        "a/3.jpg,,,contempt,,,,validation,q,1,,3,4,",
        "a/gone.jpg,,,neutral,,,,test,,,,,,",
        "a/4.jpg,,,,,,,,,,,,,",
    )
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg", "a/4.jpg")
    labels = imported("frames", tmp_path)
    assert labels.table.schema == LABEL_SCHEMA
    assert rows(labels, "split", "subject", "crop", "box") == [
        ("a/1.jpg", "train", "p", "cut", [1, 2, 30, 40]),
        ("a/2.jpg", "val", None, "cut", None),
        ("a/3.jpg", "val", "q", "cut", None),
    ]
    assert known(labels, 0) == {"valence": 0.5, "arousal": -1.0, "expression": "happiness", "AU01": 1.0, "AU02": 0.0}
    assert known(labels, 1) == {"AU02": 1.0}
    assert known(labels, 2) == {"expression": "contempt"}
    assert labels.notes == {"missing": 1, "unlabelled": 1}


def test_frames_of_videos_by_stem_by_path_or_by_uri(tmp_path):
    touch(tmp_path, "v/one.mp4", "v/two.avi", "v/two.txt")
    table(tmp_path, "video_id,frame,AU4", "one,0,1", "one,7,0", "v/two.avi,3,1", "three,0,1")
    labels = imported("frames", tmp_path)
    assert rows(labels, "AU04") == [(("v/one.mp4", 0), 1.0), (("v/one.mp4", 7), 0.0), (("v/two.avi", 3), 1.0)]
    assert labels.notes["missing"] == 1
    table(tmp_path, "uri,frame,AU4", "v/one.mp4,2,1", "s3://b/k.mp4,0,1", f"{tmp_path}/v/gone.mp4,0,1", "/o/x.mp4,1,0")
    labels = imported("frames", tmp_path)
    assert labels.table["source"].to_pylist() == [f"{tmp_path}/v/one.mp4", "s3://b/k.mp4", "/o/x.mp4"]
    assert labels.notes["missing"] == 1


def test_a_stem_of_two_videos_is_refused(tmp_path):
    touch(tmp_path, "a/one.mp4", "b/one.mp4")
    table(tmp_path, "video_id,frame,AU4", "one,0,1")
    with pytest.raises(LayoutError, match=r"both a/one.mp4 and b/one.mp4 end in one"):
        imported("frames", tmp_path)


def test_parquet_with_types_and_a_table_of_any_name(tmp_path):
    touch(tmp_path, "7.mp4")
    columns = {
        "video_id": pa.array([7, 7, 7]),
        "frame": pa.array([0, 1, 2]),
        "valence": pa.array([0.25, float("nan"), None]),
        "expression": pa.array(["fear", None, None]).dictionary_encode(),
        "AU25": pa.array([True, None, False]),
        "AU26": pa.array([1, 0, None], pa.int8()),
        "nested": pa.array([[1], [2], [3]]),
    }
    pq.write_table(pa.table(columns), tmp_path / "mine.pq")
    labels = imported("frames", tmp_path, "mine.pq")
    assert [known(labels, row) for row in range(3)] == [
        {"valence": 0.25, "expression": "fear", "AU25": 1.0, "AU26": 1.0},
        {"AU26": 0.0},
        {"AU25": 0.0},
    ]
    assert labels.table["source"].to_pylist() == [f"{tmp_path}/7.mp4"] * 3
    assert labels.table["frame"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("header", "line", "told"),
    [
        ("image,AU1_intensity,AU45", "a.jpg,1,1", r"frames\.csv has no column of a descriptor.*frames expects"),
        ("image,expression", "a.jpg,joy", r"frames\.csv: no expressions are called joy; there are .*contempt"),
        ("image,valence", "a.jpg,1.01", r"frames\.csv, line 2: valence is '1\.01'; expected -1 to 1, or an empty cell"),
        ("image,valence", "a.jpg,high", r"frames\.csv, line 2: valence is 'high'; expected a number"),
        ("image,AU1", "a.jpg,0.5", r"frames\.csv, line 2: AU01 is '0\.5'"),
        ("image,AU1", "a.jpg,-1", r"frames\.csv, line 2: AU01 is '-1'"),
        ("image,AU1,AU01", "a.jpg,1,0", "two columns are called AU01"),
        ("image,AU1,split", "a.jpg,1,holdout", "no splits are called holdout; there are train"),
        ("image,AU1", "a.jpg,1\na.jpg,0", "2 rows of labels are of .*a.jpg; keep one"),
        ("video_id,frame,AU1", "v,1,1\nv,1,0", "2 rows of labels are of frame 1 of .*v.mp4"),
        ("video_id,frame,AU1", "v,-1,1", "line 2: frame is '-1'; expected a whole number from 0"),
        ("video_id,frame,AU1", "v,,1", "line 2: frame is ''"),
        ("video_id,AU1", "v,1", "neither image nor frame with video_id or uri"),
        ("image,AU1", ",1", "line 2: image is ''"),
        ("image,AU1", "http://h/a.jpg,1", "line 2: image is 'http://h/a.jpg'; expected a path"),
        ("image,AU1,x,y", "a.jpg,1,1,1", "the column w and h is not there"),
        ("image,AU1,x,y,w,h", "a.jpg,1,1,1,0,5", "line 2: w is '0'; expected more than 0 px"),
        ("image,AU1", "gone.jpg,1", "none of the images or videos of its 1 rows"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, header, line, told):
    touch(tmp_path, "a.jpg", "v.mp4")
    table(tmp_path, header, line)
    with pytest.raises(LayoutError, match=told):
        imported("frames", tmp_path)


def test_none_or_two_tables_are_refused(tmp_path):
    touch(tmp_path, "a.jpg")
    with pytest.raises(LayoutError, match=rf"^{tmp_path}: there is no frames\.csv or frames\.parquet in it"):
        imported("frames", tmp_path)
    table(tmp_path, "image,AU1", "a.jpg,1")
    write(tmp_path / "frames.parquet", "x")
    with pytest.raises(LayoutError, match="several of"):
        imported("frames", tmp_path)
    with pytest.raises(LayoutError, match=r"frames\.parquet is no Parquet file"):
        imported("frames", tmp_path, "frames.parquet")


def test_formats_go_by_name_and_a_file_is_taken_where_it_can_be(tmp_path):
    assert set(FORMATS) == set(MODULES)
    folder = Folder(str(tmp_path))
    with pytest.raises(ValueError, match="no label format is called 'raf'; there are affwild2, "):
        read_labels("raf", folder)
    with pytest.raises(LayoutError, match=rf"{tmp_path}/a\.csv is a file; rafdb is read from its folder: EmoLabel"):
        read_labels("rafdb", folder, "a.csv")
    assert [name for name, each in FORMATS.items() if each.takes_file] == ["affectnet", "emotionet", "frames"]
