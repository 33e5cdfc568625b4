"""What `tune` and `ablate` share on the driver: many trainings of `train` on Ray Tune, a book of them, and MLflow.

The book in `OUT/_trials/` is the truth, not Tune's own files: what has ended there is never trained again, and what
has begun goes on from its own state, whether its process, its node, or the driver was lost.
"""

from __future__ import annotations

import logging
import os
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from cluster.capacity import Node, Workers, told_nodes, trials_at_once
from cluster.lock import STORE_ERRORS
from cluster.session import Stop
from cluster.training import first_line
from jobs.outcome import InputError, JobFailedError, Outcome, input_errors
from jobs.progress import SweepProgress, say
from jobs.reaction_run import ReactionRun
from jobs.search_space import with_settings
from jobs.sweep_book import Book, TrialRecord
from jobs.sweep_search import METRIC, MODE
from jobs.sweep_tracking import SweepTracking
from jobs.sweep_trial import NESTED_FOLDER, FinishedTrial, Trial, TrialActor, finish_trial

FLUSH_S = 90.0
"""How long the end of a sweep waits for an MLflow server that does not answer."""
TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # csv, JSON and TensorBoard files that nobody asked for
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals are `Stop`'s
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


class SweepRun(ReactionRun):
    """One sweep; a job's own class plans the trials and makes something of them."""

    worker_cpus = 1.0  # so that several trials run side by side

    def __init__(self, options: Any):
        super().__init__(options)
        self.book = Book(self.folder)
        self.tracking: SweepTracking | None = None
        self.trial_workers = Workers(count=1, cpus=1.0)
        self.stop: Stop | None = None

    @abstractmethod
    def plan_trials(self) -> None:
        """Write the trials that are known beforehand into the book."""

    @abstractmethod
    def check_plan(self) -> None:
        """Raises InputError for what cannot be tried, before anything is read or written."""

    @abstractmethod
    def searcher(self, at_once: int) -> Searcher:
        """What hands out the trials that are left."""

    @abstractmethod
    def expected_trials(self) -> int:
        """How many there will be in all."""

    @abstractmethod
    def conclude(self) -> Outcome:
        """Make something of the trials, all of which have ended."""

    def scheduler(self) -> TrialScheduler | None:
        """What stops trials early."""
        return None

    def run(self) -> Outcome:
        """As a training's, after a look at the plan."""
        self.check_plan()
        return super().run()

    def prepare(self) -> pa.Table:
        """Also refuses labels by which no trial could be ranked."""
        samples = super().prepare()
        if not self.record["data"]["videos"]["val"]:
            raise InputError("--labels has no labelled video of the split val: trials are ranked by them")
        if self.record["data"]["with_sequence"]["val"] == 0:
            raise InputError("--store: no video of the split val shows a face: trials are ranked by them")
        return samples

    def plan(self) -> None:
        """Read the book, and write the trials that are known beforehand into it."""
        with input_errors(*STORE_ERRORS, ValueError, option="--out"):
            self.book.read()
            self.plan_trials()

    def train_on(self, nodes: list[Node], stop: Stop) -> Outcome:
        """Train what is left, and conclude."""
        self.trial_workers = self.workers(nodes)
        at_once = self._at_once(nodes)
        self.stop = stop
        stop.soft = True
        self.start_tracking(len(nodes))
        self._start_trial_tracking()
        say(f"{at_once} trials at once, each {self.trial_workers.told()}, on {told_nodes(nodes)}")
        if not stop.signal:
            self._train_trials(at_once, stop)
        with suppress(*STORE_ERRORS):  # nobody needs it, nor what killed drivers have left there
            self.folder.child(NESTED_FOLDER).remove()
        if stop.signal:
            self._close_tracking()
            return self.interrupted(stop)
        failed = [each for each in self.book.ordered() if each.state == "failed"]
        if len(failed) == len(self.book.trials):
            self._close_tracking()
            self.write_record("failed")
            self.track(lambda tracker: tracker.finish("FAILED"))
            raise JobFailedError(f"every trial failed, the first one with: {failed[0].error}")
        return self.conclude()

    # --- places ---

    def _at_once(self, nodes: Sequence[Node]) -> int:
        most = trials_at_once(nodes, self.trial_workers)
        asked = self.options.max_concurrent
        if asked is not None and asked > most:
            raise InputError(
                f"--max-concurrent {asked}: {most} trials of {self.trial_workers.told()} find room "
                f"({told_nodes(nodes)}): lower it, --worker-cpus or --worker-gpus"
            )
        return asked or most

    # --- trials ---

    def trial_of(self, record: TrialRecord) -> Trial:
        """What the trial's process is told. Raises ValueError where its settings do not go together."""
        options = with_settings(self.options, record.settings)
        return Trial(
            number=record.number,
            training=self.worker_config(options, self.trial_workers),
            workers=self.trial_workers,
            max_failures=self.where.max_failures,
        )

    def config_of(self, record: TrialRecord) -> dict[str, Any]:
        """What Ray Tune hands on."""
        return {"trial": self.trial_of(record)}

    def new_trial(self, settings: dict[str, Any], name: str = "") -> TrialRecord:
        """A trial of its own, in the book."""
        record = TrialRecord(number=self.book.next_number(), settings=settings, name=name)
        self.book.write(record)
        return record

    def left(self) -> list[TrialRecord]:
        """Trials in the book that have not come to their end."""
        ended = {each.number for each in self.book.ended()}
        return [each for each in self.book.ordered() if each.number not in ended]

    def _train_trials(self, at_once: int, stop: Stop) -> None:
        searcher = self.searcher(at_once)
        for name, value in TUNE_SETTINGS.items():
            os.environ.setdefault(name, value)
        workers = self.trial_workers
        if workers.count == 1:
            takes: dict[str, float] = {"cpu": workers.cpus, "gpu": workers.gpus}
        else:  # Ray Train asks for the workers' own; a trial's process only waits for them
            takes = {"cpu": 0, "memory": 1}
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what matters reaches `_ToBook`
        filesystem, path = self.folder.child(NESTED_FOLDER).filesystem()
        tuner = tune.Tuner(
            tune.with_resources(TrialActor, {key: value for key, value in takes.items() if value}),
            tune_config=tune.TuneConfig(
                metric=METRIC,
                mode=MODE,
                search_alg=searcher,
                scheduler=self.scheduler(),
                num_samples=-1,
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                # Where every node sees it, though nothing in it is ever read again.
                name=f"sweep-{uuid.uuid4().hex[:8]}",
                storage_path=path,
                storage_filesystem=None if self.folder.is_local else filesystem,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=self.where.max_failures),
                stop=_OnSignal(stop),
                callbacks=[_ToBook(self)],
            ),
        )
        tuner.fit()

    # --- tracking ---

    def _start_trial_tracking(self) -> None:
        if self.tracker is None:
            return
        total = self.trial_workers
        self.tracking = SweepTracking(
            self.tracker,
            experiment=self.where.experiment or self.job,
            sweep=self.record["run_id"],
            cpus=total.count * total.cpus,
            gpus=total.count * total.gpus,
            resumed=self.options.resume,
            on_run=self._note_run,
        )
        for record in self.book.ended():  # what an earlier driver may not have got through
            self.tracking.put(record)

    def _note_run(self, number: int, run_id: str) -> None:
        record = self.book.trials[number]
        if record.mlflow_run_id != run_id:
            record.mlflow_run_id = run_id
            self.book.write(record)

    def _close_tracking(self) -> list[int]:
        """The numbers of trials that MLflow does not know all of; told, too."""
        missing = self.tracking.close(FLUSH_S) if self.tracking else []
        if missing:
            say(f"MLflow lacks something of the trials {', '.join(map(str, missing))}: it did not answer in time")
        return missing

    # --- ends ---

    def finish_trials(self, records: Sequence[TrialRecord], *, floors: bool) -> dict[int, FinishedTrial]:
        """The models and scores of trials, made side by side on the cluster."""
        task = ray.remote(num_cpus=self.trial_workers.cpus)(cast(Any, finish_trial))
        waiting = {task.remote(self.trial_of(record), floors=floors): record.number for record in records}
        finished = {}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            number = waiting.pop(ready[0])
            try:
                finished[number] = ray.get(ready[0])
            except ray.exceptions.RayError as error:
                raise JobFailedError(f"trial {number} could not be scored: {first_line(error)}") from error
        return finished


