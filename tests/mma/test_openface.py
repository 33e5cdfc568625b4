"""OpenFace's csv files as rows of a store: by name, in its units, frames in their places, refused in one line."""

import numpy as np
import openface_files as files
import pyarrow as pa
import pytest

from mma.descriptors import DESCRIPTOR_SETS, MMA26, OPENFACE
from mma.openface import NEEDED, OpenFaceError, video_row
from mma.store.rows import settle_video

VIDEO = {"video_id": "v", "uri": "/x/v.csv", "source_bytes": 9, "source_version": "1"}


def settled(content: bytes, min_confidence: float = 0.8) -> dict:
    (made,) = settle_video(video_row(content, VIDEO, min_confidence=min_confidence), "r1").to_pylist()
    return made


def made(*rows: dict, **settings) -> dict:
    return settled(files.text(rows), **settings)


def refused(content: bytes) -> OpenFaceError:
    with pytest.raises(OpenFaceError) as error:
        video_row(content, VIDEO, min_confidence=0.8)
    assert "\n" not in str(error.value)
    return error.value


def test_the_descriptors_are_openfaces_40_and_no_networks():
    assert len(OPENFACE) == len(set(OPENFACE.names)) == 17 + 18 + 5
    assert "AU28_c" in OPENFACE.names
    assert "AU28_r" not in OPENFACE.names
    assert not set(OPENFACE.names) & set(MMA26.names)
    assert OPENFACE.name not in DESCRIPTOR_SETS


def test_values_are_taken_by_name_whatever_the_order_and_the_blanks():
    marked = {name: number / 8 for number, name in enumerate(OPENFACE.names)}
    rows = [files.row(1, **marked), files.row(2)]
    turned = files.text(rows, list(reversed(files.COLUMNS)))
    for content in (
        files.text(rows),
        turned,
        turned.replace(b", ", b",").replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + turned,
    ):
        video = settled(content)
        assert {name: video[name][0] for name in OPENFACE.names} == marked
        assert video["AU45_r"][1] == pytest.approx(0.02)


def test_a_row_of_the_store_holds_all_that_is_known_of_the_video():
    video = made(*map(files.row, range(1, 31)))
    assert (video["status"], video["num_chunks"], video["num_frames"], video["first_frame"]) == ("ok", 1, 30, 0)
    assert video["frame_index"] == list(range(30))
    assert video["time_s"] == pytest.approx([n / 30 for n in range(30)], abs=6e-4)
    assert video["source_fps"] == pytest.approx(30, rel=1e-3)
    assert video["duration_s"] == pytest.approx(1, rel=1e-3)
    assert video["face_found"] == [True] * 30
    assert video["face_score"] == pytest.approx([0.98] * 30)
    assert video["num_faces"] == [1] * 30
    assert np.isnan(video["face_box"]).all()
    assert (video["decoder"], video["uri"], video["source_version"]) == ("openface", "/x/v.csv", "1")


def test_frames_without_success_or_sure_enough_face_show_none():
    video = made(files.row(1), files.lost(2), files.row(3, confidence=0.79), files.row(4, confidence=0.8))
    assert video["face_found"] == [True, False, False, True]
    assert np.isnan(video["AU12_r"]).tolist() == [False, True, True, False]
    assert video["face_score"] == pytest.approx([0.98, 0.02, 0.79, 0.8])
    assert video["num_faces"] == [1, 0, 0, 1]
    assert made(files.row(1), files.row(2, confidence=0.5), min_confidence=0.5)["face_found"] == [True, True]


def test_a_video_without_any_success_is_no_face():
    video = made(files.lost(1), files.lost(2))
    assert (video["status"], video["num_frames"], video["error_type"]) == ("no_face", 2, None)


def test_frames_that_are_not_there_leave_a_gap():
    video = made(files.row(4), files.row(5), files.row(9))
    assert video["frame_index"] == [3, 4, 8]
    assert video["first_frame"] == 3
    assert video["source_fps"] == pytest.approx(30, rel=1e-2)


def test_frames_may_count_from_0():
    rows = [files.row(frame, frame=frame - 1) for frame in (1, 2, 3)]
    assert made(*rows)["frame_index"] == [0, 1, 2]


