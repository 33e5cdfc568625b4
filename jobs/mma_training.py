"""Stage-1 training in the workers that Ray Train starts: crops, epochs, checkpoints, final scores."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from cluster.scratch import node_folder
from cluster.storage import Folder
from cluster.training import report, restored
from jobs.models import MODEL_FILE
from jobs.training_run import read_samples
from mma.checkpoint import dump_mma, load_mma
from mma.crops import flat_faces
from mma.training.data import training_data
from mma.training.final import final_scores
from mma.training.loop import Training
from mma.training.options import TrainingOptions
from mma.training.world import current_world

START_FILE = "_start.safetensors"
STATE_FILE, SCORES_FILE = "state.safetensors", "scores.json"


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """What a training worker is told; travels by pickle, inside one run."""

    out: Folder
    """Holds the samples and `START_FILE`."""
    crops: Folder
    options: TrainingOptions
    shares: dict[str, float] | None
    prior: list[list[float]]
    """(num_expressions, num_action_units), in the orders of the network's descriptor set."""
    threads: int
    bfloat16: bool
    scratch: str | None
    record: dict[str, Any]
    """What the checkpoint says of its training, beside the scores."""


def train_worker(config: dict[str, Any]) -> None:
    """The training loop of one worker; `config["worker"]` is a `WorkerConfig`."""
    told: WorkerConfig = config["worker"]
    torch.set_num_threads(told.threads)
    samples = read_samples(told.out)
    network = load_mma(told.out.read(START_FILE), name=START_FILE).network
    faces = flat_faces(told.crops, samples, node_folder(told.scratch, "faces"))
    training = Training(
        network,
        training_data(samples, faces, network.config.descriptors),
        told.options,
        shares=told.shares,
        device="cuda" if torch.cuda.is_available() and config["gpus"] else "cpu",
        bfloat16=told.bfloat16,
        world=current_world(),
        prior=torch.tensor(told.prior),
    )
    if (state := restored(STATE_FILE)) is not None:
        training.resume(state)
    for _ in training.epochs():
        files = {STATE_FILE: training.state()} if training.world.rank == 0 else {}
        report({"history": training.progress.history}, files)

    best = training.best_network()
    scores = final_scores(training, best)
    progress = training.progress
    record = {**told.record, **scores, "epochs": progress.epochs_done, "best_epoch": progress.best_epoch}
    files = {}
    if training.world.rank == 0:
        files = {
            STATE_FILE: training.state(),
            MODEL_FILE: dump_mma(best, record),
            SCORES_FILE: json.dumps(
                {**scores, "history": progress.history, "best_epoch": progress.best_epoch}
            ).encode(),
        }
    report({"history": progress.history, "final": True}, files)