def _name(trial: Any) -> str:
    return f"{trial.config['trial'].number:04d}"


class _OnSignal(Stopper):
    """Ends Tune's loop when a signal has come."""

    def __init__(self, stop: Stop) -> None:
        self.stop = stop

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Asked before each step of the loop."""
        return self.stop.signal is not None

    def __getstate__(self) -> dict[str, Any]:
        return {"stop": SimpleNamespace(signal=None)}


class _ToBook(tune.Callback):
    """What Tune tells of its trials goes to the book, to MLflow and to the person who watches."""

    def __init__(self, run: SweepRun) -> None:
        self.run = run
        self.progress = SweepProgress(run.expected_trials())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        if record.state != "running":
            record.state, record.error = "running", None
            self._put(record)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._record(trial)
        keys = ("epoch", "score", "val_mean_pearson", "loss_total", "steps", "seconds", "busy_s", "finished")
        if record.add({key: result[key] for key in keys if key in result}) and self.run.tracking:
            self.run.tracking.put(record)
        self.run.check_lock()
        self.progress.tell(self.run.book)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        if record.history and record.history[-1]["finished"]:
            record.state = "done"
        elif self.run.stop is not None and self.run.stop.signal:
            return  # it goes on another time
        else:
            record.state = "stopped"
        self._put(record)
        self.progress.tell(self.run.book)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        record = self._record(trial)
        record.state, record.error = "failed", _error_of(trial)
        say(f"trial {record.number} failed: {record.error}")
        self._put(record)

    def _record(self, trial: Any) -> TrialRecord:
        return self.run.book.trials[trial.config["trial"].number]

    def _put(self, record: TrialRecord) -> None:
        with input_errors(*STORE_ERRORS, option="--out"):
            self.run.book.write(record)
        if self.run.tracking:
            self.run.tracking.put(record)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _error_of(trial: Any) -> str:
    """What Tune has just put down of the failure, on this machine and in this process."""
    try:
        error = ray.cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except (OSError, AttributeError, ImportError) as unread:
        return f"unknown: Ray Tune kept no readable error ({unread})"
    return first_line(error)
