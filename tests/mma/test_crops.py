"""The crop store and the flat file a node maps: keys, committed files, who builds, what is deleted."""

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import Folder
from mma.crops import OUTCOMES, crop_spec, flat, flat_faces, found, outcomes, rows, store
from mma.crops.keys import Keys
from mma.faces import FaceOptions
from mma.labels.table import CUT, GIVEN

SPEC = crop_spec(FaceOptions().spec())


def wanted(*keys: tuple[str, int | None, str]) -> pa.Table:
    columns = list(zip(*keys)) or [[], [], []]
    kinds = (pa.string(), pa.int32(), pa.string())
    return pa.table([pa.array(each, kind) for each, kind in zip(columns, kinds)], ["source", "frame", "crop"])


def face(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, rows.CROP_SHAPE, dtype=np.uint8)


def video_rows(source: str, frames: list[int], how: list[str | None]) -> pa.Table:
    count = len(frames)
    return rows.crop_rows(
        sources=[source] * count,
        versions=["1"] * count,
        crops=[CUT] * count,
        frames=frames,
        keys=range(count),
        how=how,
        faces=[face(frame) for frame, way in zip(frames, how) if way],
        causes=[
            None if way or frame % 2 else (rows.FAILED, "DamagedStream", "gone") for frame, way in zip(frames, how)
        ],
    )


def write(folder: Folder, *tables: pa.Table) -> None:
    """Each table as a file of its own."""
    writer = store.CropWriter(folder, SPEC, f"run{len(folder.list(suffix='.parquet'))}")
    for table in tables:
        writer.add(table)
        writer.commit()


@pytest.fixture
def folder(tmp_path) -> Folder:
    """Video v: frames 0 to 9 in two files, no face on 3, unreadable on 4; and an image, given."""
    folder = Folder(str(tmp_path / "crops"))
    store.settle_spec(folder, SPEC)
    how = ["detected"] * 10
    how[3] = how[4] = None
    image = rows.crop_rows(
        sources=["/i.png"], versions=["1"], crops=[GIVEN], frames=[-1], keys=[0], how=["given"], faces=[face(100)]
    )
    write(
        folder, video_rows("/v.mp4", list(range(6)), how[:6]), video_rows("/v.mp4", list(range(6, 10)), how[6:]), image
    )
    return folder


def test_any_parquet_reader_reads_the_store(folder):
    table = pq.read_table(folder.uri)
    assert table.num_rows == 11
    assert table["status"].to_pylist().count("ok") == 9
    row = table.filter(pa.compute.equal(table["frame"], 7)).to_pylist()[0]
    np.testing.assert_array_equal(np.frombuffer(row["face"], np.uint8).reshape(rows.CROP_SHAPE), face(7))
    assert table.filter(pa.compute.equal(table["frame"], 4))["error_type"].to_pylist() == ["DamagedStream"]


def test_found_answers_row_by_row_whatever_the_order(folder):
    asked = wanted(
        ("/v.mp4", 9, CUT), ("/i.png", None, GIVEN), ("/v.mp4", 3, CUT), ("/other.mp4", 9, CUT), ("/v.mp4", 4, CUT),
        ("/i.png", None, CUT), ("/v.mp4", 9, GIVEN), ("/v.mp4", 9, CUT), ("/v.mp4", 10, CUT),
    )  # fmt: skip
    assert found(folder, asked).tolist() == [True, True, False, False, False, False, False, True, False]
    names = [*OUTCOMES, None]
    expected = ["detected", "given", "no_face", None, "failed", None, None, "detected", None]
    assert [names[each] for each in outcomes(folder, asked)] == expected
    assert found(folder, wanted()).tolist() == []
    assert found(Folder(folder.uri + "-none"), asked).tolist() == [False] * 9


def test_a_look_reads_no_pixels(folder, monkeypatch):
    asked = []
    read = pq.ParquetFile.read
    monkeypatch.setattr(
        pq.ParquetFile, "read", lambda self, columns=None: (asked.append(columns), read(self, columns=columns))[1]
    )
    found(folder, wanted(("/v.mp4", 0, CUT)))
    assert len(asked) == 3
    assert all("face" not in columns for columns in asked)


def test_groups_of_files_are_looked_up_as_all_at_once(folder, monkeypatch):
    asked = wanted(*(("/v.mp4", frame, CUT) for frame in range(10)), ("/i.png", None, GIVEN))
    at_once = outcomes(folder, asked)
    monkeypatch.setattr(store, "GROUP_ROWS", 1)
    monkeypatch.setattr(store, "READERS", 1)
    np.testing.assert_array_equal(outcomes(folder, asked), at_once)


def test_the_flat_file_has_the_rows_order_and_repeats_what_is_asked_twice(folder, tmp_path):
    order = [9, 0, 7, 0, 8, 2]
    asked = wanted(*(("/v.mp4", frame, CUT) for frame in order), ("/i.png", None, GIVEN))
    faces = flat_faces(folder, asked, tmp_path / "scratch")
    assert isinstance(faces, np.memmap)
    assert (faces.shape, faces.dtype) == ((7, 112, 112, 3), np.uint8)
    for got, number in zip(faces, [*order, 100], strict=True):
        np.testing.assert_array_equal(got, face(number))
    with pytest.raises(ValueError, match="read-only"):
        faces[0, 0, 0, 0] = 1


