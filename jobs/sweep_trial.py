"""One trial of a sweep, in the process that trains it: all seeds of a configuration, epoch by epoch side by side.

After each epoch the state of every seed goes to `OUT/_trials/<number>.zip`, before the score is reported: whatever
happens then, the trial goes on from there, and whatever was reported can be scored later. What a state holds already is
reported again at a restart, so that a scheduler that knows nothing of it decides as if the trial had never stopped.
"""

from __future__ import annotations

import io
import json
import queue
import threading
import time
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from ray import tune

from cluster.capacity import Workers
from cluster.session import Stop
from cluster.storage import Folder
from cluster.training import ABORT_S, TrainingError, report, run_training
from jobs.reaction_training import WorkerConfig, model_of, node_data, node_floors, scored
from mma.allocation import keep_memory
from mma.training.world import World, current_world
from rnn.training.final import TrainedSeed
from rnn.training.loop import predict

TRIALS_FOLDER = "_trials"
NESTED_FOLDER = "_nested"
"""Ray Tune's own, and Ray Train's of trials of several workers; nothing in it is needed after the run."""
HISTORY_FILE = "history.json"
KEEP_S = 3600.0
"""How long a node keeps prepared sequences that no trial maps: the next trial may ask for the same."""


def state_file(number: int) -> str:
    """Where a trial's state lies, in OUT."""
    return f"{TRIALS_FOLDER}/{number:04d}.zip"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the process of a trial is told."""

    number: int
    training: WorkerConfig
    workers: Workers
    max_failures: int
    """How often lost workers are started again."""


class TrialTraining:
    """The seeds of a trial, trained side by side so that one score an epoch speaks for all of them."""

    def __init__(self, trial: Trial, world: World) -> None:
        """Reads the node's sequences and, where there is one, the trial's state. Every rank makes one."""
        told = trial.training
        self.told, self.world, self.file = told, world, state_file(trial.number)
        data = node_data(told, keep_s=KEEP_S)
        device = "cuda" if torch.cuda.is_available() and trial.workers.gpus else "cpu"
        self.trainings = [data.training(told, seed, device, world) for seed in told.seeds]
        saved = read_state(told.out, trial.number)
        self.history = saved.history
        for training in self.trainings if saved.history else ():
            training.resume(saved.states[training.seed])
        self.before_s = self.history[-1]["busy_s"] if self.history else 0.0
        self.started_s = time.monotonic()

    def entries(self) -> Iterator[dict[str, Any]]:
        """Those of the state first, then one after each epoch, saved before it is given."""
        yield from list(self.history)
        running = {training.seed: training.epochs() for training in self.trainings}
        while any(not training.finished for training in self.trainings):
            entries = []
            for training in self.trainings:
                if not training.finished:
                    entries.append(next(running[training.seed]))
            self.history.append(self._entry(entries))
            self._save()
            yield self.history[-1]

    def _entry(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        progress = [training.progress for training in self.trainings]
        losses = [entry["loss_total"] for entry in entries if "loss_total" in entry]
        now_s = self.before_s + time.monotonic() - self.started_s
        return {
            "epoch": max(each.epochs_done for each in progress),
            "score": float(np.mean([each.best_score or 0.0 for each in progress])),
            "val_mean_pearson": float(np.mean([entry["val_mean_pearson"] for entry in entries])),
            **({"loss_total": float(np.mean(losses))} if losses else {}),
            "steps": sum(each.steps_done for each in progress),
            "seconds": sum(entry["seconds"] for entry in entries),
            "busy_s": self.world.gather_objects(round(now_s, 3))[0],
            "finished": all(training.finished for training in self.trainings),
        }

    def _save(self) -> None:
        if self.world.rank == 0:
            states = {training.seed: training.state() for training in self.trainings}
            self.told.out.write(self.file, dump_trial(self.history, states))


class SavedTrial(NamedTuple):
    """What a trial's state file holds; nothing where there is none."""

    history: list[dict[str, Any]]
    states: dict[int, bytes]


