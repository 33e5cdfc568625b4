"""One run of `train-mma` on the driver: labels, crops, the list of samples, the training, and what it leaves behind.

`OUT/_run.json` says what was asked and how far it came, `_samples.parquet` and `_start.safetensors` what the training
starts from, `_train/` holds Ray Train's checkpoints. A resumed run takes all of these as they are.
"""

from __future__ import annotations

import io
import json
import secrets
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.capacity import CapacityError, Node, plan_workers, told_nodes
from cluster.lock import LockHeld, StoreLock
from cluster.session import LOCAL, SessionError, Stop, local_node, ray_session, stop_signals, target_address
from cluster.storage import Folder
from cluster.tracking import Tracker, TrackingError, refuse_local_store, start_run
from cluster.training import TrainingError, run_training
from cluster.uri import StorageError, display
from jobs.cropping import ensure_crops
from jobs.detector import face_settings
from jobs.label_sets import NamedSet, mix_shares, read_sets, sample_table, told_samples
from jobs.mma_training import SAMPLES_FILE, SCORES_FILE, START_FILE, WorkerConfig, train_worker
from jobs.models import MODEL_FILE, RUN_FILE, read_prior, start_network
from jobs.outcome import DONE, InputError, JobFailedError, Outcome, input_errors
from jobs.progress import EpochProgress, say
from jobs.train_mma import Options
from jobs.training_picture import draw_training
from mma.checkpoint import dump_mma
from mma.crops import OUTCOMES, WITH_FACE, outcomes
from mma.network import MMANetwork
from mma.store.schema import spec_differences

METRICS_FILE, PICTURE_FILE = "metrics.json", "training.png"
TRAIN_FOLDER, TRAIN_NAME = "_train", "mma"
STORE_ERRORS = (ValueError, OSError, StorageError, LockHeld)

WHERE_IT_RUNS = frozenset(
    "out resume workers worker_cpus worker_gpus max_failures tracking experiment address num_cpus scratch "
    "scratch_bytes max_missing_fraction".split()
)
"""Options that may differ between a run and its resumption: they change no number."""


