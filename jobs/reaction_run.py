"""One run of `train` on the driver: stores, labels, the join, the training, and what it leaves behind."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.capacity import Node, Workers, told_nodes
from cluster.scratch import node_folder
from cluster.session import SessionError, Stop, ray_session, stop_signals
from cluster.storage import Folder, read
from cluster.tracking import Tracker
from cluster.uri import StorageError, display
from jobs.card_facts import CARD_FILE, reaction_card
from jobs.models import weights_of_store
from jobs.outcome import DONE, InputError, Outcome, input_errors
from jobs.progress import SeedProgress, say
from jobs.reaction_labels import read_reaction_labels
from jobs.reaction_training import (
    LAST_FILE,
    MODEL_FILE,
    SCORES_FILE,
    WorkerConfig,
    train_worker,
)
from jobs.registry import save_pyfunc
from jobs.train import Options
from jobs.training_run import TrainingRun
from rnn.flat import flat_videos, stores_spec, stores_step
from rnn.join import join
from rnn.labels import ReactionLabels
from rnn.network import NetworkConfig
from rnn.reactions import REACTIONS
from rnn.sequences import chosen_names
from rnn.training.data import (
    SAMPLE_SCHEMA,
    SPLITS,
    kinds_of,
    labels_of,
    person_numbers,
    prepared_splits,
    steps_reached,
    told_reach,
)
from rnn.training.final import summary_numbers
from rnn.training.options import LEAST_BATCH, SMALL_BATCH

METRICS_FILE = "metrics.json"


class ReactionRun(TrainingRun):
    """One run; `run` is the whole of it."""

    job = "train"
    model_file = MODEL_FILE
    free = TrainingRun.free | {"register", "mma", "detector_weights"}

    def __init__(self, options: Options):
        super().__init__(options)
        with input_errors():
            self.stores = tuple(Folder(uri) for uri in options.store)
        self.served: tuple[bytes, bytes | None] | None = None
        """The MMA checkpoint and the detector's file that a registered model takes along."""

    def run(self) -> Outcome:
        """Settle what run this is, prepare, train, and put the result down."""
        where = self.where
        with stop_signals() as stop, ExitStack() as held:
            if (done := self.settle_run()) is not None:
                return done
            if self.options.register is not None:
                self.served = self._read_served()
            if "prepared" not in self.record:
                samples = self.prepare()
            self.take_lock(held)
            if "prepared" not in self.record:
                self.write_samples(samples, prepared=True)
            self.plan()
            with input_errors(SessionError):
                nodes = held.enter_context(ray_session(where.address, num_cpus=where.num_cpus, stop=stop))
            return self.train_on(nodes, stop)

    def plan(self) -> None:
        """What is to be settled while the folder is this run's, before Ray is there."""

    def train_on(self, nodes: list[Node], stop: Stop) -> Outcome:
        """Train on these nodes, and put the result down."""
        workers = self.workers(nodes)
        stop.soft = True  # from here on a signal leaves a run that says how it ended
        self.start_tracking(len(nodes))
        say(f"{workers.told()}, on {told_nodes(nodes)}")
        files = None if stop.signal else self._train(workers, stop)
        return self.interrupted(stop) if files is None else self._finish(files)

    # --- what it starts from ---

    def prepare(self) -> pa.Table:
        """Read stores and labels, join them by id, and look at the lengths; nothing is written yet."""
        options = self.options
        scratch = node_folder(self.where.scratch, "sequences")
        with input_errors(ValueError, StorageError, OSError, option="--store"):
            spec = stores_spec(self.stores)
        with input_errors(ValueError):
            for asked in self.descriptors():
                chosen_names(asked, spec["descriptors"])
        with input_errors(ValueError, StorageError, OSError, option="--store"):
            step_s = options.step_s or stores_step(self.stores)
            grid = flat_videos(self.stores, spec, step_s, scratch)
        labels = read_reaction_labels(options.labels, subjects_uri=options.subjects)
        with input_errors(ValueError, option="--labels"):
            samples, told = joined_samples(labels, grid.video_ids)
        for line in told:
            say(line)
        # Nothing is learnt from training rows without any label; the join has told how many these are.
        known = np.isfinite(labels_of(samples)).any(axis=1)
        samples = samples.filter(pa.array(known | (np.array(samples["split"].to_pylist(), object) != "train")))
        counts = {name: samples.filter(pa.compute.equal(samples["split"], name)).num_rows for name in SPLITS}
        if not counts["train"]:
            raise InputError(f"--labels {display(options.labels)}: no labelled video of the split train has features")
        with input_errors(ValueError):
            splits, normaliser = prepared_splits(grid, samples, options.sequence, scratch)
            for network in self.networks():
                steps = steps_reached(splits, options.steps, network)
                if network.limits_steps():
                    say(told_reach(splits["train"].sequences.lengths, steps))
        trained_on = len(splits["train"].sequences)
        if trained_on < LEAST_BATCH:
            raise InputError(
                f"--labels {display(options.labels)}: {trained_on} videos of the split train have a label and a face: "
                f"a correlation needs {LEAST_BATCH}, and much more to mean something"
            )
        batch = min(options.fit.batch_size, trained_on)
        if batch < SMALL_BATCH:
            say(f"a batch of {batch} videos gives a noisy correlation: have {SMALL_BATCH} or more, better 128")
        kinds = kinds_of(samples)
        self.record["data"] = {
            "spec": spec,
            "step_s": step_s,
            "stores": [store.display for store in self.stores],
            "labels": display(options.labels),
            "layout": labels.layout,
            "videos": counts,
            "with_sequence": {name: len(splits[name].sequences) for name in SPLITS},
            "subjects": {name: _subjects(samples, name) for name in SPLITS},
            "countries": _counts(kinds["country"]),
            "ages": _counts(kinds["age"]),
            "descriptors": list(normaliser.names),
        }
        return samples

    def networks(self) -> list[NetworkConfig]:
        """The shapes that will be trained, for a look at the lengths before the start."""
        return [self.options.network]

    def descriptors(self) -> list[tuple[str, ...]]:
        """What will be asked of the store, for a look before the start."""
        return [self.options.sequence.descriptors]

    def _read_served(self) -> tuple[bytes, bytes | None]:
        """What a registered model takes along, found and fitting before anything is trained."""
        options = self.options
        with input_errors(ValueError, StorageError, OSError, option="--store"):
            spec = stores_spec(self.stores)
        weights = weights_of_store(options.mma, spec, whose="the store")
        if spec["detector"].get("detector") != "yunet":
            return weights.data, None
        if options.detector_weights is None:
            raise InputError("--detector-weights is missing: the store was made with yunet")
        with input_errors(ValueError, StorageError, OSError, option="--detector-weights"):
            return weights.data, read(options.detector_weights)

    # --- the training ---

    def _train(self, workers: Workers, stop: Stop) -> dict[str, bytes] | None:
        config = self.worker_config(self.options, workers)
        progress = SeedProgress(self.options.fit.epochs, self.options.seeds)
        return self.train(train_worker, config, workers, stop, progress.tell)

    def worker_config(self, options: Options, workers: Workers) -> WorkerConfig:
        """What a worker is told of a training under these options."""
        data = self.record["data"]
        return WorkerConfig(
            out=self.folder,
            stores=self.stores,
            spec=data["spec"],
            step_s=options.step_s or data["step_s"],
            most_steps=options.steps,
            seeds=tuple(options.seeds),
            calibrate=options.calibrate,
            network=options.network,
            fit=options.fit,
            sequence=options.sequence,
            threads=max(1, int(workers.cpus)),
            bfloat16=options.precision == "bfloat16",
            scratch=self.where.scratch,
            record={
                "run_id": self.record["run_id"],
                "preset": options.preset,
                "data": {key: value for key, value in data.items() if key != "spec"},
                "fit": json.loads(json.dumps(asdict(options.fit))),
                "precision": options.precision,
            },
        )

    # --- what it leaves ---

    def register(self, model: bytes, alias: str | None = None) -> None:
        """Put the model into MLflow's registry, where that was asked for."""
        if self.served is None:
            return
        with tempfile.TemporaryDirectory(prefix="mma-mrnnet-model-") as local:
            folder = Path(local) / "model"
            save_pyfunc(folder, model, *self.served)

            def put(tracker: Tracker) -> None:
                number = tracker.register(folder, self.options.register, alias=alias)
                say(f"registered: models:/{self.options.register}/{number}")

            self.track(put)

    def _finish(self, files: dict[str, bytes]) -> Outcome:
        scores = json.loads(files[SCORES_FILE])
        splits = scores["splits"]
        split = next((name for name in ("test", "val") if name in splits), None)
        metrics = summary_numbers(splits[split]) if split else {}
        summary = {
            "job": self.job,
            "run_id": self.record["run_id"],
            "seconds": round(time.monotonic() - self.started_s, 3),
            "out": self.folder.display,
            "model": f"{self.folder.display}/{MODEL_FILE}",
            "videos": self.record["data"]["videos"],
            "seeds": scores["seeds"],
            "split": split,
            "metrics": metrics,
        }
        written = json.dumps(scores, indent=1).encode()
        card = reaction_card(self.record, scores, files[MODEL_FILE]).encode()
        left = {MODEL_FILE: files[MODEL_FILE], LAST_FILE: files[LAST_FILE], METRICS_FILE: written, CARD_FILE: card}
        self.leave(left, summary)
        numbers = {f"final_{name}_{key}": value for name, each in splits.items() for key, value in score_numbers(each)}
        self.log_result(numbers, {name: left[name] for name in (MODEL_FILE, METRICS_FILE, CARD_FILE)})
        self.register(files[MODEL_FILE])
        for name, each in splits.items():
            say(told_scores(name, each))
        return Outcome(summary=summary, exit_code=DONE)


