"""One run of `train-mma` on the driver: labels, crops, the list of samples, the training, and what it leaves behind.

`_samples.parquet` and `_start.safetensors` say what the training starts from (`jobs.training_run` for the rest).
"""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.capacity import Workers, told_nodes
from cluster.lock import STORE_ERRORS
from cluster.session import SessionError, Stop, ray_session, stop_signals
from cluster.storage import Folder
from jobs.card_facts import CARD_FILE, mma_card, people_by_split
from jobs.cropping import ensure_crops
from jobs.detector import face_settings
from jobs.label_sets import NamedSet, mix_shares, read_sets, sample_table, told_samples
from jobs.mma_training import SCORES_FILE, START_FILE, WorkerConfig, train_worker
from jobs.models import MODEL_FILE, read_prior, start_network
from jobs.outcome import DONE, InputError, Outcome, input_errors
from jobs.progress import EpochProgress, say
from jobs.train_mma import Options
from jobs.training_picture import draw_training
from jobs.training_run import TrainingRun, read_samples
from mma.checkpoint import dump_mma
from mma.crops import OUTCOMES, WITH_FACE, outcomes
from mma.network import MMANetwork

METRICS_FILE, PICTURE_FILE = "metrics.json", "training.png"


class MMARun(TrainingRun):
    """One run; `run` is the whole of it."""

    job = "train-mma"
    model_file = MODEL_FILE
    free = TrainingRun.free | {"scratch_bytes", "max_missing_fraction"}

    def __init__(self, options: Options):
        super().__init__(options)
        with input_errors():
            self.crops = Folder(options.crops) if options.crops else self.folder.child("crops")
        self.faces = face_settings(options)

    def run(self) -> Outcome:
        """Settle what run this is, prepare, train, and put the result down."""
        where = self.where
        with stop_signals() as stop, ExitStack() as held:
            if (done := self.settle_run()) is not None:
                return done
            prepared = self.record.get("prepared")
            sets = None if prepared else self._read_labels()
            network = None if prepared else self._start_network()
            self.take_lock(held)
            session = partial(ray_session, where.address, num_cpus=where.num_cpus, stop=stop)
            with input_errors(SessionError):
                nodes = held.enter_context(session())
            workers = self.workers(nodes)
            stop.soft = True  # from here on a signal leaves a run that says how it ended
            if sets is not None and network is not None and not self._prepare(sets, network, session, stop):
                return self.interrupted(stop)
            self.start_tracking(len(nodes))
            say(f"{workers.told()}, on {told_nodes(nodes)}")
            files = None if stop.signal else self._train(workers, stop)
            return self.interrupted(stop) if files is None else self._finish(files)

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
            scratch=self.where.scratch,
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
        data = {
            "sets": [{**_of_set(each), "crops": asdict(report.sets[each.name])} for each in sets],
            "samples": counts,
            "crops": _shares(outcome),
            "detector": self.faces.spec,
        }
        with input_errors(*STORE_ERRORS, option="--out"):
            self.folder.write(START_FILE, dump_mma(network, {}))
        self.write_samples(samples, prepared=data)
        return True

    def _check_mix(self, samples: pa.Table) -> None:
        train = samples.filter(pc.equal(samples["split"], "train"))
        empty = set(self.record["mix"] or {}) - set(pc.unique(train["set"]).to_pylist())
        if empty:
            raise InputError(f"--mix names {', '.join(sorted(empty))}, which has no training sample")

    # --- the training ---

    def _train(self, workers: Workers, stop: Stop) -> dict[str, bytes] | None:
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
            scratch=self.where.scratch,
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
        return self.train(train_worker, config, workers, stop, progress.tell)

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
        written = json.dumps(scores, indent=1).encode()
        left = {METRICS_FILE: written, PICTURE_FILE: draw_training(scores), MODEL_FILE: files[MODEL_FILE]}
        with input_errors(*STORE_ERRORS, option="--out"):
            samples = read_samples(self.folder).select(["set", "split", "subject"])
        card = mma_card(self.record, scores, files[MODEL_FILE], people_by_split(samples)).encode()
        self.leave({**left, CARD_FILE: card}, summary)
        numbers = {f"{scores['split']}_{name}": value for name, value in metrics.items()}
        self.log_result(numbers, {MODEL_FILE: files[MODEL_FILE], METRICS_FILE: written, CARD_FILE: card})
        if metrics:
            say(f"{scores['split']}: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))
        return Outcome(summary=summary, exit_code=DONE)


def _of_set(named: NamedSet) -> dict[str, Any]:
    return {"name": named.name, "format": named.format, "uri": named.uri, "left_out": dict(named.notes)}


def _shares(outcome: np.ndarray) -> dict[str, float]:
    """How the samples' crops came about, as shares: the `crop=given` of the checkpoint's record among them."""
    with_face = outcome[(outcome >= 0) & (outcome < WITH_FACE)]
    counts = np.bincount(with_face, minlength=WITH_FACE) / max(len(with_face), 1)
    return {OUTCOMES[k]: round(float(counts[k]), 4) for k in range(WITH_FACE)}
