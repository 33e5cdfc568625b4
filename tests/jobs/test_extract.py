"""`extract` end to end on a small cluster: what goes in, what comes out, and what it says of bad videos."""

import json
import os
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import odd_videos
import pyarrow.parquet as pq
import pytest
import torch
from ran_job import Ran

from cluster.lock import StoreLock
from cluster.storage import Folder
from jobs.models import load_weights
from mma.checkpoint import load_mma, save_mma
from mma.descriptors import MMA26

ASSETS = Path(__file__).parents[3] / "shared" / "assets"
NETWORK = ("--mma", "random:0:tiny")
WHOLE_FRAME = (*NETWORK, "--detector", "none")


def rows_of(store) -> dict[str, dict]:
    """The store's rows by (video, chunk), read as anybody would."""
    rows = pq.read_table(store).to_pylist()
    keyed = {(row["video_id"], row["chunk_index"]): row for row in rows}
    assert len(keyed) == len(rows), "a chunk stands twice in the store"
    return {video_id: row for (video_id, index), row in sorted(keyed.items(), reverse=True)}


def descriptors_of(store, video_id: str) -> np.ndarray:
    """A video's descriptors (T, 26), its chunks joined in order."""
    rows = [row for row in pq.read_table(store).to_pylist() if row["video_id"] == video_id]
    rows.sort(key=lambda row: row["chunk_index"])
    return np.concatenate([np.stack([row[name] for name in MMA26.names], axis=1) for row in rows])


@pytest.fixture(scope="module")
def reference(run_job, clips, tmp_path_factory) -> tuple[Path, Ran]:
    """The clips' store under the default settings, and what the run said."""
    store = tmp_path_factory.mktemp("reference") / "s"
    ran = run_job("extract", "--videos", clips, "--store", store, *WHOLE_FRAME)
    assert ran.code == 0, ran.told
    return store, ran


def test_videos_in_descriptors_out(reference, clips):
    store, ran = reference
    assert ran.summary["videos"] == ran.summary["ok"] == ran.summary["units"] == 8
    assert ran.summary["frames"] == sum(range(10, 18))
    assert ran.summary["random_weights"] is True
    assert "mean nothing" in ran.told
    row = rows_of(store)["03"]
    assert row["frame_index"] == list(range(13))
    assert row["time_s"] == pytest.approx([i / 20 for i in range(13)])
    assert (row["width_px"], row["height_px"], row["source_fps"]) == (192, 128, pytest.approx(20))
    assert row["source_bytes"] == (clips / "03.mp4").stat().st_size
    values = descriptors_of(store, "03")
    assert np.isfinite(values).all()
    assert values[:, 2:9].sum(axis=1) == pytest.approx(1, abs=1e-5)
    record = json.loads((store / "_runs" / f"{ran.summary['run_id']}.json").read_text())
    assert record["state"] == "done"


def test_a_rerun_has_nothing_to_do_and_does_not_start_ray(job, reference, clips, monkeypatch):
    store, _ = reference
    before = {path: path.stat().st_mtime_ns for path in store.glob("*.parquet")}
    monkeypatch.setattr("jobs.extraction.ray_session", None)
    ran = job("extract", "--videos", clips, "--store", store, *WHOLE_FRAME)
    assert ran.code == 0, ran.told
    assert (ran.summary["skipped"], ran.summary["ok"], ran.summary["frames"]) == (8, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in store.glob("*.parquet")} == before


def test_dry_run_writes_nothing(job, clips, tmp_path):
    ran = job("extract", "--videos", clips, "--store", tmp_path / "s", *WHOLE_FRAME, "--dry-run")
    assert ran.code == 0
    assert (ran.summary["videos"], ran.summary["to_do"]) == (8, 8)
    assert ran.summary["bytes"] == sum(path.stat().st_size for path in clips.iterdir())
    assert not (tmp_path / "s").exists()