def test_a_row_without_a_crop_is_refused(folder, tmp_path):
    asked = wanted(("/v.mp4", 0, CUT), ("/v.mp4", 3, CUT), ("/none.mp4", 3, CUT))
    with pytest.raises(ValueError, match="no crop for 2 of 3 rows, such as row 1"):
        flat_faces(folder, asked, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").glob("*.uint8"))
    assert not list((tmp_path / "scratch").glob("_tmp*"))


def test_a_rerun_maps_the_same_file_and_a_changed_store_or_order_makes_another(folder, tmp_path, monkeypatch):
    scratch, built = tmp_path / "scratch", []
    build = flat._build
    monkeypatch.setattr(flat, "_build", lambda *arguments: (built.append(1), build(*arguments))[1])
    asked = wanted(("/v.mp4", 0, CUT), ("/v.mp4", 1, CUT))
    flat_faces(folder, asked, scratch)
    flat_faces(folder, asked, scratch)
    assert len(built) == 1
    turned = flat_faces(folder, asked.take([1, 0]), scratch)
    np.testing.assert_array_equal(turned[0], face(1))
    assert len(built) == 2
    write(folder, video_rows("/w.mp4", [1], ["detected"]))
    flat_faces(folder, asked, scratch)
    assert len(built) == 3


def test_only_flat_files_that_nobody_maps_are_deleted(folder, tmp_path):
    scratch = tmp_path / "scratch"
    kept = flat_faces(folder, wanted(("/v.mp4", 0, CUT)), scratch)
    flat_faces(folder, wanted(("/v.mp4", 1, CUT)), scratch)  # mapped by nobody from here on
    (scratch / "_tmp-crops-1").write_bytes(b"of a killed process")
    flat_faces(folder, wanted(("/v.mp4", 2, CUT)), scratch)
    assert len(list(scratch.glob("*.uint8"))) == 2
    assert not list(scratch.glob("_tmp*"))
    np.testing.assert_array_equal(kept[0], face(0))
    view = kept[0]
    del kept
    flat_faces(folder, wanted(("/v.mp4", 5, CUT)), scratch)
    assert len(list(scratch.glob("*.uint8"))) == 2  # a view of it is left
    del view
    flat_faces(folder, wanted(("/v.mp4", 6, CUT)), scratch)
    assert len(list(scratch.glob("*.uint8"))) == 1


def _map_in_a_process(uri: str, scratch: str, log: str, start) -> None:
    build = flat._build

    def slow(*arguments):
        with open(log, "a") as file:
            file.write("built\n")
        time.sleep(0.3)
        build(*arguments)

    flat._build = slow
    start.wait()
    faces = flat_faces(Folder(uri), wanted(("/v.mp4", 8, CUT), ("/v.mp4", 0, CUT)), Path(scratch))
    assert np.array_equal(faces[0], face(8))
    assert np.array_equal(faces[1], face(0))


def test_of_two_processes_one_builds(folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    start, log = context.Event(), tmp_path / "log"
    arguments = (folder.uri, str(tmp_path / "scratch"), str(log), start)
    processes = [context.Process(target=_map_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    start.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "built\n"


def test_other_settings_are_refused_with_the_field_named(folder):
    other = crop_spec(FaceOptions(detect_size_px=320).spec())
    with pytest.raises(ValueError, match=r"faces.detect_size_px: 320 / 240"):
        store.check_spec(folder, other)
    folder.delete(store.store_files(folder))
    store.settle_spec(folder, other)  # a store without rows takes any


def test_a_folder_of_other_parquet_files_is_no_crop_store(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"no _spec.json"):
        store.check_spec(Folder(str(tmp_path)), SPEC)


def test_a_damaged_file_says_what_to_do(folder):
    folder.write("part-x-00000.parquet", b"PAR1 nothing")
    with pytest.raises(ValueError, match=r"part-x-00000.parquet cannot be read.*delete it"):
        found(folder, wanted(("/v.mp4", 0, CUT)))


def test_keys_tell_images_frames_and_ways_to_cut_apart():
    asked = wanted(("b", 2**31 - 2, CUT), ("a", None, CUT), ("a", None, GIVEN), ("a", 0, CUT), ("b", 2**31 - 2, CUT))
    keys = Keys(asked)
    assert len(keys) == 4
    assert keys.inverse[0] == keys.inverse[4]
    assert keys.positions(asked).tolist() == keys.inverse.tolist()
    back = [
        (keys.sources[s].as_py(), f, g)
        for s, f, g in zip(keys.source.tolist(), keys.frame.tolist(), keys.given.tolist())
    ]
    assert sorted(back) == [("a", -1, False), ("a", -1, True), ("a", 0, False), ("b", 2**31 - 2, False)]
    assert keys.digest() != Keys(asked.take([1, 0, 2, 3, 4])).digest()
    assert keys.digest() == Keys(pa.concat_tables([asked.slice(0, 2), asked.slice(2)])).digest()
