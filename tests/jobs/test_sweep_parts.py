"""The parts of a sweep without Ray's loop: the book, the schedulers' memory, MLflow's thread, trials in process."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cluster.capacity import CapacityError, Node, Workers, trials_at_once
from cluster.storage import Folder
from cluster.tracking import TrackingError
from jobs import sweep_tracking
from jobs.sweep_book import Book, TrialRecord
from jobs.sweep_search import Adaptive, Planned
from jobs.sweep_tracking import SweepTracking
from jobs.sweep_trial import dump_trial, read_state, state_file
from jobs.tune import Options
from jobs.tune_run import TuneRun
from rnn.training.options import FitOptions


def entry(epoch: int, score: float, finished: bool = False) -> dict:
    return {
        "epoch": epoch,
        "score": score,
        "steps": 10 * epoch,
        "busy_s": float(epoch),
        "seconds": 1.0,
        "finished": finished,
    }


# --- places ---


@pytest.mark.parametrize(
    ("nodes", "workers", "expected"),
    [
        ([2], {"count": 1, "cpus": 1.0}, 2),
        ([2], {"count": 2, "cpus": 1.0}, 1),
        ([2], {"count": 1, "cpus": 0.5}, 4),
        ([4, 4, 1], {"count": 3, "cpus": 2.0}, 1),
        ([4, 4, 4], {"count": 3, "cpus": 2.0}, 2),
        ([(8, 2)], {"count": 1, "cpus": 1.0, "gpus": 0.25}, 8),
        ([(2, 2)], {"count": 1, "cpus": 1.0, "gpus": 0.5}, 2),
        ([(8, 1), 16], {"count": 1, "cpus": 1.0, "gpus": 1.0}, 1),
    ],
)
def test_trials_are_counted_by_node(nodes, workers, expected):
    nodes = [Node(name="n", cpus=n[0], gpus=n[1]) if isinstance(n, tuple) else Node(name="n", cpus=n) for n in nodes]
    assert trials_at_once(nodes, Workers(**workers)) == expected


def test_a_trial_without_a_place_is_refused_with_the_options():
    with pytest.raises(CapacityError, match=r"room for 2 of them .* lower --num-workers, --worker-cpus"):
        trials_at_once([Node(name="n", cpus=2)], Workers(count=3, cpus=1.0))
    with pytest.raises(CapacityError, match="room for 0"):  # by node, not by sum
        trials_at_once([Node(name="a", cpus=1), Node(name="b", cpus=1)], Workers(count=1, cpus=2.0))


# --- the book ---


def test_the_book_gives_back_what_was_written_and_what_running_trials_kept(tmp_path):
    out = Folder(str(tmp_path))
    book = Book(out)
    for number, state in enumerate(("done", "stopped", "failed", "running", "planned")):
        record = TrialRecord(number=number, settings={"network.units": 8}, state=state)
        if state in ("done", "stopped"):
            record.history = [entry(1, 0.1 * (number + 1), True)]
        book.write(record)
    out.write(state_file(3), dump_trial([entry(1, 0.4), entry(2, 0.5)], {0: b"x", 7: b"y"}))
    again = Book(out)
    again.read()
    assert [each.state for each in again.ordered()] == ["done", "stopped", "failed", "running", "planned"]
    assert [each.number for each in again.ended()] == [0, 1]
    assert again.trials[3].epochs == 2
    assert again.best().number == 3
    assert read_state(out, 3).states == {0: b"x", 7: b"y"}
    assert read_state(out, 9).history == []
    assert again.next_number() == 5


def test_a_damaged_file_is_named(tmp_path):
    out = Folder(str(tmp_path))
    Book(out).write(TrialRecord(number=0, settings={}, state="running"))
    (tmp_path / state_file(0)).write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"0000\.zip is damaged"):
        Book(out).read()
    (tmp_path / "_trials/0000.json").write_text("{")
    with pytest.raises(ValueError, match=r"0000\.json is damaged"):
        Book(out).read()


def test_an_epoch_that_is_told_again_counts_once():
    record = TrialRecord(number=0, settings={})
    assert record.add(entry(1, 0.1))
    assert not record.add(entry(1, 0.2))
    assert record.add(entry(2, 0.3))
    assert (record.epochs, record.score, record.steps) == (2, 0.3, 20)


# --- searching and stopping ---


def tune_run(tmp_path, **options) -> TuneRun:
    given = {
        "store": ("s",),
        "labels": "l",
        "out": str(tmp_path / "o"),
        "fit": FitOptions(epochs=27),
        "grace_epochs": 3,
    }
    return TuneRun(Options(**(given | options)))


def decisions(asha, histories: dict[str, list[float]]) -> dict[str, int]:
    """After how many epochs each trial is stopped, trials taking turns by epoch."""
    stopped: dict[str, int] = {}
    trials = {name: SimpleNamespace(trial_id=name) for name in histories}
    for trial in trials.values():
        asha.on_trial_add(None, trial)
    for epoch in range(27):
        for name, scores in histories.items():
            if (
                name not in stopped
                and asha.on_trial_result(None, trials[name], entry(epoch + 1, scores[epoch])) == "STOP"
            ):
                stopped[name] = epoch + 1
    return stopped


def test_after_a_resume_asha_decides_as_if_it_had_never_stopped(tmp_path):
    """Trials that ended before are told to it; another one must be stopped where they would have had it stopped."""
    ended = {f"{k}": [0.5 + 0.01 * k] * 27 for k in range(6)}
    late = {"weak": [0.1] * 27, "strong": [0.9] * 27}
    whole = tune_run(tmp_path).scheduler()
    whole.set_search_properties("score", "max")
    expected = decisions(whole, ended) | decisions(whole, late)
    run = tune_run(tmp_path)
    for k, (name, scores) in enumerate(ended.items()):
        last = expected[name]
        history = [entry(epoch + 1, scores[epoch]) for epoch in range(last)]
        run.book.trials[k] = TrialRecord(
            number=k, settings={}, state="done" if last == 27 else "stopped", history=history
        )
    resumed = run.scheduler()
    assert resumed.set_search_properties("score", "max")  # Tune's own call, which must not be refused
    assert decisions(resumed, late) == {name: expected[name] for name in late}
    assert expected["weak"] == 3
    assert expected["strong"] == 27
    forgetful = tune_run(tmp_path).scheduler()
    forgetful.set_search_properties("score", "max")
    assert decisions(forgetful, {"weak": late["weak"]}) == {"weak": 27}  # what would happen without a memory


def test_the_default_grace_is_a_tenth_of_the_epochs(tmp_path):
    assert tune_run(tmp_path, grace_epochs=None, fit=FitOptions(epochs=40)).grace_epochs() == 4
    assert tune_run(tmp_path, grace_epochs=None, fit=FitOptions(epochs=4)).grace_epochs() == 1
    assert tune_run(tmp_path, scheduler="none").scheduler() is None


def test_planned_trials_come_in_their_order_and_end():
    records = [TrialRecord(number=k, settings={}) for k in range(3)]
    planned = Planned(records, lambda record: {"number": record.number})
    assert [planned.suggest(str(k)) for k in range(4)] == [{"number": 0}, {"number": 1}, {"number": 2}, "FINISHED"]


def quadratic(settings) -> float:
    return 1 - abs(np.log10(settings["fit.learning_rate"]) + 2) / 3 - (0.2 if settings["network.cell"] == "lstm" else 0)


def adaptive(tmp_path, records: dict[int, TrialRecord], count: int = 40) -> Adaptive:
    path = tmp_path / "space.yaml"
    path.write_text("fit.learning_rate: {log-uniform: [1.0e-5, 1.0e-1]}\nnetwork.cell: [gru, lstm]\n")
    from jobs.search_space import read_space

    def new(settings):
        records[len(records)] = record = TrialRecord(number=len(records), settings=settings)
        return record

    return Adaptive(
        read_space(str(path)),
        count=count,
        seed=0,
        known=[each for each in records.values() if each.state == "done"],
        begun=[each for each in records.values() if each.state == "running"],
        new=new,
        config=lambda record: {"number": record.number},
    )


def run_adaptive(search: Adaptive, records: dict[int, TrialRecord], most: int) -> None:
    for k in range(most):
        config = search.suggest(f"t{k}")
        if config == "FINISHED":
            return
        record = records[config["number"]]
        record.state, record.history = "done", [entry(1, quadratic(record.settings), True)]
        search.on_trial_complete(f"t{k}", {"score": record.score})


def test_optuna_learns_also_from_the_trials_of_an_earlier_driver(tmp_path):
    records: dict[int, TrialRecord] = {}
    run_adaptive(adaptive(tmp_path, records), records, 25)
    assert len(records) == 25
    records[25] = TrialRecord(number=25, settings={"fit.learning_rate": 1e-4, "network.cell": "lstm"}, state="running")
    resumed = adaptive(tmp_path, records)
    assert len(resumed.study.trials) == 25
    assert resumed.suggest("first") == {"number": 25}  # what had begun comes first, and is no new one
    resumed.on_trial_complete("first", {"score": quadratic(records[25].settings)})
    records[25].state, records[25].history = "done", [entry(1, 0.0, True)]
    run_adaptive(resumed, records, 100)
    assert len(records) == 40
    later = [abs(np.log10(records[k].settings["fit.learning_rate"]) + 2) for k in range(26, 40)]
    early = [abs(np.log10(records[k].settings["fit.learning_rate"]) + 2) for k in range(10)]
    assert np.mean(later) < 0.6 * np.mean(early)


def test_optuna_is_told_of_failures(tmp_path):
    records: dict[int, TrialRecord] = {}
    search = adaptive(tmp_path, records)
    search.suggest("a")
    search.on_trial_complete("a", None, error=True)
    assert [each.state.name for each in search.study.trials] == ["FAIL"]


# --- MLflow's thread ---


class Server:
    """Stands for MLflow: keeps what arrives, and can be away."""

    def __init__(self) -> None:
        self.away, self.runs, self.asked = False, {}, 0

    def start_run(self, *, run_name, run_id, tags, **_):
        self._answer()
        run_id = run_id or f"run-{len(self.runs)}"
        self.runs.setdefault(run_id, {"epochs": {}, "status": "RUNNING", "tags": dict(tags), "name": run_name})
        return SimpleNamespace(
            run_id=run_id,
            log_epochs=lambda history: self._log(run_id, history),
            log_metrics=lambda metrics: self.runs[run_id].update(metrics=metrics),
            set_tags=lambda tags: self.runs[run_id]["tags"].update(tags),
            finish=lambda status: self.runs[run_id].update(status=status),
        )

    def find_run(self, experiment, tags, **_):
        self._answer()
        return next((name for name, run in self.runs.items() if tags.items() <= run["tags"].items()), None)

    def _log(self, run_id, history):
        self._answer()
        self.runs[run_id]["epochs"] |= {each["epoch"]: each["score"] for each in history}

    def _answer(self):
        self.asked += 1
        if self.away:
            raise TrackingError("MLflow at http://x: no answer")


@pytest.fixture
def server(monkeypatch) -> Server:
    made = Server()
    monkeypatch.setattr(sweep_tracking, "start_run", made.start_run)
    monkeypatch.setattr(sweep_tracking, "find_run", made.find_run)
    monkeypatch.setattr(sweep_tracking, "RETRY_S", 0.05)
    monkeypatch.setattr(sweep_tracking, "EVERY_S", 0.05)
    return made


def tracking(resumed: bool = False) -> SweepTracking:
    parent = SimpleNamespace(run_id="parent", tracking_uri="http://x")
    return SweepTracking(
        parent, experiment="tune", sweep="s1", cpus=2.0, gpus=0.0, resumed=resumed, on_run=lambda number, run_id: None
    )


def test_a_server_that_was_away_gets_everything_when_it_answers(server):
    followed, record = tracking(), TrialRecord(number=0, settings={}, state="running")
    server.away = True
    started_s = time.monotonic()
    for epoch in range(1, 6):
        record.add(entry(epoch, epoch / 10))
        followed.put(record)
    record.state = "failed"
    record.error = "boom"
    followed.put(record)
    assert time.monotonic() - started_s < 1  # nobody waited
    until = time.monotonic() + 10
    while server.asked < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert server.runs == {}
    server.away = False
    assert followed.close(10) == []
    (run,) = server.runs.values()
    assert run["epochs"] == {k: k / 10 for k in range(1, 6)}
    assert (run["status"], run["tags"]["error"]) == ("FAILED", "boom")
    assert run["tags"]["mlflow.parentRunId"] == "parent"
    assert (run["metrics"]["duration_s"], run["metrics"]["cpu_s"]) == (5.0, 10.0)


def test_what_did_not_arrive_is_reported(server):
    followed = tracking()
    server.away = True
    followed.put(TrialRecord(number=3, settings={}, state="done", history=[entry(1, 0.5, True)]))
    assert followed.close(0.5) == [3]
    server.away = False
    assert followed.close(10) == []  # and its thread has ended before another test has a server


def test_a_run_that_a_killed_driver_had_opened_is_found_again(server):
    first = tracking()
    first.put(TrialRecord(number=1, settings={}, state="running", history=[entry(1, 0.5)]))
    assert first.close(10) == []
    second = tracking(resumed=True)  # its book lacks the run's id
    second.put(TrialRecord(number=1, settings={}, state="done", history=[entry(1, 0.5), entry(2, 0.6, True)]))
    assert second.close(10) == []
    assert len(server.runs) == 1
    assert server.runs["run-0"]["status"] == "FINISHED"


def test_the_folder_is_not_made_by_looking(tmp_path: Path):
    Book(Folder(str(tmp_path / "none"))).read()
    assert not (tmp_path / "none").exists()
