"""Small made trainings, and the same trainings in several real processes on this machine.

`python training_worlds.py FOLDER RANK` is one of the processes: it runs the cases of the largest world, then those of
the next, and leaves its numbers in FOLDER.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from mma.config import MMAConfig
from mma.descriptors import DESCRIPTOR_SETS
from mma.labels.table import LabelArrays
from mma.losses import LossOptions
from mma.network import MMANetwork, random_mma
from mma.training.data import TrainingData
from mma.training.final import final_scores
from mma.training.loop import Training, has_batch_norm
from mma.training.options import TrainingOptions
from mma.training.world import World, current_world

SIDE_PX = 32
SETS = ("affect", "classes", "units")
"""Label valence and arousal, expressions, and some action units: no sample carries two tasks."""
START_S, LIMIT_S = 60, 240


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As the processes have: steps this small gain nothing from two, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made_network(
    trunk: str = "tiny", side_px: int = SIDE_PX, seed: int = 1, descriptor_set: str = "mma26"
) -> MMANetwork:
    return random_mma(MMAConfig(trunk=trunk, crop_size_px=side_px, descriptor_set=descriptor_set), seed)


def made_data(
    splits: Mapping[str, int] | None = None, *, seed: int = 0, sets: tuple[str, ...] = SETS, side_px: int = SIDE_PX
) -> TrainingData:
    """Smooth noise with random labels: split -> its number of samples (default: train 48, val 30); the sets in turn.

    Three samples in a row are of one person.
    """
    splits = splits or {"train": 48, "val": 30}
    rng = np.random.default_rng(seed)
    count, descriptors = sum(splits.values()), DESCRIPTOR_SETS["mma26"]
    coarse = rng.integers(0, 256, (count, side_px // 4, side_px // 4, 3), dtype=np.uint8)
    owner = np.array([sets[row % len(sets)] for row in range(count)])
    units = (count, len(descriptors.action_units))
    va_known = (owner == "affect")[:, None] & (rng.random((count, 2)) < 0.9)
    units_known = (owner == "units")[:, None] & (rng.random(units) < 0.7)
    expression = rng.integers(0, len(descriptors.expressions), count)
    labels = LabelArrays(
        np.where(va_known, rng.uniform(-1, 1, (count, 2)), 0).astype(np.float32),
        va_known,
        np.where(owner == "classes", expression, -1).astype(np.int64),
        (units_known & (rng.random(units) < 0.3)).astype(np.float32),
        units_known,
    )
    split = np.repeat(list(splits), list(splits.values()))
    members = {
        each: {name: rows for name in sets if len(rows := np.flatnonzero((split == each) & (owner == name)))}
        for each in ("train", "val", "test")
    }
    return TrainingData(
        faces=coarse.repeat(4, axis=1).repeat(4, axis=2), labels=labels, members=members, people=np.arange(count) // 3
    )


def made_batches(data: TrainingData, size: int, count: int) -> list[np.ndarray]:
    """Global batches; in some a task has no label, in some two have none, and labels lie unevenly in all."""
    rng = np.random.default_rng(size)
    without = [(), ("units",), ("affect",), ("classes", "units"), ("affect", "classes")]
    drawn = []
    for number in range(count):
        left_out = without[number % len(without)]
        rows = np.concatenate([rows for name, rows in data.members["train"].items() if name not in left_out])
        drawn.append(np.sort(rng.choice(rows, size, replace=False)) if number % 2 else rng.choice(rows, size, False))
    return drawn


# --- the cases: each gives its numbers by name, the same in every world ---


def steps(world: World, *, size: int, count: int = 20, trunk: str = "tiny", clip_norm: float = 0.0) -> dict[str, Any]:
    """Steps of plain SGD in float64, augmentation on: the losses, and the gradients of the first step."""
    data = made_data()
    options = TrainingOptions(
        optimiser="sgd", learning_rate=0.02, clip_norm=clip_norm, batch_size=size, weight_decay=0.01, epochs=4
    )
    training = Training(made_network(trunk).double(), data, options, world=world)
    if world.size == 1 and has_batch_norm(training.network):
        training.freeze_norms = True  # as several processes do of themselves
    before = {name: value.clone() for name, value in training.network.named_buffers()}
    losses, gradients = [], {}
    for number, batch in enumerate(made_batches(data, size, count)):
        losses.append(training.step(batch)["total"])
        if number == 0:
            gradients = {name: each.grad.numpy().copy() for name, each in training.network.named_parameters()}
    moved = [name for name, value in training.network.named_buffers() if not torch.equal(value, before[name])]
    return {"losses": losses, "gradients": gradients, "moved_buffers": moved}


def epochs(world: World, state: bytes | None = None) -> dict[str, Any]:
    """A whole training as the job runs it, with all that could depend on the number of processes; AdamW, float64."""
    options = TrainingOptions(
        epochs=2,
        batch_size=13,
        balance=0.5,
        clip_norm=0.5,
        average=0.9,
        loss=LossOptions(action_unit_pos_weight={"AU04": 3.0}, soft_co_annotation=True),
    )
    training = Training(made_network().double(), made_data(), options, world=world)
    if state is not None:
        training.resume(state)
    states = [training.state() for _ in training.epochs()]
    return {
        "history": [_lasting(entry) for entry in training.progress.history],
        "final": final_scores(training, training.best_network()),
        "states": states,
        "best": {name: value.numpy() for name, value in training.best.items()},
    }


def _lasting(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name not in ("seconds", "samples_per_s")}


CASES: dict[str, tuple[tuple[int, ...], Callable[[World], dict[str, Any]]]] = {
    "12 samples": ((2,), lambda world: steps(world, size=12)),
    "13 samples": ((2, 3), lambda world: steps(world, size=13)),
    "13 samples, clipped": ((2,), lambda world: steps(world, size=13, count=6, clip_norm=0.5)),
    "2 samples": ((3,), lambda world: steps(world, size=2, count=3)),
    "resnet18": ((2,), lambda world: steps(world, size=5, count=2, trunk="resnet18")),
    "epochs": ((3,), epochs),
}
"""Name -> the worlds it is run in beside a world of one, and what it is."""


Cases = Mapping[str, tuple[tuple[int, ...], Callable[[World], dict[str, Any]]]]


def run_worlds(
    folder: Path, script: str = __file__, cases: Cases = CASES
) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """(case, size of the world) -> what each rank of that world found; `script` runs `one_of` with the cases."""
    root = Path(__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, script, str(folder)]
    logs = [(folder / f"log-{rank}").open("w+") for rank in range(_world_sizes(cases)[0])]
    children = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=log, stderr=subprocess.STDOUT)
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [child.wait(LIMIT_S) for child in children]
    finally:
        for child in children:
            child.kill()
        for log in logs:
            log.close()
    assert not any(codes), "\n".join((folder / f"log-{rank}").read_text()[-2000:] for rank in range(len(codes)))
    found = {}
    for name, (sizes, _) in cases.items():
        for size in sizes:
            files = [folder / f"{name}-{size}-{rank}.pickle" for rank in range(size)]
            found[name, size] = [pickle.loads(file.read_bytes()) for file in files]
    return found


def _world_sizes(cases: Cases) -> list[int]:
    """Of all cases, the largest first."""
    return sorted({size for sizes, _ in cases.values() for size in sizes}, reverse=True)


def one_of(folder: Path, rank: int, cases: Cases = CASES) -> None:
    """What one of the processes does."""
    torch.set_num_threads(1)
    for size in _world_sizes(cases):
        if rank >= size:
            return
        meeting = f"file://{folder}/meeting-{size}"
        dist.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=size, timeout=timedelta(seconds=START_S)
        )
        for name, (sizes, case) in cases.items():
            if size in sizes:
                (folder / f"{name}-{size}-{rank}.pickle").write_bytes(pickle.dumps(case(current_world())))
        dist.destroy_process_group()


if __name__ == "__main__":
    one_of(Path(sys.argv[1]), int(sys.argv[2]))
