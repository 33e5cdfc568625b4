"""The driver's side of `extract` without Ray: every way a run can end leaves an exact store and a true summary."""

import itertools
import json
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import made_rows
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs.extraction
from cluster.capacity import Node
from cluster.lock import StoreLock
from cluster.session import Stop
from cluster.storage import Folder
from cluster.uri import StorageError
from jobs.delivery import delivered
from jobs.extract import Options
from jobs.intake import Reachability
from jobs.outcome import InputError, JobFailedError
from jobs.pipeline import UNREACHABLE

VIDEOS = 6


def batch(number: int, status: str = "ok") -> pa.Table:
    """What the pipeline delivers for video `v<number>`."""
    row = made_rows.row(f"v{number}", status="ok" if status == UNREACHABLE else status)
    if status == UNREACHABLE:
        row = row.set_column(row.schema.get_field_index("status"), "status", pa.array([UNREACHABLE]))
        row = row.set_column(row.schema.get_field_index("error_message"), "error_message", pa.array(["SlowDown"]))
    return row.append_column("retries", pa.array([1], pa.int64()))


class Flow:
    """An extraction whose pipeline is a list of rounds, each a generator of batches."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.stop, self.planned = folder, Stop(), []
        self.store = folder / "s"
        (folder / "v").mkdir()
        for number in range(VIDEOS):
            (folder / "v" / f"v{number}.mp4").write_bytes(b"x" * 1000)
        self.rounds: list = []

        @contextmanager
        def session(*_, **__):
            yield [Node(name="n", cpus=2)]

        @contextmanager
        def signals():
            yield self.stop

        def build(todo, *_):
            self.planned.append(todo["video_id"].to_pylist())
            made = self.rounds.pop(0)

            class Dataset:
                def iter_batches(self, **_):
                    return iter(made())

            return Dataset()

        monkeypatch.setattr(jobs.extraction, "ray_session", session)
        monkeypatch.setattr(jobs.extraction, "stop_signals", signals)
        monkeypatch.setattr(jobs.extraction, "build", build)

    def run(self, *rounds, **options):
        self.rounds = list(rounds)
        made = {"videos": str(self.folder / "v"), "store": str(self.store), "mma": "random:0:tiny", "detector": "none"}
        self.extraction = jobs.extraction.Extraction(Options(**{**made, **options}))
        return self.extraction.run()

    def stored(self) -> list[str]:
        found = [row for path in self.store.glob("*.parquet") for row in pq.read_table(path)["video_id"].to_pylist()]
        assert len(found) == len(set(found)), "a video stands twice"
        return sorted(found)

    def state(self) -> str:
        (record,) = (self.store / "_runs").glob("*.json")
        return json.loads(record.read_text())["state"]


@pytest.fixture
def flow(tmp_path, monkeypatch) -> Flow:
    return Flow(tmp_path, monkeypatch)


def some(*numbers: int):
    return lambda: [batch(number) for number in numbers]


def test_what_did_not_arrive_is_planned_again(flow):
    outcome = flow.run(some(0, 1, 2, 3), some(4, 3), some(5))
    assert outcome.exit_code == 0
    assert flow.planned == [[f"v{i}" for i in range(6)], ["v4", "v5"], ["v5"]]
    assert flow.stored() == [f"v{i}" for i in range(6)]
    assert (outcome.summary["repeated_rows"], outcome.summary["retries"]) == (1, 7)


def test_after_three_tries_the_missing_are_counted_and_the_exit_code_is_1(flow):
    outcome = flow.run(some(0), some(1), some())
    assert (outcome.exit_code, outcome.summary["missing"], outcome.summary["ok"]) == (1, 4, 2)
    assert flow.state() == "incomplete"
    assert flow.stored() == ["v0", "v1"]


def test_a_signal_commits_what_is_complete_and_says_what_is_missing(flow):
    def stopped():
        yield from some(0, 1, 2, 3)()
        time.sleep(0.2)
        flow.stop.signal = 15
        yield batch(4)

    outcome = flow.run(stopped)
    assert (outcome.exit_code, outcome.summary["ok"], outcome.summary["missing"]) == (143, 4, 2)
    assert (flow.state(), flow.stored()) == ("interrupted", ["v0", "v1", "v2", "v3"])


def test_nothing_is_written_once_the_lock_is_lost(flow, monkeypatch):
    def robbed():
        yield from some(0, 1)()
        time.sleep(0.2)
        monkeypatch.setattr(StoreLock, "lost", property(lambda self: True))
        yield batch(2)

    outcome = flow.run(robbed)
    assert (outcome.exit_code, outcome.summary["ok"], outcome.summary["missing"]) == (1, 0, 6)
    assert flow.stored() == []
    assert flow.state() == "running", "the record belongs to the store's new holder"


def test_a_file_that_landed_after_the_lock_was_lost_is_taken_back(flow, monkeypatch):
    honest = Folder.write

    def slow_write(self, name, data):
        honest(self, name, data)
        if name.endswith(".parquet"):
            monkeypatch.setattr(StoreLock, "lost", property(lambda self: True))

    monkeypatch.setattr(Folder, "write", slow_write)
    assert flow.run(some(*range(6))).exit_code == 1
    assert flow.stored() == []


def test_any_error_of_the_pipeline_ends_as_a_failed_run_with_its_summary(flow, capfd):
    def broken():
        yield from some(0, 1, 2, 3)()
        raise RuntimeError("a node died\nand more")

    outcome = flow.run(broken)
    assert (outcome.exit_code, outcome.summary["ok"], outcome.summary["missing"]) == (1, 4, 2)
    assert "RuntimeError: a node died" in capfd.readouterr().err
    assert flow.state() == "failed"


def test_a_store_that_refuses_a_commit_fails_in_its_own_words_and_keeps_what_it_has(flow, monkeypatch, capfd):
    honest = Folder.write

    def full(self, name, data):
        if name.endswith(".parquet"):
            raise StorageError("No space left on device", retryable=True)
        return honest(self, name, data)

    monkeypatch.setattr(Folder, "write", full)
    outcome = flow.run(some(*range(6)))
    assert (outcome.exit_code, outcome.summary["ok"], outcome.summary["missing"]) == (1, 0, 6)
    assert "No space left on device" in capfd.readouterr().err
    monkeypatch.setattr(Folder, "write", honest)
    assert flow.run(some(*range(6))).exit_code == 0


def test_storage_that_fails_leaves_no_row_and_its_words(flow, capfd):
    unreachable = [batch(number, UNREACHABLE) for number in range(3, 6)]
    outcome = flow.run(*[lambda: [*some(0, 1, 2)(), *unreachable]] * 3)
    assert (outcome.exit_code, outcome.summary["missing"], outcome.summary["failed"]) == (1, 3, 0)
    assert "SlowDown" in capfd.readouterr().err
    assert flow.stored() == ["v0", "v1", "v2"]


def test_the_rule_for_storage_that_fails():
    def ends_at(errors) -> int | None:
        seen = Reachability()
        for count, error in enumerate(errors, start=1):
            try:
                seen.saw("SlowDown" if error else None)
            except JobFailedError as failed:
                return count if "SlowDown" in str(failed) else None
        return None

    assert ends_at([True] * 50) == 20
    assert ends_at(([True] * 19 + [False]) * 2) is None
    assert ends_at([i % 11 == 0 for i in range(1000)]) is None
    assert ends_at([i % 9 == 0 for i in range(1000)]) in range(200, 210)


def test_an_id_that_stands_for_another_video_is_refused_with_both_named(flow, tmp_path):
    assert flow.run(some(*range(6))).exit_code == 0
    other = tmp_path / "other"
    other.mkdir()
    (other / "v0.mp4").write_bytes(b"another video")
    with pytest.raises(InputError, match=r"'v0'.*other/v0.mp4.*/corpus/v0.mp4.*--video-id"):
        flow.run(videos=str(other))
    assert len(flow.stored()) == 6


def test_a_corpus_that_was_moved_is_not_done_again(flow, capfd):
    assert flow.run(some(*range(6))).exit_code == 0  # the store names /corpus/v0.mp4, 1000 bytes
    outcome = flow.run()
    assert (outcome.summary["skipped"], outcome.summary["changed"]) == (6, 0)
    assert "6 videos stand in the store under another URI" in capfd.readouterr().err


def test_retrying_failed_videos_leaves_those_outside_the_plan(flow):
    failed = [batch(number, "failed") for number in (4, 5)]
    assert flow.run(lambda: [*some(0, 1, 2, 3)(), *failed]).exit_code == 3
    dry = flow.run(retry_failed=True, limit=5, dry_run=True)
    assert dry.summary["to_do"] == 1
    outcome = flow.run(some(4), retry_failed=True, limit=5)
    assert flow.planned[-1] == ["v4"]
    assert outcome.summary["store_videos"] == {"ok": 5, "partial": 0, "no_face": 0, "failed": 1}
    assert flow.stored() == [f"v{i}" for i in range(6)]


def test_an_empty_store_takes_another_spec_and_a_filled_one_does_not(flow):
    assert flow.run(some(), some(), some()).exit_code == 1
    assert flow.run(some(*range(6)), fps=5.0).exit_code == 0
    with pytest.raises(InputError, match=r"sampling.fps"):
        flow.run(fps=7.0)


def test_a_store_keeps_the_precision_it_was_begun_with(flow):
    assert flow.run(some(0), some(), some(), precision="bfloat16").exit_code == 1
    assert flow.run(some(*range(1, 6))).exit_code == 0
    assert json.loads((flow.store / "_spec.json").read_text())["precision"] == "bfloat16"


def test_a_second_signal_ends_the_process_and_a_first_one_too_while_there_is_nothing_to_save():
    stop = Stop()
    with pytest.raises(SystemExit) as ended:
        stop(15, None)
    assert ended.value.code == 143
    stop.soft = True
    stop(2, None)
    assert stop.exit_code == 130
    with pytest.raises(SystemExit):
        stop(2, None)


def test_a_pipeline_thread_that_dies_is_noticed():
    def dying():
        yield batch(0)
        raise SystemExit(15)

    with delivered(dying()) as incoming, pytest.raises(SystemExit):
        list(itertools.islice(incoming, 100))


def test_leaving_early_closes_the_pipeline():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield batch(0)
        finally:
            closed.set()

    with delivered(endless()) as incoming:
        assert next(incoming) is not None
    assert closed.wait(5)
