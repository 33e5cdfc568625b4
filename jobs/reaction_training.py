"""Stage-2 training in the workers that Ray Train starts: seed after seed, checkpoints, the model and its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from cluster.scratch import node_folder
from cluster.storage import Folder
from cluster.training import report, restored
from jobs.training_run import read_samples
from mma.training.world import World, current_world
from rnn.flat import flat_videos
from rnn.model import ReactionModel
from rnn.network import MaskedRNN, NetworkConfig, random_rnn
from rnn.sequences import SequenceOptions
from rnn.training.data import SplitVideos, prepared_splits, steps_reached
from rnn.training.final import (
    TrainedSeed,
    copy_of,
    finished_model,
    fitted_floors,
    floor_inputs,
    scored_splits,
    split_predictions,
    split_scores,
)
from rnn.training.loop import ReactionTraining, predict_together
from rnn.training.options import FitOptions

MODEL_FILE, LAST_FILE = "mrnnet.safetensors", "last.safetensors"
REPORT_S = 3.0
"""Least time between two checkpoints of a seed: one costs as much as several short epochs."""
STATE_FILE, POSITION_FILE, SCORES_FILE = "state.safetensors", "position.json", "scores.json"


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a training worker is told; travels by pickle, inside one run."""

    out: Folder
    """Holds the samples."""
    stores: tuple[Folder, ...]
    spec: dict[str, Any]
    step_s: float
    most_steps: int | None
    seeds: tuple[int, ...]
    calibrate: bool
    network: NetworkConfig
    fit: FitOptions
    sequence: SequenceOptions
    threads: int
    bfloat16: bool
    scratch: str | None
    record: dict[str, Any]
    """What the model says of its training, beside the scores."""


def train_worker(config: dict[str, Any]) -> None:
    """The training loop of one worker; `config["worker"]` is a `WorkerConfig`."""
    told: WorkerConfig = config["worker"]
    torch.set_num_threads(told.threads)
    scratch = node_folder(told.scratch, "sequences")
    grid = flat_videos(told.stores, told.spec, told.step_s, scratch)
    splits, normaliser = prepared_splits(grid, read_samples(told.out), told.sequence, scratch)
    device = "cuda" if torch.cuda.is_available() and config["gpus"] else "cpu"
    steps = steps_reached(splits, told.most_steps, told.network)
    runs = _Runs(told, splits, len(normaliser.names), steps, device, current_world())
    runs.go_on()
    trained = [runs.trained(seed) for seed in told.seeds]
    model = finished_model(
        trained,
        splits,
        sequence=told.sequence,
        normaliser=normaliser,
        step_s=told.step_s,
        spec=told.spec,
        calibrate=told.calibrate,
        record={
            **told.record,
            "seeds": [{"seed": t.seed, "best_epoch": t.best_epoch, "epochs": t.epochs} for t in trained],
        },
    )
    files: dict[str, bytes] = {}
    if runs.world.rank == 0:
        floors = fitted_floors(grid, splits, normaliser.names)
        scores: dict[str, Any] = {}
        for name in scored_splits(splits):
            of_split = splits[name]
            inputs = floor_inputs(grid, of_split, normaliser.names)
            scores[name] = split_scores(
                split_predictions(model, trained, name, of_split),
                of_split.labels,
                of_split.groups(),
                floors.predict(*inputs),
            )
        told_scores = {"splits": scores, "history": runs.history, "seeds": model.record["seeds"]}
        files = {
            **runs.files(),
            MODEL_FILE: model.with_record(scores=scores).dump(),
            LAST_FILE: runs.last_model(model).dump(),
            SCORES_FILE: json.dumps(told_scores).encode(),
        }
    report({"history": runs.history, "final": True}, files)