def test_rows_may_stand_in_any_order():
    rows = [files.row(frame) for frame in (3, 1, 2)]
    assert repr(made(*rows)) == repr(made(*sorted(rows, key=lambda each: each["frame"])))  # NaN equals itself


def test_of_several_faces_the_one_that_shows_in_most_frames_is_taken():
    rows = [
        files.row(1), files.row(1, face_id=1, AU12_r=3),
        files.lost(2), files.row(2, face_id=1, AU12_r=4),
        files.row(3), files.row(3, face_id=2),
        files.row(4, face_id=1, AU12_r=5, confidence=0.9), files.row(4, face_id=2),
    ]  # fmt: skip
    video = made(*rows)
    assert video["frame_index"] == [0, 1, 2, 3]
    assert video["face_found"] == [True, True, False, True]
    assert video["num_faces"] == [2, 1, 2, 2]
    assert np.array(video["AU12_r"]) == pytest.approx([3, 4, np.nan, 5], nan_ok=True)
    assert np.array(video["face_score"]) == pytest.approx([0.98, 0.98, np.nan, 0.9], nan_ok=True)
    # Of equals, the lower number.
    assert made(files.row(1, face_id=4, AU12_r=1), files.row(1, face_id=2, AU12_r=2))["AU12_r"] == [2]


def test_files_of_before_face_id_are_read():
    columns = [name for name in files.COLUMNS if name != "face_id"]
    assert settled(files.text([files.row(1), files.row(2)], columns))["num_faces"] == [1, 1]


def test_cells_without_a_number_are_unknown_and_no_guess():
    video = made(files.row(1, AU12_r=" ", AU06_r="nan"), files.row(2, confidence="nan"))
    assert np.isnan(video["AU12_r"][0])
    assert np.isnan(video["AU06_r"][0])
    assert video["face_found"] == [True, False]


def test_one_frame_is_a_video():
    video = made(files.row(1))
    assert (video["num_frames"], video["source_fps"], video["duration_s"]) == (1, None, None)


def test_milliseconds_are_refused():
    error = refused(files.text([files.row(frame, timestamp=(frame - 1) * 33.3) for frame in range(1, 9)]))
    assert error.error_type == "Milliseconds"
    assert "33.3" in str(error)
    assert "divide it by 1000" in str(error)
    # Every 60th frame of a video at 30 a second: two seconds apart, and right.
    assert made(*(files.row(frame) for frame in range(1, 300, 60)))["time_s"] == pytest.approx([0, 2, 4, 6, 8])


WRONG = {
    "Empty": [b"", b" \n\n", files.text([])],
    "NotACsv": [b"\xff\xfe\x00\x01" * 9, files.text([files.row(1), files.row(2)])[:-200], b'frame, "x\n1'],
    "MissingColumns": [b"face, confidence\n0, 0.9\n", b"video_id;split\nv;train\n", b"<html></html>"],
    "NotANumber": [files.text([files.row(1, AU12_r="much")]), files.text([files.row(1, success="yes")])],
    "WrongFrames": [
        files.text([files.row(1, frame=each)]) for each in (1.5, -1, "nan", 1e12)
    ] + [files.text([files.row(1), files.row(1)]), files.text([files.row(1, face_id="nan")])],
    "WrongTimes": [
        files.text([files.row(1, timestamp=0), files.row(2, timestamp=0)]),
        files.text([files.row(1), files.row(2, timestamp="nan")]),
        files.text([files.row(1, timestamp=2), files.row(2, timestamp=1)]),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "content"), [(kind, each) for kind, some in WRONG.items() for each in some])
def test_what_is_no_such_file_is_refused_with_its_cause(kind, content):
    assert refused(content).error_type == kind


@pytest.mark.parametrize("name", NEEDED)
def test_a_column_that_is_not_there_is_named(name):
    columns = [each for each in files.COLUMNS if each != name]
    error = refused(files.text([files.row(1)], columns))
    assert error.error_type == "MissingColumns"
    assert f"no column {name}:" in str(error)
    assert "FeatureExtraction" in str(error)


def test_the_row_fits_every_stores_schema():
    from mma.store.schema import store_schema

    row = settle_video(video_row(files.text([files.row(1)]), VIDEO, min_confidence=0.8), "r1")
    schema = store_schema(OPENFACE)
    assert row.select(schema.names).cast(schema).schema == schema
    assert isinstance(row, pa.Table)
