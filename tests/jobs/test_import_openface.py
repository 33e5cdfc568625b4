"""`import-openface`: csv files in, a store like any other out, exact whatever happens meanwhile."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import openface_files as files
import pyarrow.parquet as pq
import pytest
from ran_job import Ran

import jobs.openface_run
from cluster.lock import StoreLock
from cluster.storage import Folder
from cluster.uri import StorageError
from jobs.cli import main
from jobs.intake import Intake
from mma.descriptors import OPENFACE
from mma.store.reader import read_index, read_spec
from mma.store.schema import store_schema
from rnn.flat import flat_videos, stores_spec, stores_step
from rnn.sequences import chosen_names


class Case:
    """Five files v0 to v4 of five frames, and the store that they become."""

    def __init__(self, folder: Path, capfd: pytest.CaptureFixture):
        self.folder, self.csvs, self.store, self.capfd = folder, folder / "c", folder / "s", capfd
        for number in range(5):
            files.write(self.csvs / f"v{number}.csv")

    def run(self, *arguments: object, csvs: object = None) -> Ran:
        command = ("import-openface", "--csvs", csvs or self.csvs, "--store", self.store, *arguments)
        code = main([str(each) for each in command])
        out, err = self.capfd.readouterr()
        return Ran(code, json.loads(out) if out.strip() else {}, err)

    def rows(self) -> dict[str, dict]:
        rows = [row for path in self.store.glob("*.parquet") for row in pq.read_table(path).to_pylist()]
        assert len({row["video_id"] for row in rows}) == len(rows), "a video stands twice"
        return {row["video_id"]: row for row in rows}


@pytest.fixture
def case(tmp_path, capfd) -> Case:
    return Case(tmp_path, capfd)


def counts(ran: Ran, *names: str) -> tuple:
    return tuple(ran.summary[name] for name in names)


def test_csvs_in_a_store_out(case):
    ran = case.run()
    assert ran.code == 0, ran.told
    assert counts(ran, "job", "videos", "ok", "units", "frames", "skipped", "missing") == (
        "import-openface", 5, 5, 5, 25, 0, 0,
    )  # fmt: skip
    assert ran.summary["store_videos"] == {"ok": 5, "partial": 0, "no_face": 0, "failed": 0}
    rows = case.rows()
    assert sorted(rows) == [f"v{number}" for number in range(5)]
    row = rows["v2"]
    assert (row["run_id"], row["uri"]) == (ran.summary["run_id"], str(case.csvs / "v2.csv"))
    assert row["source_bytes"] == (case.csvs / "v2.csv").stat().st_size
    assert row["AU12_r"] == pytest.approx([n / 100 for n in range(1, 6)])
    (part,) = case.store.glob("*.parquet")
    assert pq.read_schema(part).equals(store_schema(OPENFACE))
    spec = read_spec(Folder(str(case.store)))
    assert (spec["descriptor_set"], spec["descriptors"]) == ("openface", list(OPENFACE.names))
    assert (spec["weights"], spec["detector"]) == ({"openface": "csv"}, {"detector": "openface", "min_confidence": 0.8})
    assert json.loads((case.store / "_summary.json").read_text()) == ran.summary
    (record,) = (case.store / "_runs").iterdir()
    assert json.loads(record.read_text())["state"] == "done"


def test_stage_2_reads_the_store_as_any_other(case):
    assert case.run().code == 0
    stores = [Folder(str(case.store))]
    spec, step_s = stores_spec(stores), stores_step(stores)
    assert step_s == pytest.approx(1 / 30, abs=1e-3)
    videos = flat_videos(stores, spec, step_s, case.folder / "scratch")
    assert videos.video_ids == [f"v{number}" for number in range(5)]
    assert np.isfinite(videos.values).all()
    assert len(videos.values) == 25
    units = chosen_names(["aus"], videos.names)
    assert len(units) == 35
    assert len(chosen_names(["all"], videos.names)) == 40


def test_a_rerun_does_what_is_missing(case):
    assert counts(case.run("--limit", 2), "ok", "videos") == (2, 2)
    again = case.run()
    assert counts(again, "ok", "skipped", "videos") == (3, 2, 5)
    before = {path: path.read_bytes() for path in case.store.rglob("*") if path.is_file()}
    assert counts(case.run(), "ok", "skipped", "missing") == (0, 5, 0)
    after = {path: path.read_bytes() for path in case.store.rglob("*") if path.is_file()}
    assert after == before, "nothing to do writes nothing"


def test_bad_files_are_failed_rows_with_their_cause_and_the_others_are_unharmed(case):
    (case.csvs / "v0.csv").write_bytes(b"")
    (case.csvs / "v1.csv").write_text("face, confidence\n0, 0.9\n")
    files.write(case.csvs / "v2.csv", [files.lost(1), files.lost(2)])
    files.write(case.csvs / "v3.csv", [files.row(n, timestamp=n * 33.3) for n in range(1, 5)])
    ran = case.run()
    assert (ran.code, *counts(ran, "ok", "no_face", "failed", "missing")) == (3, 1, 1, 3, 0)
    assert "3 of 5 files failed" in ran.told
    rows = case.rows()
    causes = {name: (row["error_stage"], row["error_type"]) for name, row in rows.items() if row["status"] == "failed"}
    assert causes == {"v0": ("read", "Empty"), "v1": ("read", "MissingColumns"), "v3": ("read", "Milliseconds")}
    assert "no column frame" in rows["v1"]["error_message"]
    assert rows["v0"]["frame_index"] == rows["v0"]["AU12_r"] == []
    assert (rows["v2"]["status"], rows["v4"]["status"]) == ("no_face", "ok")
    index = read_index(Folder(str(case.store))).to_pylist()
    assert {row["video_id"] for row in index if row["file"].startswith("failed-")} == set(causes)


def test_failed_files_are_read_again_when_asked(case):
    good = (case.csvs / "v0.csv").read_bytes()
    (case.csvs / "v0.csv").write_bytes(b"")
    assert case.run("--max-failed-fraction", 1).code == 0
    (case.csvs / "v0.csv").write_bytes(good)
    ran = case.run("--max-failed-fraction", 1)
    assert counts(ran, "ok", "skipped", "changed") == (0, 5, 1)
    ran = case.run("--retry-failed")
    assert (ran.code, *counts(ran, "ok", "skipped")) == (0, 1, 4)
    assert ran.summary["store_videos"]["ok"] == 5


def test_changed_files_are_told_and_read_again_when_asked(case):
    assert case.run().code == 0
    files.write(case.csvs / "v1.csv", [files.row(1), files.row(2)])
    ran = case.run()
    assert counts(ran, "ok", "changed") == (0, 1)
    assert "--redo-changed" in ran.told
    assert counts(case.run("--redo-changed"), "ok", "skipped") == (1, 4)
    assert case.rows()["v1"]["num_frames"] == 2


def test_the_confidence_is_part_of_the_stores_spec(case):
    files.write(case.csvs / "v0.csv", [files.row(1, confidence=0.6), files.row(2)])
    assert case.run("--confidence", 0.5).code == 0
    assert case.rows()["v0"]["face_found"] == [True, True]
    ran = case.run("--confidence", 0.7)
    assert (ran.code, "detector.min_confidence: 0.7 / 0.5" in ran.told) == (2, True)


def test_folders_globs_and_single_files(case, tmp_path):
    files.write(case.csvs / "deep" / "er" / "w.csv")
    (case.csvs / "v0_of_details.txt").write_text("not a csv")
    for csvs, videos in (
        (case.csvs, 6),
        (case.csvs / "v[1-3].csv", 3),
        (case.csvs / "**" / "w.csv", 1),
        (case.csvs / "v0.csv", 1),
    ):
        case.store = tmp_path / f"s{len(list(tmp_path.iterdir()))}"
        ran = case.run(csvs=csvs)
        assert (ran.code, *counts(ran, "videos", "ok")) == (0, videos, videos), (csvs, ran.told)


def test_two_files_of_one_id_are_refused_with_the_mend(case):
    files.write(case.csvs / "deep" / "v0.csv")
    ran = case.run()
    assert ran.code == 2
    assert "--csvs: the id 'v0'" in ran.told
    assert "--video-id path" in ran.told
    assert case.run("--video-id", "path").code == 0
    assert {"v0.csv", "deep/v0.csv"} < set(case.rows())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--confidence", "1.5"), "--confidence 1.5"),
        (("--limit", "0"), "--limit 0"),
        (("--csvs", "none"), "--csvs"),
        (("--csvs", "ftp://host/x"), "--csvs"),
        (("--store", "ftp://host/x"), "ftp://host/x"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(case, arguments, told):
    ran = case.run(*arguments)
    assert (ran.code, ran.summary) == (2, {})
    assert told in ran.told
    assert "--videos" not in ran.told
    assert not case.store.exists()


def test_a_folder_without_csvs_is_refused(case):
    empty = case.folder / "empty"
    empty.mkdir()
    ran = case.run(csvs=empty)
    assert (ran.code, f"--csvs {empty}/**/*.csv: no file matches" in ran.told) == (2, True)


def test_a_live_run_is_left_alone_and_named(case):
    with StoreLock(Folder(str(case.store)), "run r7 on this host"):
        ran = case.run()
    assert (ran.code, "run r7 on this host" in ran.told) == (2, True)


def test_storage_that_fails_leaves_no_row(case, monkeypatch):
    honest = jobs.openface_run.read

    def read(uri):
        if uri.endswith("v2.csv"):
            raise StorageError("SlowDown", retryable=True)
        return honest(uri)

    monkeypatch.setattr(jobs.openface_run, "read", read)
    ran = case.run()
    assert (ran.code, *counts(ran, "ok", "failed", "missing")) == (1, 4, 0, 1)
    assert "v2" not in case.rows()
    monkeypatch.undo()
    assert (case.run().code, len(case.rows())) == (0, 5)


def test_a_file_that_may_not_be_read_is_a_failed_row(case, monkeypatch):
    def read(uri):
        raise StorageError("Permission denied")

    monkeypatch.setattr(jobs.openface_run, "read", read)
    ran = case.run()
    assert (ran.code, *counts(ran, "failed", "missing")) == (3, 5, 0)
    assert case.rows()["v0"]["error_message"] == "Permission denied"


def test_a_signal_commits_what_is_complete_and_a_rerun_does_the_rest(case, monkeypatch):
    honest_read, honest_take, intakes = jobs.openface_run.read_file, Intake.take, []

    def take(self, batches):
        intakes.append(self)
        honest_take(self, batches)

    def wait_until(true) -> None:
        until = time.monotonic() + 30
        while not true() and time.monotonic() < until:
            time.sleep(0.01)

    def read_file(file, min_confidence):
        if file["video_id"] == "v3":
            wait_until(lambda: len(intakes[0].assembler.done) == 3)
            os.kill(os.getpid(), signal.SIGTERM)
            wait_until(lambda: intakes[0].stop.signal)
        return honest_read(file, min_confidence)

    monkeypatch.setattr(Intake, "take", take)
    monkeypatch.setattr(jobs.openface_run, "read_file", read_file)
    ran = case.run()
    assert (ran.code, *counts(ran, "ok", "missing")) == (143, 3, 2)
    assert sorted(case.rows()) == ["v0", "v1", "v2"]
    (record,) = (case.store / "_runs").iterdir()
    assert json.loads(record.read_text())["state"] == "interrupted"
    monkeypatch.undo()
    assert (case.run().code, len(case.rows())) == (0, 5)


def test_nothing_is_written_once_the_lock_is_lost(case, monkeypatch):
    honest = Intake.take

    def robbed(self, batches):
        honest(self, batches)
        monkeypatch.setattr(StoreLock, "lost", property(lambda lock: True))

    monkeypatch.setattr(Intake, "take", robbed)
    ran = case.run()
    assert (ran.code, *counts(ran, "ok", "missing")) == (1, 0, 5)
    assert case.rows() == {}


def test_files_are_read_side_by_side_and_never_all_at_once(case, monkeypatch):
    started: list[str] = []

    def read_file(file, min_confidence):
        started.append(file["video_id"])
        return file["video_id"]

    monkeypatch.setattr(jobs.openface_run, "read_file", read_file)
    table = jobs.openface_run.find_csvs(str(case.csvs), video_id="stem").videos.take([n % 5 for n in range(5000)])
    rows = jobs.openface_run.read_files(table, 0.8)
    first = [next(rows) for _ in range(100)]
    assert first == [f"v{n % 5}" for n in range(100)]
    assert len(started) <= 100 + 2 * jobs.openface_run.READERS
    rows.close()


def test_from_s3_to_s3(case, s3_bucket):
    source = Folder(f"s3://{s3_bucket}/features")
    for number in range(3):
        source.child("train").write(f"v{number}.csv", (case.csvs / f"v{number}.csv").read_bytes())
    case.store = f"s3://{s3_bucket}/store"
    ran = case.run(csvs=f"s3://{s3_bucket}/features/")
    assert (ran.code, *counts(ran, "videos", "ok")) == (0, 3, 3), ran.told
    assert read_index(Folder(case.store))["uri"].to_pylist()[0] == f"s3://{s3_bucket}/features/train/v0.csv"
    assert counts(case.run(csvs=f"s3://{s3_bucket}/features"), "ok", "skipped") == (0, 3)