def test_one_bad_video_costs_one_row(job, clips, tmp_path, opened):
    for name in ("segfault", "sleeper", "hog", "fine"):
        shutil.copy(clips / "00.mp4", tmp_path / f"{name}.mp4")
    started_s = time.monotonic()
    ran = job(
        "extract", "--videos", tmp_path / "*.mp4", "--store", tmp_path / "s", *WHOLE_FRAME,
        "--decode-timeout-s", 4, "--decode-memory", 2**30,
    )  # fmt: skip
    assert ran.code == 3, ran.told
    assert time.monotonic() - started_s < 60
    rows = rows_of(tmp_path / "s")
    causes = {name: (row["status"], row["error_type"]) for name, row in rows.items()}
    assert causes == {
        "fine": ("ok", None),
        "segfault": ("failed", "DecoderCrashed"),
        "sleeper": ("failed", "DecodeTimeout"),
        "hog": ("failed", "OutOfMemory"),
    }
    assert "SIGSEGV" in rows["segfault"]["error_message"]
    # No Ray task was retried: each was opened once.
    assert {name: opened(f"{name}.mp4") for name in causes} == dict.fromkeys(causes, 1)


def test_strangers_files_are_failed_rows_and_nothing_else_is_read(job, clips, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    secret = tmp_path / "secret.mp4"
    shutil.copy(clips / "00.mp4", secret)
    shutil.copy(secret, control := tmp_path / "control.mp4")
    for path in (secret, control):
        os.utime(path, (1, path.stat().st_mtime))
    control.read_bytes()
    called = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        threading.Thread(target=lambda: (server.accept(), called.set()), daemon=True).start()
        (corpus / "playlist.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
        (corpus / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{secret}'\n")
        (corpus / "url.mp4").write_text(f"http://127.0.0.1:{port}/x.mp4\n")
        (corpus / "remote.m3u8.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{port}/x.mp4\n")
        (corpus / "empty.mp4").write_bytes(b"")
        odd_videos.truncate(clips / "07.mp4", corpus / "truncated.mp4")
        ran = job(
            "extract", "--videos", corpus, "--store", tmp_path / "s", *WHOLE_FRAME, "--max-failed-fraction", 1
        )  # fmt: skip
        assert not called.is_set()
    assert ran.code == 0, ran.told
    rows = rows_of(tmp_path / "s")
    assert {name for name, row in rows.items() if row["status"] == "failed"} == {
        "playlist", "concat", "url", "remote.m3u8", "empty",
    }  # fmt: skip
    if control.stat().st_atime != 1:  # this file system notes who reads
        assert secret.stat().st_atime == 1
    truncated = rows["truncated"]
    assert truncated["status"] == "partial"
    assert 0 < truncated["num_frames"] < 17
    assert truncated["error_message"]


def test_a_worker_killed_between_chunks_loses_and_doubles_nothing(job, tmp_path, monkeypatch, opened):
    monkeypatch.setattr("jobs.pipeline.DESCRIBED_BYTES", 1)  # a block a chunk, so that Ray has blocks to skip by index
    odd_videos.write_clip(tmp_path / "worker-killer.mp4", frames=60)
    odd_videos.write_clip(tmp_path / "other.mp4", frames=60)
    ran = job(
        "extract", "--videos", tmp_path / "*.mp4", "--store", tmp_path / "s", *WHOLE_FRAME, "--chunk-frames", 8
    )  # fmt: skip
    assert ran.code == 0, ran.told
    rows = pq.read_table(tmp_path / "s").to_pylist()
    assert len(rows) == len({(row["video_id"], row["chunk_index"]) for row in rows})
    for name in ("worker-killer", "other"):
        mine = sorted((row for row in rows if row["video_id"] == name), key=lambda row: row["chunk_index"])
        assert np.concatenate([row["frame_index"] for row in mine]).tolist() == list(range(60))
    assert opened("worker-killer.mp4") >= 2


def test_descriptors_do_not_depend_on_batch_chunk_or_workers(job, reference, clips, tmp_path):
    settings = {
        "small": ("--micro-batch", 3, "--chunk-frames", 4, "--decoders", 1),
        "two-actors": ("--limit", 3, "--micro-batch", 17, "--extractors", 2),
    }
    for name, more in settings.items():
        ran = job("extract", "--videos", clips, "--store", tmp_path / name, *WHOLE_FRAME, *more)
        assert ran.code == 0, ran.told
        for video_id in ("00", "02"):
            expected = descriptors_of(reference[0], video_id)
            np.testing.assert_allclose(descriptors_of(tmp_path / name, video_id), expected, atol=1e-5)
    assert pq.read_table(tmp_path / "small").num_rows > 16


def test_decord_and_pyav_give_the_same_descriptors(job, reference, clips, tmp_path):
    pytest.importorskip("decord", reason="decord has no wheel for this platform: PyAV decodes alone")
    ran = job("extract", "--videos", clips, "--store", tmp_path / "s", *WHOLE_FRAME, "--decoder", "auto")
    assert ran.code == 0, ran.told
    for video_id in ("01", "05"):
        # Stated tolerance: on usual 8-bit clips the pixels are the same, so .01 is generous.
        theirs, ours = descriptors_of(tmp_path / "s", video_id), descriptors_of(reference[0], video_id)
        np.testing.assert_allclose(theirs, ours, atol=0.01)
    assert {row["decoder"] for row in rows_of(tmp_path / "s").values()} == {"decord"}
    assert {row["decoder"] for row in rows_of(reference[0]).values()} == {"pyav"}


def test_fps_takes_frames_by_their_time_stamps(job, clips, tmp_path):
    ran = job("extract", "--videos", clips / "07.mp4", "--store", tmp_path / "s", *WHOLE_FRAME, "--fps", 5)
    assert ran.code == 0, ran.told
    row = rows_of(tmp_path / "s")["07"]
    assert row["frame_index"] == [0, 4, 8, 12, 16]
    again = job("extract", "--videos", clips, "--store", tmp_path / "s", *WHOLE_FRAME)
    assert again.code == 2
    assert "sampling.fps" in again.told


def test_ids_that_look_like_paths_write_nothing_outside_the_store(job, clips, tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    table = inside / "videos.csv"
    table.write_text(
        f'video_id,uri\n../x.mp4,{clips}/00.mp4\n"a b\nc",{clips}/01.mp4\nü/../../y,{clips}/02.mp4\n/etc/z,{clips}/none.mp4\n'
    )
    before = set(tmp_path.rglob("*"))
    ran = job("extract", "--videos", table, "--store", inside / "s", *WHOLE_FRAME, "--max-failed-fraction", 1)
    assert ran.code == 0, ran.told
    assert all(inside / "s" in path.parents or path == inside / "s" for path in set(tmp_path.rglob("*")) - before)
    rows = rows_of(inside / "s")
    assert set(rows) == {"../x.mp4", "a b\nc", "ü/../../y", "/etc/z"}
    assert (rows["/etc/z"]["error_stage"], rows["/etc/z"]["error_type"]) == ("fetch", "Missing")


def test_a_real_clip_has_a_face_in_each_of_its_472_frames(job, tmp_path):
    clip, weights = ASSETS / "real_face_472frames.mp4", ASSETS / "face_detection_yunet_2023mar.onnx"
    if not (clip.is_file() and weights.is_file()):
        pytest.skip("the real clip and YuNet's weights are not beside this checkout, in ../shared/assets")
    ran = job(
        "extract", "--videos", clip, "--store", tmp_path / "s", *NETWORK,
        "--detector", "yunet", "--detector-weights", weights,
    )  # fmt: skip
    assert ran.code == 0, ran.told
    assert (ran.summary["units"], ran.summary["frames"], ran.summary["ok"]) == (1, 472, 1)
    row = rows_of(tmp_path / "s")["real_face_472frames"]
    assert all(row["face_found"])
    assert set(row["num_faces"]) == {1}
    assert np.isfinite(row["face_points"]).all()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_weights_that_diverged_are_refused_before_the_first_video(job, clips, tmp_path, opened, more):
    """Only loading them shows it, which is done while Ray starts."""
    network = load_mma(load_weights("random:0:tiny").data).network
    with torch.no_grad():
        network.heads["expressions"].bias[0] = float("nan")
    save_mma(network, tmp_path / "nan.safetensors", {})
    before = opened("00.mp4")
    ran = job("extract", "--videos", clips, "--store", tmp_path / "s", "--mma", tmp_path / "nan.safetensors", *more)
    assert (ran.code, ran.summary) == (2, {}), ran.told
    assert "nan.safetensors holds NaN or infinity in heads.expressions.bias" in ran.told.splitlines()[-1]
    assert opened("00.mp4") == before
    assert not list(tmp_path.glob("s/*.parquet"))


def test_failed_videos_are_tried_again_only_when_asked(job, clips, tmp_path):
    broken = tmp_path / "v" / "a.mp4"
    broken.parent.mkdir()
    broken.write_bytes(b"nothing of a video")
    command = ("extract", "--videos", broken.parent, "--store", tmp_path / "s", *WHOLE_FRAME)
    assert job(*command).code == 3
    shutil.copy(clips / "00.mp4", broken)
    assert job(*command).summary["skipped"] == 1
    ran = job(*command, "--retry-failed")
    assert (ran.code, ran.summary["ok"]) == (0, 1), ran.told
    assert rows_of(tmp_path / "s")["a"]["status"] == "ok"


def test_changed_videos_are_reported_and_redone_when_asked(job, clips, tmp_path):
    videos = tmp_path / "v"
    shutil.copytree(clips, videos)
    command = ("extract", "--videos", videos, "--store", tmp_path / "s", *WHOLE_FRAME)
    assert job(*command).code == 0
    shutil.copy(clips / "07.mp4", videos / "00.mp4")
    ran = job(*command)
    assert (ran.summary["changed"], ran.summary["ok"]) == (1, 0)
    assert "--redo-changed" in ran.told
    ran = job(*command, "--redo-changed")
    assert (ran.code, ran.summary["ok"], ran.summary["skipped"]) == (0, 1, 7)
    assert rows_of(tmp_path / "s")["00"]["num_frames"] == 17


def test_a_second_run_on_a_store_is_told_who_holds_it(job, clips, tmp_path):
    with StoreLock(Folder(str(tmp_path / "s")), "run 1 of somebody"):
        ran = job("extract", "--videos", clips, "--store", tmp_path / "s", *WHOLE_FRAME)
    assert ran.code == 2
    assert "run 1 of somebody" in ran.told


def test_an_impossible_request_fails_at_once(job, clips, tmp_path, monkeypatch):
    monkeypatch.setattr("jobs.extraction.ray_session", None)  # before Ray would be started
    started_s = time.monotonic()
    ran = job("extract", "--videos", clips, "--store", tmp_path / "s", *WHOLE_FRAME, "--decoders", 64)
    assert ran.code == 2
    assert "--decoders" in ran.told
    assert time.monotonic() - started_s < 5
    assert not (tmp_path / "s").exists()


def test_a_store_that_cannot_be_written_is_found_before_the_first_video(job, clips, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    ran = job("extract", "--videos", clips, "--store", tmp_path / "file" / "s", *WHOLE_FRAME)
    assert ran.code == 2
    assert "--store" in ran.told


def test_export_gives_a_row_a_frame(job, reference, tmp_path):
    store, _ = reference
    for name in ("frames.csv", "frames.parquet"):
        ran = job("export", "--store", store, "--out", tmp_path / name)
        assert ran.code == 0, ran.told
        assert (ran.summary["videos"], ran.summary["frames"]) == (8, sum(range(10, 18)))
    text = (tmp_path / "frames.csv").read_text().splitlines()
    assert len(text) == 1 + sum(range(10, 18))
    assert {"video_id", "time_s", "face_x", "valence", "AU26"} <= set(text[0].replace('"', "").split(","))
    refused = {
        "exists": ("--store", store, "--out", tmp_path / "frames.csv"),
        "no feature store": ("--store", tmp_path / "none", "--out", tmp_path / "x.csv"),
        "inside the store": ("--store", store, "--out", store / "x.parquet"),
        "stands in": ("--store", store, store, "--out", tmp_path / "x.csv"),
        ".csv or .parquet": ("--store", store, "--out", tmp_path / "x.txt"),
    }
    for told, arguments in refused.items():
        ran = job("export", *arguments)
        assert (ran.code, told in ran.told) == (2, True), ran.told
    assert not list(tmp_path.glob("x*"))


def test_the_whole_job_from_s3_to_s3(job, reference, clips, tmp_path, s3_bucket):
    source = Folder(f"s3://{s3_bucket}/corpus")
    for path in clips.glob("*.mp4"):
        source.write(path.name, path.read_bytes())
    command = ("extract", "--videos", f"s3://{s3_bucket}/corpus/", "--store", f"s3://{s3_bucket}/store", *WHOLE_FRAME)
    ran = job(*command)
    assert ran.code == 0, ran.told
    assert ran.summary["ok"] == 8
    assert job(*command).summary["skipped"] == 8
    store = Folder(f"s3://{s3_bucket}/store")
    (tmp_path / "copy").mkdir()
    for file in store.list(suffix=".parquet"):
        (tmp_path / "copy" / file.name).write_bytes(store.read(file.name))
    for video_id in ("00", "07"):
        ours, local = descriptors_of(tmp_path / "copy", video_id), descriptors_of(reference[0], video_id)
        np.testing.assert_allclose(ours, local, atol=1e-5)
    assert not list(Path(os.environ["MMA_MRNNET_SCRATCH"]).rglob("*.mp4")), "fetched videos were left in scratch"