class _Runs:
    """The seeds of one worker: those done, and the one that is being trained."""

    def __init__(
        self,
        told: WorkerConfig,
        splits: Mapping[str, SplitVideos],
        inputs: int,
        steps: int,
        device: str,
        world: World,
    ) -> None:
        self.told, self.splits, self.inputs, self.steps = told, splits, inputs, steps
        self.device, self.world = device, world
        self.train, self.val = splits["train"].labelled(), splits["val"].labelled()
        self.done: dict[int, dict[str, Any]] = {}
        """By seed: its numbers, and `best` and `last`, its weights."""
        self.history: list[dict[str, Any]] = []
        self.state: bytes | None = None

    def go_on(self) -> None:
        """Train what is not trained yet."""
        state = self._restore()
        for seed in self.told.seeds:
            if seed in self.done:
                continue
            training = ReactionTraining(
                random_rnn(self.inputs, self.steps, self.told.network, seed=seed),
                self.train,
                self.val,
                self.told.fit,
                seed=seed,
                device=self.device,
                bfloat16=self.told.bfloat16,
                world=self.world,
            )
            if state is not None:
                training.resume(state)
                state = None
            before = len(self.history) - training.progress.epochs_done
            unsaved_s = 0.0
            for entry in training.epochs():
                self.history.append({**entry, "epoch": before + entry["epoch"], "seed_epoch": entry["epoch"]})
                unsaved_s += entry["seconds"]  # of rank 0, so that all ranks report together
                if unsaved_s < REPORT_S or training.finished:
                    continue
                unsaved_s = 0.0
                if self.world.rank == 0:
                    self.state = training.state()
                report({"history": self.history}, self.files())
            last = {name: tensor.detach().cpu().clone() for name, tensor in training.network.state_dict().items()}
            self.done[seed] = {
                "best_epoch": training.progress.best_epoch,
                "epochs": training.progress.epochs_done,
                "last": last,
                "best": {name: tensor.cpu().clone() for name, tensor in training.best.items()},
            }
            self.state = None
            # So that a later loss does not cost this seed's last steps again.
            report({"history": self.history}, self.files())

    def trained(self, seed: int) -> TrainedSeed:
        """A finished seed's best network with its outputs for all splits, by every rank together."""
        done = self.done[seed]
        network = copy_of(MaskedRNN(self.inputs, self.steps, self.told.network), done["best"])
        outputs = {
            name: predict_together(network, videos.sequences, self.world) for name, videos in self.splits.items()
        }
        return TrainedSeed(
            seed=seed, network=network, outputs=outputs, best_epoch=done["best_epoch"], epochs=done["epochs"]
        )

    def last_model(self, model: ReactionModel) -> ReactionModel:
        """The same model with the weights of the last epochs, which nobody chose."""
        networks = (copy_of(model.networks[0], self.done[seed]["last"]) for seed in self.told.seeds)
        return model.with_networks(tuple(networks))

    def files(self) -> dict[str, bytes]:
        """What a resumption needs; of rank 0 alone."""
        if self.world.rank:
            return {}
        position = {"done": {seed: {k: done[k] for k in ("best_epoch", "epochs")} for seed, done in self.done.items()},
                    "history": self.history, "running": self.state is not None}  # fmt: skip
        files = {POSITION_FILE: json.dumps(position).encode()}
        if self.state is not None:
            files[STATE_FILE] = self.state
        for seed, done in self.done.items():
            for which in ("best", "last"):
                files[_seed_file(seed, which)] = safetensors.torch.save(
                    {name: tensor.contiguous() for name, tensor in done[which].items()}
                )
        return files

    def _restore(self) -> bytes | None:
        """Take the finished seeds of the newest checkpoint; the state of the one that was being trained."""
        content = restored(POSITION_FILE)
        if content is None:
            return None
        position = json.loads(content)
        self.history = position["history"]
        for seed, told in position["done"].items():
            weights = {}
            for which in ("best", "last"):
                found = restored(_seed_file(int(seed), which))
                if found is None:
                    raise RuntimeError(
                        f"the checkpoint lacks the weights of seed {seed}: start again in another folder"
                    )
                weights[which] = safetensors.torch.load(found)
            self.done[int(seed)] = {**told, **weights}
        return restored(STATE_FILE) if position["running"] else None


def _seed_file(seed: int, which: str) -> str:
    return f"seed-{seed}-{which}.safetensors"