def joined_samples(
    labels: ReactionLabels, video_ids: list[str], *, unsplit: bool = False
) -> tuple[pa.Table, list[str]]:
    """The videos of the labels' splits that have features, as rows of `SAMPLE_SCHEMA` in order of their ids, and lines
    for people; `unsplit`: also those of no split.

    Raises ValueError where nothing matches.
    """
    joined = join(labels, video_ids)
    rows = sorted((labels.video_ids[row], row) for row in joined.index if row >= 0 and (unsplit or labels.splits[row]))
    take = np.array([row for _, row in rows], np.int64)
    columns: dict[str, Any] = {
        "video_id": [labels.video_ids[row] for row in take],
        "split": [labels.splits[row] for row in take],
        "subject": [labels.subjects[row] for row in take],
        "country": [labels.countries[row] for row in take],
        "age": labels.ages[take],
        **{name: labels.values[take, column] for column, name in enumerate(REACTIONS)},
    }
    arrays = [pa.array(columns[field.name], field.type) for field in SAMPLE_SCHEMA]
    return pa.Table.from_arrays(arrays, schema=SAMPLE_SCHEMA), [joined.told()]


def told_scores(split: str, scores: dict[str, Any]) -> str:
    """A split's score as a line for people, the floors beside it."""
    low, high, by = (scores["interval"][key] for key in ("low", "high", "by"))
    floors = ", ".join(
        f"{name.replace('_', ' ')} {each['mean_pearson']:.3f}" for name, each in scores["floors"].items()
    )
    seeds = scores["seeds"]
    several = f" (seeds: {seeds['mean']:.3f} ± {seeds['spread']:.3f})" if len(seeds["values"]) > 1 else ""
    return (
        f"{split}: mean Pearson {scores['mean_pearson']:.3f} [{low:.3f}, {high:.3f} by {by}]{several}, over "
        f"{scores['labelled']:,} videos; floors: {floors}"
    )


def score_numbers(scores: dict[str, Any]) -> list[tuple[str, float]]:
    """A split's scores as metrics by name."""
    by_reaction = [(f"pearson_{name}", each["pearson"]) for name, each in scores["by_reaction"].items()]
    return [("mean_pearson", scores["mean_pearson"]), ("mean_ccc", scores["mean_ccc"]), *by_reaction]


def _subjects(samples: pa.Table, split: str) -> int | None:
    people = person_numbers(samples.filter(pa.compute.equal(samples["split"], split)))
    return None if people is None else len(np.unique(people))


def _counts(values: list[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(each for each in values if each is not None).items()))
