"""Stage-2 training in the workers that Ray Train starts: seed after seed, checkpoints, the model and its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch

from cluster.scratch import node_folder
from cluster.storage import Folder
from cluster.training import report, restored
from jobs.training_run import read_samples
from mma.training.world import World, current_world
from rnn.flat import flat_videos
from rnn.floors import Floors
from rnn.grid import GridVideos
from rnn.metrics import ReactionMetrics
from rnn.model import ReactionModel
from rnn.network import MaskedRNN, NetworkConfig, random_rnn
from rnn.sequences import Normaliser, SequenceOptions
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
from rnn.training.loop import LabelledSequences, ReactionTraining, predict_together
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


@dataclass(frozen=True, kw_only=True, eq=False)
class NodeData:
    """The videos of a training as the processes of a node share them."""

    grid: GridVideos
    splits: Mapping[str, SplitVideos]
    normaliser: Normaliser
    steps: int
    """T of the network."""
    train: LabelledSequences
    val: LabelledSequences

    def training(self, told: WorkerConfig, seed: int, device: str, world: World) -> ReactionTraining:
        """The training of one seed, at its start."""
        return ReactionTraining(
            random_rnn(len(self.normaliser.names), self.steps, told.network, seed=seed),
            self.train,
            self.val,
            told.fit,
            seed=seed,
            device=device,
            bfloat16=told.bfloat16,
            world=world,
        )


def node_data(told: WorkerConfig, *, keep_s: float = 0.0) -> NodeData:
    """What the node's scratch holds of a training's videos, laid there if nobody has yet.

    `keep_s`: how long other content stays there that nobody maps, seconds.
    """
    scratch = node_folder(told.scratch, "sequences")
    grid = flat_videos(told.stores, told.spec, told.step_s, scratch, keep_s=keep_s)
    splits, normaliser = prepared_splits(grid, read_samples(told.out), told.sequence, scratch, keep_s=keep_s)
    return NodeData(
        grid=grid,
        splits=splits,
        normaliser=normaliser,
        steps=steps_reached(splits, told.most_steps, told.network),
        train=splits["train"].labelled(),
        val=splits["val"].labelled(),
    )


def model_of(told: WorkerConfig, data: NodeData, trained: Sequence[TrainedSeed]) -> ReactionModel:
    """The model of these seeds, its record without scores."""
    return finished_model(
        trained,
        data.splits,
        sequence=told.sequence,
        normaliser=data.normaliser,
        step_s=told.step_s,
        spec=told.spec,
        calibrate=told.calibrate,
        record={
            **told.record,
            "seeds": [{"seed": t.seed, "best_epoch": t.best_epoch, "epochs": t.epochs} for t in trained],
        },
    )


class Scored(NamedTuple):
    """A model's scores and predictions by split, of validation and test those with labels."""

    scores: dict[str, Any]
    predictions: dict[str, npt.NDArray[np.float64]]
    """(seeds, n, 7)."""


def node_floors(data: NodeData) -> Floors:
    """The floors, fitted on the training's videos."""
    return fitted_floors(data.grid, data.splits, data.normaliser.names)


def scored(model: ReactionModel, data: NodeData, trained: Sequence[TrainedSeed], fitted: Floors | None) -> Scored:
    """Score a model of these seeds, beside the floors unless these are left out."""
    names = data.normaliser.names
    found = Scored({}, {})
    for name in scored_splits(data.splits):
        videos = data.splits[name]
        found.predictions[name] = split_predictions(model, trained, name, videos)
        beside = fitted.predict(*floor_inputs(data.grid, videos, names)) if fitted else {}
        found.scores[name] = split_scores(
            found.predictions[name], videos.labels, videos.groups(), beside, videos.kinds()
        )
    return found


def train_worker(config: dict[str, Any]) -> None:
    """The training loop of one worker; `config["worker"]` is a `WorkerConfig`."""
    told: WorkerConfig = config["worker"]
    torch.set_num_threads(told.threads)
    data = node_data(told)
    device = "cuda" if torch.cuda.is_available() and config["gpus"] else "cpu"
    world = current_world()
    floors = node_floors(data) if world.rank == 0 else None
    runs = _Runs(told, data, device, world, beside=_ridge_score(data, floors))
    runs.go_on()
    trained = [runs.trained(seed) for seed in told.seeds]
    model = model_of(told, data, trained)
    files: dict[str, bytes] = {}
    if floors is not None:
        scores, _ = scored(model, data, trained, floors)
        told_scores = {"splits": scores, "history": runs.history, "seeds": model.record["seeds"]}
        files = {
            **runs.files(),
            MODEL_FILE: model.with_record(scores=scores, floors=floors.to_dict()).dump(),
            LAST_FILE: runs.last_model(model).dump(),
            SCORES_FILE: json.dumps(told_scores).encode(),
        }
    report({"history": runs.history, "final": True}, files)


def _ridge_score(data: NodeData, floors: Floors | None) -> dict[str, float]:
    """What an epoch's entry has beside its validation score; nothing where there is no such score, or no floors."""
    videos = data.splits["val"]
    if floors is None or not len(data.val.sequences):
        return {}
    ridge = floors.predict(*floor_inputs(data.grid, videos, data.normaliser.names))["ridge_statistics"]
    scores = ReactionMetrics.of(ridge[videos.seen], data.val.labels).scores()  # of the same videos as an epoch's score
    return {"val_ridge_pearson": scores["mean_pearson"]}


class _Runs:
    """The seeds of one worker: those done, and the one that is being trained."""

    def __init__(
        self, told: WorkerConfig, data: NodeData, device: str, world: World, *, beside: Mapping[str, float]
    ) -> None:
        """`beside`: what the entry of an epoch with a validation score has too."""
        self.told, self.data, self.device, self.world, self.beside = told, data, device, world, beside
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
            training = self.data.training(self.told, seed, self.device, self.world)
            if state is not None:
                training.resume(state)
                state = None
            before = len(self.history) - training.progress.epochs_done
            unsaved_s = 0.0
            for entry in training.epochs():
                floor = self.beside if "val_mean_pearson" in entry else {}
                self.history.append({**entry, **floor, "epoch": before + entry["epoch"], "seed_epoch": entry["epoch"]})
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
        network = MaskedRNN(len(self.data.normaliser.names), self.data.steps, self.told.network)
        network = copy_of(network, done["best"])
        outputs = {
            name: predict_together(network, videos.sequences, self.world) for name, videos in self.data.splits.items()
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
