"""The feature store: whole videos once, whatever Ray delivers; readable by anything; never mixed under two specs."""

import itertools
import json
import subprocess
import sys

import made_rows
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import Folder
from mma.descriptors import MMA26
from mma.store import reader, rows, writer
from mma.store import schema as s

SPEC = s.make_spec(
    descriptors=MMA26,
    weights={"sha256": "x"},
    crop={},
    detector={"detector": "haar"},
    sampling={"fps": None},
    precision="float32",
)


def store_of(folder: Folder, *videos: pa.Table, run_id: str = "r1") -> writer.StoreWriter:
    writer.settle_spec(folder, SPEC)
    out = writer.StoreWriter(folder, MMA26, SPEC, run_id)
    for video in videos:
        out.add(video)
    out.commit()
    return out


def settled(video_id: str, chunks: int = 1, **settings) -> pa.Table:
    pieces = [made_rows.row(video_id, i, chunks if i == chunks - 1 else None, **settings) for i in range(chunks)]
    return rows.settle_video(pa.concat_tables(pieces), "r1")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_chunks_in_any_order_make_one_ordered_video(order):
    pieces = [made_rows.row("v", i, 3 if i == 2 else None) for i in range(3)]
    assembler = rows.VideoAssembler("r1")
    out = [video for position in order for video in assembler.add(pieces[position])]
    assert len(out) == 1
    assert out[0]["chunk_index"].to_pylist() == [0, 1, 2]
    assert out[0]["num_chunks"].to_pylist() == [3, 3, 3]
    assert out[0]["run_id"].to_pylist() == ["r1"] * 3


def test_a_retry_with_other_chunks_is_never_mixed_with_the_first_attempt():
    # Attempt a: four frames a chunk, killed after chunk 0. Attempt b: eight a chunk; Ray drops what has an index
    # it has seen, so only b's chunk 1 arrives. The video is not complete, and must be planned again.
    assembler = rows.VideoAssembler("r1")
    assert not assembler.add(made_rows.row("v", 0, None, attempt="a"))
    assert not assembler.add(made_rows.row("v", 1, 2, attempt="b", count=8))
    assert "v" not in assembler.done
    assert assembler.drop_incomplete() == 2
    again = [made_rows.row("v", i, 2 if i else None, attempt="c") for i in range(2)]
    (video,) = [video for piece in again for video in assembler.add(piece)]
    assert np.concatenate(video["frame_index"].to_pylist()).tolist() == list(range(8))


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("ab"), st.integers(0, 2)), max_size=60))
def test_any_stutter_gives_each_video_at_most_once_and_from_one_attempt(deliveries):
    assembler = rows.VideoAssembler("r1")
    out = []
    for video, attempt, index in deliveries:
        value = {"a": 0.25, "b": 0.75}[attempt]
        piece = made_rows.row(f"v{video}", index, 3 if index == 2 else None, attempt=attempt, value=value)
        out += assembler.add(piece)
    ids = [video["video_id"][0].as_py() for video in out]
    assert sorted(ids) == sorted(set(ids))
    for video in out:
        assert video["chunk_index"].to_pylist() == [0, 1, 2]
        assert len(set(np.concatenate(video["valence"].to_pylist()).tolist())) == 1
    whole = {f"v{v}" for v in range(3) for a in "ab" if {(v, a, i) for i in range(3)} <= set(deliveries)}
    assert whole <= set(ids)


def test_statuses_are_those_of_the_whole_video():
    def statuses(*pieces: pa.Table) -> list[str]:
        return rows.settle_video(pa.concat_tables(pieces), "r").column("status").to_pylist()

    row = made_rows.row
    assert statuses(row("v", 0, None, face=False), row("v", 1, 2)) == ["ok", "ok"]
    assert statuses(row("v", 0, None, face=False), row("v", 1, 2, face=False)) == ["no_face", "no_face"]
    assert statuses(row("v", 0, None), row("v", 1, 2, status=s.FAILED)) == ["partial", "failed"]
    assert statuses(row("v", 0, None), row("v", 1, 2, status=s.PARTIAL)) == ["partial", "partial"]
    assert statuses(row("v", 0, 1, status=s.FAILED)) == ["failed"]