def dump_trial(history: list[dict[str, Any]], states: dict[int, bytes]) -> bytes:
    """A trial's history and the state of each seed as one file, written whole or not at all."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        target.writestr(HISTORY_FILE, json.dumps(history))
        for seed, state in states.items():
            target.writestr(f"seed-{seed}.safetensors", state)
    return buffer.getvalue()


def read_state(out: Folder, number: int) -> SavedTrial:
    """The state of a trial. Raises ValueError where its file is damaged."""
    name = state_file(number)
    if not out.exists(name):
        return SavedTrial([], {})
    try:
        with zipfile.ZipFile(io.BytesIO(out.read(name))) as source:
            history = json.loads(source.read(HISTORY_FILE))
            seeds = [each for each in source.namelist() if each.startswith("seed-")]
            return SavedTrial(history, {int(each[5:].partition(".")[0]): source.read(each) for each in seeds})
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"{out.display}/{name} is damaged ({error}): delete it, and the trial begins anew") from error


class TrialActor(tune.Trainable):
    """What Ray Tune runs for a trial, one after another in the same process; `config["trial"]` is a `Trial`."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin, or go on where the trial's state stands."""
        trial: Trial = config["trial"]
        if trial.workers.count == 1:
            torch.set_num_threads(trial.training.threads)
            keep_memory()
            self.entries = TrialTraining(trial, World()).entries()
            self.nested: _Nested | None = None
        else:
            self.nested = _Nested(trial)
            self.entries = self.nested.entries()

    def step(self) -> dict[str, Any]:
        """One epoch."""
        entry = next(self.entries)
        return {**entry, "done": entry["finished"]}

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Nothing: the trial's state is its own matter, and newer than anything that Tune would ask for."""
        return {}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """See `save_checkpoint`."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take on another trial, without another process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """End a training of several workers, if one runs."""
        if self.nested is not None:
            self.nested.end()


class _Nested:
    """A trial of several workers: a run of Ray Train, whose entries come from a thread."""

    def __init__(self, trial: Trial) -> None:
        self.stop = SimpleNamespace(signal=None)
        self.queue: queue.Queue[dict[str, Any] | BaseException] = queue.Queue()
        self.trial = trial
        self.thread = threading.Thread(target=self._train, name="trial", daemon=True)
        self.thread.start()

    def _train(self) -> None:
        trial = self.trial
        try:
            run_training(
                _train_worker,
                {"trial": trial},
                workers=trial.workers,
                folder=trial.training.out.child(NESTED_FOLDER),
                name=f"{trial.number:04d}-{uuid.uuid4().hex[:8]}",  # never one of before: the state is our own
                max_failures=trial.max_failures,
                on_entry=lambda entry: None if "failure" in entry else self.queue.put(entry),
                stop=cast(Stop, self.stop),
            )
            self.queue.put(TrainingError("the workers ended before the training did"))
        except Exception as error:  # raised in the trial's own thread
            self.queue.put(error)

    def entries(self) -> Iterator[dict[str, Any]]:
        """What rank 0 reports; raises what the training raised."""
        while True:
            found = self.queue.get()
            if isinstance(found, BaseException):
                raise found
            yield found

    def end(self) -> None:
        """Stop the workers and wait for their end."""
        self.stop.signal = True
        self.thread.join(2 * ABORT_S)


def _train_worker(config: dict[str, Any]) -> None:
    trial: Trial = config["trial"]
    torch.set_num_threads(trial.training.threads)
    for entry in TrialTraining(trial, current_world()).entries():
        report(entry, None)


class FinishedTrial(NamedTuple):
    """A trial's best networks as a model, with their scores."""

    model: bytes
    scores: dict[str, Any]
    """`splits` and `seeds`, as `train` has them."""
    predictions: dict[str, npt.NDArray[np.float64]]
    """By split, (seeds, n, 7)."""


def finish_trial(trial: Trial, *, floors: bool) -> FinishedTrial:
    """Make a model of the best weights that a trial's state holds, and score it; in a process of its own.

    `floors`: fit and score them too.
    """
    told = trial.training
    torch.set_num_threads(told.threads)
    keep_memory()
    data = node_data(told, keep_s=KEEP_S)
    saved = read_state(told.out, trial.number)
    trained = []
    for seed in told.seeds:
        training = data.training(told, seed, "cpu", World())
        training.resume(saved.states[seed])
        network = training.best_network().eval()
        outputs = {name: predict(network, videos.sequences) for name, videos in data.splits.items()}
        best, epochs = training.progress.best_epoch, training.progress.epochs_done
        trained.append(TrainedSeed(seed=seed, network=network, outputs=outputs, best_epoch=best, epochs=epochs))
    model = model_of(told, data, trained)
    fitted = node_floors(data) if floors else None
    scores, predictions = scored(model, data, trained, fitted)
    told_scores = {"splits": scores, "seeds": model.record["seeds"]}
    content = model.with_record(scores=scores, floors=fitted.to_dict() if fitted else None).dump()
    return FinishedTrial(content, told_scores, predictions)