class MMARun:
    """One run; `run` is the whole of it."""

    def __init__(self, options: Options):
        self.options = options
        self.started_s = time.monotonic()
        with input_errors():
            self.folder = Folder(options.out)
            self.crops = Folder(options.crops) if options.crops else self.folder.child("crops")
        self.faces = face_settings(options)
        self.asked = json.loads(json.dumps(asdict(options), default=str))
        self.record: dict[str, Any] = {}
        self.found: bytes | None = None
        """Content of OUT's record when this run looked first."""
        self.lock: StoreLock | None = None
        self.tracker: Tracker | None = None

    def run(self) -> Outcome:
        """Settle what run this is, prepare, train, and put the result down."""
        options = self.options
        with stop_signals() as stop, ExitStack() as held:
            with input_errors(*STORE_ERRORS, option="--out"):
                self._settle_run()
                if self.record["state"] == "done":
                    say(f"{self.folder.display} is done: nothing to resume")
                    return Outcome(summary=self.record["summary"])
            if target_address(options.address) == LOCAL:  # an impossible request fails before anything is read
                self._workers([local_node(options.num_cpus)])
            prepared = self.record.get("prepared")
            sets = None if prepared else self._read_labels()
            network = None if prepared else self._start_network()
            with input_errors(*STORE_ERRORS, option="--out"):
                self._take_lock(held)
            session = partial(ray_session, options.address, num_cpus=options.num_cpus, stop=stop)
            with input_errors(SessionError):
                nodes = held.enter_context(session())
            workers = self._workers(nodes)
            stop.soft = True  # from here on a signal leaves a run that says how it ended
            if sets is not None and network is not None and not self._prepare(sets, network, session, stop):
                return self._interrupted(stop)
            self._start_tracking(len(nodes))
            say(f"{workers.told()}, on {told_nodes(nodes)}")
            files = None if stop.signal else self._train(workers, stop)
            if files is None:
                return self._interrupted(stop)
            return self._finish(files)

    # --- what run this is ---

    def _settle_run(self) -> None:
        """Take the record of OUT's run to resume, or begin a new one; a run is never mixed with another."""
        there = self.folder.exists(RUN_FILE)
        if there and not self.options.resume:
            raise InputError(
                f"--out {self.folder.display} holds a run already: --resume goes on with it, or name another folder"
            )
        if not there:
            if self.options.resume:
                raise InputError(f"--resume: {self.folder.display} holds no run; leave --resume out to start one")
            if self.folder.exists(MODEL_FILE):
                raise InputError(f"--out {self.folder.display} holds a model already: name another folder")
            run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
            self.record = {"run_id": run_id, "state": "new", "options": self.asked}
            return
        self.found = self.folder.read(RUN_FILE)
        self.record = json.loads(self.found)
        now, then = (
            {key: value for key, value in each.items() if key not in WHERE_IT_RUNS}
            for each in (self.asked, self.record["options"])
        )
        if differences := spec_differences(now, then):
            raise InputError(f"--resume: the run was started with other options (now / then): {'; '.join(differences)}")

    def _take_lock(self, held: ExitStack) -> None:
        """Be the one run of OUT, which is still as it was when this run looked."""
        self.folder.check_writable()
        self.lock = StoreLock(self.folder, f"train-mma on {socket.gethostname()}", on_wait=say)
        held.enter_context(self.lock)
        if (self.folder.read(RUN_FILE) if self.folder.exists(RUN_FILE) else None) != self.found:
            raise InputError(f"--out {self.folder.display}: another run has written there meanwhile; start again")

    def _check_lock(self) -> None:
        if self.lock is not None and self.lock.lost:
            raise JobFailedError(
                f"the lock of {self.folder.display} is lost: another run has taken it over while this one stood still"
            )

    def _write_record(self, state: str, **more: Any) -> None:
        self._check_lock()
        self.record |= {"state": state, **more}
        with input_errors(*STORE_ERRORS, option="--out"):
            self.folder.write(RUN_FILE, json.dumps(self.record, indent=1, default=str).encode())

    def _workers(self, nodes: list[Node]) -> Any:
        options = self.options
        with input_errors(CapacityError):
            return plan_workers(nodes, count=options.workers, cpus=options.worker_cpus, gpus=options.worker_gpus)

    # --- what it starts from ---

    def _read_labels(self) -> list[NamedSet]:
        options = self.options
        sets = read_sets(
            options.labels,
            val_fraction=options.val_fraction,
            max_missing_fraction=options.max_missing_fraction,
            every=options.every,
        )
        self.record["mix"] = mix_shares(options.mix, [each.name for each in sets])
        return sets

    def _start_network(self) -> MMANetwork:
        network, told = start_network(
            self.options.trunk, self.options.descriptor_set, self.options.init, seed=self.options.training.seed
        )
        self.record["init"] = told
        self.record["prior"] = read_prior(self.options.prior, network.config.descriptors)
        return network

    def _prepare(self, sets: list[NamedSet], network: MMANetwork, session: Any, stop: Stop) -> bool:
        """Cut the faces, and write down the samples and the start; False where a signal came."""
        report = ensure_crops(
            {each.name: each.table for each in sets},
            self.crops,
            self.faces.options,
            self.faces.weights,
            session=session,
            stop=stop,
            scratch=self.options.scratch,
            scratch_bytes=self.options.scratch_bytes,
        )
        if stop.signal:
            return False
        samples = sample_table(sets)
        outcome = outcomes(self.crops, samples)
        samples = samples.filter(pa.array((outcome >= 0) & (outcome < WITH_FACE)))
        # They have cut the faces, and Parquet cannot give back their nulls (DESIGN.md, "The feature store").
        samples = samples.drop_columns(["box", "points"])
        counts = told_samples(samples)
        for split, each in counts.items():
            say(f"{split}: " + ", ".join(f"{number:,} {what.replace('_', ' ')}" for what, number in each.items()))
        if not counts["train"]["samples"]:
            raise InputError("--labels: no training sample has a label and a face; see the counts above")
        self._check_mix(samples)
        buffer = io.BytesIO()
        pq.write_table(samples, buffer, compression="zstd")
        data = {
            "sets": [{**_of_set(each), "crops": asdict(report.sets[each.name])} for each in sets],
            "samples": counts,
            "crops": _shares(outcome),
            "detector": self.faces.spec,
        }
        with input_errors(*STORE_ERRORS, option="--out"):
            self.folder.write(START_FILE, dump_mma(network, {}))
            self.folder.write(SAMPLES_FILE, buffer.getvalue())
        self._write_record("running", prepared=data)
        return True

    def _check_mix(self, samples: pa.Table) -> None:
        train = samples.filter(pc.equal(samples["split"], "train"))
        empty = set(self.record["mix"] or {}) - set(pc.unique(train["set"]).to_pylist())
        if empty:
            raise InputError(f"--mix names {', '.join(sorted(empty))}, which has no training sample")

    # --- the training ---

    def _start_tracking(self, num_nodes: int) -> None:
        if not self.options.tracking:
            return
        params = {key: display(str(value)) for key, value in _flat(self.asked).items()}
        tags = {"mma_mrnnet.run_id": self.record["run_id"], "mma_mrnnet.out": self.folder.display}
        with input_errors(TrackingError, option="MLFLOW_TRACKING_URI"):
            refuse_local_store(None, num_nodes)
            self.tracker = start_run(
                experiment=self.options.experiment,
                run_name=self.record["run_id"],
                params=params,
                tags=tags,
                run_id=self.record.get("mlflow_run_id"),
            )
        say(f"MLflow: run {self.tracker.run_id} of experiment {self.options.experiment} at {self.tracker.shown_uri}")
        self._write_record("running", mlflow_run_id=self.tracker.run_id)

    def _train(self, workers: Any, stop: Stop) -> dict[str, bytes] | None:
        options = self.options
        prepared = self.record["prepared"]
        bfloat16 = options.precision == "bfloat16" or (options.precision == "auto" and workers.gpus > 0)
        config = WorkerConfig(
            out=self.folder,
            crops=self.crops,
            options=options.training,
            shares=self.record["mix"],
            prior=self.record["prior"],
            threads=max(1, int(workers.cpus)),
            bfloat16=bfloat16,
            scratch=options.scratch,
            record={
                **prepared,
                "run_id": self.record["run_id"],
                "init": self.record["init"],
                "prior": self.options.prior or "du2014",
                "training": self.asked["training"],
                "precision": "bfloat16" if bfloat16 else "float32",
            },
        )
        progress = EpochProgress(options.training.epochs)

        def on_entry(entry: dict[str, Any]) -> None:
            self._check_lock()
            if failure := entry.get("failure"):
                say(f"workers are started again from the last checkpoint: {failure}")
                return
            progress.tell(entry["history"])
            self._track(lambda tracker: tracker.log_epochs(_numbers(entry["history"])))

        try:
            return run_training(
                train_worker,
                {"worker": config, "gpus": workers.gpus},
                workers=workers,
                folder=self.folder.child(TRAIN_FOLDER),
                name=TRAIN_NAME,
                max_failures=options.max_failures,
                on_entry=on_entry,
                stop=stop,
            )
        except TrainingError as error:
            self._write_record("failed")
            self._track(lambda tracker: tracker.finish("FAILED"))
            raise JobFailedError(f"the training failed: {error}. --resume goes on from the last epoch") from error

    def _track(self, what: Any) -> None:
        """Tracking that fails is told, and never costs a training."""
        if self.tracker is not None:
            try:
                what(self.tracker)
            except TrackingError as error:
                say(f"MLflow: {error}")

    # --- what it leaves ---

    def _finish(self, files: dict[str, bytes]) -> Outcome:
        scores = json.loads(files[SCORES_FILE])
        prepared = self.record["prepared"]
        metrics = {name: value for name, value in scores.get("scores", {}).items() if isinstance(value, float)}
        summary = {
            "job": "train-mma",
            "run_id": self.record["run_id"],
            "seconds": round(time.monotonic() - self.started_s, 3),
            "out": self.folder.display,
            "model": f"{self.folder.display}/{MODEL_FILE}",
            "epochs": len(scores["history"]),
            "best_epoch": scores["best_epoch"],
            "samples": prepared["samples"],
            "crops": prepared["crops"],
            "split": scores.get("split"),
            "metrics": metrics,
        }
        self._check_lock()
        with input_errors(*STORE_ERRORS, option="--out"):
            self.folder.write(METRICS_FILE, json.dumps(scores, indent=1).encode())
            self.folder.write(PICTURE_FILE, draw_training(scores))
            self.folder.write(MODEL_FILE, files[MODEL_FILE])
        self._write_record("done", summary=summary)
        self._track(lambda tracker: _log_result(tracker, scores, metrics, files[MODEL_FILE]))
        if metrics:
            say(f"{scores['split']}: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        return Outcome(summary=summary, exit_code=DONE)

    def _interrupted(self, stop: Stop) -> Outcome:
        self._write_record("interrupted")
        self._track(lambda tracker: tracker.finish("KILLED"))
        say("stopped; the same command with --resume goes on from the last epoch")
        summary = {
            "job": "train-mma",
            "run_id": self.record["run_id"],
            "state": "interrupted",
            "out": self.folder.display,
        }
        return Outcome(summary=summary, exit_code=stop.exit_code)


def _log_result(tracker: Tracker, scores: dict[str, Any], metrics: dict[str, float], model: bytes) -> None:
    tracker.log_metrics({f"{scores['split']}_{name}": value for name, value in metrics.items()})
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / MODEL_FILE
        path.write_bytes(model)
        tracker.log_artifact(path)
        path = Path(local) / METRICS_FILE
        path.write_text(json.dumps(scores, indent=1))
        tracker.log_artifact(path)
    tracker.finish("FINISHED")


def _of_set(named: NamedSet) -> dict[str, Any]:
    return {"name": named.name, "format": named.format, "uri": named.uri, "left_out": dict(named.notes)}


def _shares(outcome: np.ndarray) -> dict[str, float]:
    """How the samples' crops came about, as shares: the `crop=given` of the checkpoint's record among them."""
    with_face = outcome[(outcome >= 0) & (outcome < WITH_FACE)]
    counts = np.bincount(with_face, minlength=WITH_FACE) / max(len(with_face), 1)
    return {OUTCOMES[k]: round(float(counts[k]), 4) for k in range(WITH_FACE)}


def _numbers(history: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{key: float(value) for key, value in entry.items() if isinstance(value, (int, float))} for entry in history]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
