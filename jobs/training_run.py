"""What the two training jobs share on the driver: whose folder it is, its record, lock, tracking, and the training.

`OUT/_run.json` says what was asked and how far it came; `OUT/_train/` holds Ray Train's checkpoints. A resumed run
takes what it prepared as it is.
"""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.capacity import CapacityError, Node, Workers, plan_workers
from cluster.lock import STORE_ERRORS, StoreLock
from cluster.session import LOCAL, Stop, live_nodes, local_node, target_address
from cluster.storage import Folder
from cluster.tracking import Tracker, TrackingError, refuse_local_store, start_run
from cluster.training import TrainingError, run_training
from cluster.uri import display
from jobs.models import RUN_FILE
from jobs.outcome import InputError, JobFailedError, Outcome, input_errors
from jobs.progress import say
from jobs.run_options import RunOptions
from mma.store.schema import spec_differences
from mma.store.writer import new_run_id, parquet_bytes

TRAIN_FOLDER, SAMPLES_FILE = "_train", "_samples.parquet"


def read_samples(out: Folder) -> pa.Table:
    """The rows that a run learns from and is scored on, as its `write_samples` put them down."""
    return pq.read_table(io.BytesIO(out.read(SAMPLES_FILE)))


class TrainingRun:
    """One run of a training job; a job's own class prepares, trains and finishes with these."""

    job: ClassVar[str]
    """Its name on the command line."""
    model_file: ClassVar[str]
    """What it leaves in OUT."""
    free: ClassVar[frozenset[str]] = frozenset({"out", "resume", "run"})
    """Options that may differ between a run and its resumption: they change no number."""
    worker_cpus: ClassVar[float | None] = None
    """CPUs of a worker where nobody says; None: the most with which all have room."""

    def __init__(self, options: Any):
        """`options`: a dataclass with `out`, `resume` and `run`."""
        self.options = options
        self.where: RunOptions = options.run
        self.started_s = time.monotonic()
        with input_errors():
            self.folder = Folder(options.out)
        self.asked = json.loads(json.dumps(asdict(options), default=str))
        self.record: dict[str, Any] = {}
        self.found: bytes | None = None
        """Content of OUT's record when this run looked first."""
        self.lock: StoreLock | None = None
        self.tracker: Tracker | None = None

    # --- what run this is ---

    def settle_run(self) -> Outcome | None:
        """Take the record of OUT's run to resume, or begin a new one; the outcome of a run that is done already."""
        with input_errors(*STORE_ERRORS, option="--out"):
            self._settle_record()
        if self.record["state"] == "done":
            say(f"{self.folder.display} is done: nothing to resume")
            return Outcome(summary=self.record["summary"])
        if target_address(self.where.address) == LOCAL:  # an impossible request fails before anything is read
            self.workers([local_node(self.where.num_cpus)])
        return None

    def _settle_record(self) -> None:
        there = self.folder.exists(RUN_FILE)
        if there and not self.options.resume:
            raise InputError(
                f"--out {self.folder.display} holds a run already: --resume goes on with it, or name another folder"
            )
        if not there:
            if self.options.resume:
                raise InputError(f"--resume: {self.folder.display} holds no run; leave --resume out to start one")
            if self.folder.exists(self.model_file):
                raise InputError(f"--out {self.folder.display} holds a model already: name another folder")
            run_id = new_run_id()
            self.record = {"run_id": run_id, "job": self.job, "state": "new", "options": self.asked}
            return
        self.found = self.folder.read(RUN_FILE)
        self.record = json.loads(self.found)
        if (job := self.record.get("job", self.job)) != self.job:
            raise InputError(f"--out {self.folder.display} holds a run of {job}: name another folder")
        now, then = (
            {key: value for key, value in each.items() if key not in self.free}
            for each in (self.asked, self.record["options"])
        )
        if differences := spec_differences(now, then):
            raise InputError(f"--resume: the run was started with other options (now / then): {'; '.join(differences)}")

    def take_lock(self, held: ExitStack) -> None:
        """Be the one run of OUT, which is still as it was when this run looked."""
        with input_errors(*STORE_ERRORS, option="--out"):
            self.folder.check_writable()
            self.lock = StoreLock(self.folder, f"{self.job} on {socket.gethostname()}", on_wait=say)
            held.enter_context(self.lock)
            if (self.folder.read(RUN_FILE) if self.folder.exists(RUN_FILE) else None) != self.found:
                raise InputError(f"--out {self.folder.display}: another run has written there meanwhile; start again")

    def check_lock(self) -> None:
        """Raises JobFailedError where another run has taken the folder over."""
        if self.lock is not None and self.lock.lost:
            raise JobFailedError(
                f"the lock of {self.folder.display} is lost: another run has taken it over while this one stood still"
            )

    def write_record(self, state: str, **more: Any) -> None:
        """Note how far the run has come."""
        self.check_lock()
        self.record |= {"state": state, **more}
        with input_errors(*STORE_ERRORS, option="--out"):
            self.folder.write(RUN_FILE, json.dumps(self.record, indent=1, default=str).encode())

    def write_samples(self, samples: pa.Table, **prepared: Any) -> None:
        """Put down what the run learns from; from here on a resumption takes it as it is."""
        with input_errors(*STORE_ERRORS, option="--out"):
            self.folder.write(SAMPLES_FILE, parquet_bytes(samples))
        self.write_record("running", **prepared)

    def workers(self, nodes: list[Node]) -> Workers:
        """The training workers on these nodes."""
        where = self.where
        with input_errors(CapacityError):
            return plan_workers(
                nodes,
                count=int(where.num_workers),
                least=where.num_workers.least,
                cpus=where.worker_cpus or self.worker_cpus,
                gpus=where.worker_gpus,
            )

    # --- the training ---

    def start_tracking(self, num_nodes: int) -> None:
        """Open the run's MLflow run, or go on with it."""
        if not self.where.tracking:
            return
        experiment = self.where.experiment or self.job
        params = {key: display(str(value)) for key, value in flat(self.asked).items()}
        tags = {"mma_mrnnet.run_id": self.record["run_id"], "mma_mrnnet.out": self.folder.display}
        with input_errors(TrackingError, option="MLFLOW_TRACKING_URI"):
            refuse_local_store(None, num_nodes)
            self.tracker = start_run(
                experiment=experiment,
                run_name=self.record["run_id"],
                params=params,
                tags=tags,
                run_id=self.record.get("mlflow_run_id"),
            )
        say(f"MLflow: run {self.tracker.run_id} of experiment {experiment} at {self.tracker.shown_uri}")
        self.write_record("running", mlflow_run_id=self.tracker.run_id)

    def train(
        self,
        worker: Callable[[dict[str, Any]], None],
        config: Any,
        workers: Workers,
        stop: Stop,
        tell: Callable[[list[dict[str, Any]]], None],
    ) -> dict[str, bytes] | None:
        """Run the workers; the files of the last checkpoint, None where a signal came.

        `config` reaches each worker as `config["worker"]`; `tell` gets the history of epochs as it grows.
        """

        crew = workers.count

        def on_entry(entry: dict[str, Any]) -> None:
            nonlocal crew
            self.check_lock()
            if failure := entry.get("failure"):
                say(f"workers are started again from the last checkpoint: {failure}")
                self._tell_lack_of_room(workers)
                return
            if entry["workers"] != crew:
                crew = entry["workers"]
                say(f"on with {crew} worker{'s' if crew > 1 else ''}; the global batch is the same")
            tell(entry["history"])
            self.track(lambda tracker: tracker.log_epochs(_numbers(entry["history"])))

        try:
            return run_training(
                worker,
                {"worker": config, "gpus": workers.gpus},
                workers=workers,
                folder=self.folder.child(TRAIN_FOLDER),
                name=self.job.removeprefix("train-"),
                max_failures=self.where.max_failures,
                on_entry=on_entry,
                stop=stop,
            )
        except TrainingError as error:
            self.write_record("failed")
            self.track(lambda tracker: tracker.finish("FAILED"))
            raise JobFailedError(f"the training failed: {error}. --resume goes on from the last epoch") from error

    def _tell_lack_of_room(self, workers: Workers) -> None:
        """That a training waits for nodes, where those that are left do not hold its workers."""
        least, more = (workers.span[0], "") if workers.span else (workers.count, "; MIN:MAX workers go on with fewer")
        try:
            plan_workers(live_nodes(), count=least, cpus=workers.cpus, gpus=workers.gpus)
        except CapacityError as error:
            say(f"waiting for nodes: {error}{more}")

    def track(self, what: Callable[[Tracker], None]) -> None:
        """Tracking that fails is told, and never costs a training."""
        if self.tracker is not None:
            try:
                what(self.tracker)
            except TrackingError as error:
                say(f"MLflow: {error}")

    # --- what it leaves ---

    def leave(self, files: Mapping[str, bytes], summary: dict[str, Any]) -> None:
        """Put the results into OUT, the model last, and note that the run is done."""
        self.check_lock()
        with input_errors(*STORE_ERRORS, option="--out"):
            for name, content in sorted(files.items(), key=lambda file: file[0] == self.model_file):
                self.folder.write(name, content)
        self.write_record("done", summary=summary)

    def log_result(self, metrics: Mapping[str, float], artifacts: Mapping[str, bytes]) -> None:
        """Scores and files to MLflow, whose run is then finished."""

        def log(tracker: Tracker) -> None:
            tracker.log_metrics(metrics)
            tracker.log_files(artifacts)
            tracker.finish("FINISHED")

        self.track(log)

    def interrupted(self, stop: Stop) -> Outcome:
        """How a run ends that a signal stopped."""
        self.write_record("interrupted")
        self.track(lambda tracker: tracker.finish("KILLED"))
        say("stopped; the same command with --resume goes on from the last epoch")
        summary = {
            "job": self.job,
            "run_id": self.record["run_id"],
            "state": "interrupted",
            "out": self.folder.display,
        }
        return Outcome(summary=summary, exit_code=stop.exit_code)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, their names joined by dots."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _numbers(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{key: float(value) for key, value in entry.items() if isinstance(value, (int, float))} for entry in history]