def test_a_failed_row_has_its_cause_in_one_line_of_500_characters_and_empty_lists():
    failed = settled("v", status=s.FAILED).to_pylist()[0]
    assert failed["error_type"] == "DecoderCrashed"
    assert failed["error_message"].startswith("a b")
    assert len(failed["error_message"]) == 500
    assert failed["valence"] == failed["time_s"] == failed["face_box"] == []


def test_frames_without_a_face_are_nan_and_lists_of_a_row_agree_in_length(tmp_path):
    faces = np.array([True, False, True, False])
    chunk = rows.chunk_row(
        MMA26, {"video_id": "v", "chunk_index": 0, "num_chunks": 1, "status": s.OK}, made_rows.frames(0, 4, faces)
    )
    values = np.arange(2 * 26, dtype=np.float32).reshape(2, 26)
    video = rows.settle_video(rows.with_descriptors(chunk, MMA26, [values]), "r")
    store_of(Folder(str(tmp_path)), video)
    read = pq.read_table(tmp_path).to_pylist()[0]
    np.testing.assert_array_equal(read["AU26"], [25.0, np.nan, 51.0, np.nan])
    np.testing.assert_array_equal(read["valence"], [0.0, np.nan, 26.0, np.nan])
    per_frame = s.frame_columns(MMA26)
    assert {len(read[name]) for name in per_frame} == {4}
    assert np.isnan(read["face_box"][1]).all()


def test_with_descriptors_puts_each_rows_values_into_that_row():
    table = pa.concat_tables([made_rows.row(f"v{i}", count=i + 1) for i in range(3)])
    values = [np.full((i + 1, 26), i, np.float32) for i in range(3)]
    filled = rows.with_descriptors(table.slice(1), MMA26, values[1:])
    assert filled["AU01"].to_pylist() == [[1.0] * 2, [2.0] * 3]


def test_failed_videos_stand_in_files_of_their_own(tmp_path):
    folder = Folder(str(tmp_path))
    out = store_of(folder, settled("good", 2), settled("bad", status=s.FAILED))
    assert [name.split("-")[0] for name in reader.store_files(folder)] == ["failed", "part"]
    assert out.videos == {"ok": 1, "partial": 0, "no_face": 0, "failed": 1}
    index = reader.read_index(folder)
    assert {row["file"].split("-")[0]: row["video_id"] for row in index.to_pylist()} == {
        "failed": "bad",
        "part": "good",
    }


def test_a_chunk_that_stands_twice_is_refused_with_both_files_named(tmp_path):
    folder = Folder(str(tmp_path))
    store_of(folder, settled("a", 2))
    store_of(folder, settled("a", 2), run_id="r2")
    with pytest.raises(ValueError, match=r"'a' twice, in part-r1-00000.parquet and part-r2-00000.parquet"):
        reader.read_index(folder)


def test_a_commit_that_was_interrupted_and_is_done_again_doubles_nothing(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    out = writer.StoreWriter(folder, MMA26, SPEC, "r1")
    for video in (settled("a"), settled("b", status=s.FAILED)):
        out.add(video)
    honest = Folder.write

    def interrupted(self, name, data):
        honest(self, name, data)
        raise SystemExit(143)

    for _ in range(2):
        monkeypatch.setattr(Folder, "write", interrupted)
        with pytest.raises(SystemExit):
            out.commit()
    monkeypatch.setattr(Folder, "write", honest)
    out.commit()
    assert sorted(reader.read_index(folder)["video_id"].to_pylist()) == ["a", "b"]
    assert sum(out.videos.values()) == 2


def test_dropping_videos_keeps_the_others_of_their_files(tmp_path):
    folder = Folder(str(tmp_path))
    store_of(folder, settled("a"), settled("b", 2), settled("c"))
    assert reader.drop_videos(folder, {"b"}) == 2
    assert reader.read_index(folder)["video_id"].to_pylist() == ["a", "c"]
    assert reader.drop_videos(folder, {"a", "c"}) == 2
    assert reader.store_files(folder) == []


def test_another_spec_is_refused_with_the_differing_field_named(tmp_path):
    folder = Folder(str(tmp_path))
    writer.settle_spec(folder, SPEC)
    writer.settle_spec(folder, SPEC)
    with pytest.raises(ValueError, match=r"sampling\.fps: 5\.0 / null"):
        writer.settle_spec(folder, {**SPEC, "sampling": {"fps": 5.0}})
    assert json.loads((tmp_path / s.SPEC_FILE).read_bytes()) == SPEC


def test_the_spec_travels_in_every_file(tmp_path):
    store_of(Folder(str(tmp_path)), settled("a"))
    (file,) = tmp_path.glob("part-*.parquet")
    assert json.loads(pq.read_schema(file).metadata[s.SPEC_METADATA_KEY]) == SPEC


def test_commits_fall_due_by_time_and_by_size(tmp_path, monkeypatch):
    assert [writer.commit_interval_s(t) for t in (0, 100, 1e6)] == [2.0, 5.0, 60.0]
    now = {"s": 0.0}
    out = writer.StoreWriter(Folder(str(tmp_path)), MMA26, SPEC, "r", clock=lambda: now["s"])
    assert not out.due
    out.add(settled("a"))
    assert not out.due
    now["s"] = 2.5
    assert out.due
    out.commit()
    assert not out.due
    monkeypatch.setattr(writer, "TARGET_BYTES", 1)
    out.add(settled("b"))
    assert out.due


def test_a_half_written_file_is_named(tmp_path):
    folder = Folder(str(tmp_path))
    store_of(folder, settled("a"))
    (file,) = tmp_path.glob("part-*.parquet")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=file.name):
        reader.read_index(folder)


def test_plain_readers_unnest_a_clip_to_frames(tmp_path):
    store_of(Folder(str(tmp_path)), settled("a b", 2), settled("c", status=s.FAILED), settled("d", face=False))
    script = """
import sys, duckdb, pandas
rows = duckdb.sql(f"select video_id, unnest(frame_index) as frame, unnest(valence) as valence, unnest(AU12) as au12,"
                  f" unnest(face_box)[1] as x from '{sys.argv[1]}/*.parquet' where video_id = 'a b' order by frame").fetchall()
assert [row[1] for row in rows] == list(range(8)), rows
assert all(row[2] == row[3] == 0.5 and row[4] == 10 for row in rows), rows
frame = pandas.read_parquet(sys.argv[1])
flat = frame[["video_id", "frame_index", "valence"]].explode(["frame_index", "valence"])
assert len(flat[flat.video_id == "a b"]) == 8 and flat[flat.video_id == "d"].valence.isna().all()
assert not {"mma", "jobs", "ray"} & set(sys.modules)
print("fine")
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd="/", capture_output=True, text=True, check=False
    )
    assert run.stdout == "fine\n", run.stderr


def test_frames_of_gives_a_row_a_frame_with_scalar_columns(tmp_path):
    folder = Folder(str(tmp_path))
    store_of(folder, settled("b"), settled("a", 2))
    (table,) = [reader.frames_of(each) for each in reader.iterate_files(folder)]
    assert table["video_id"].to_pylist() == ["a"] * 8 + ["b"] * 4
    assert table["frame_index"].to_pylist() == [*range(8), *range(4)]
    assert table["face_w"].to_pylist() == [30.0] * 12
    assert not any(pa.types.is_nested(field.type) for field in table.schema)
