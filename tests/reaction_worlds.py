"""Small made stage-2 trainings, and the same in several real processes (see `training_worlds`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training_worlds import Cases, one_of

from mma.training.world import World
from rnn.network import MaskedRNN, NetworkConfig, random_rnn
from rnn.sequences import Sequences
from rnn.training.loop import LabelledSequences, ReactionTraining
from rnn.training.options import FitOptions

WIDTH, LONGEST = 5, 14


def made_sequences(lengths: list[int], seed: int = 0) -> Sequences:
    """Random sequences of these lengths."""
    rng = np.random.default_rng(seed)
    return Sequences(
        names=tuple(f"d{k}" for k in range(WIDTH)),
        values=rng.normal(size=(sum(lengths), WIDTH)).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        outside=np.zeros(len(lengths), np.float32),
    )


def made_videos(count: int = 60, seed: int = 0, unknown: float = 0.1) -> LabelledSequences:
    """Videos of 1 to `LONGEST` steps whose labels follow their first descriptor's mean; some cells unknown."""
    rng = np.random.default_rng([seed, 1])
    lengths = rng.integers(1, LONGEST + 1, count).tolist()
    sequences = made_sequences(lengths, seed)
    mean = np.array([each[:, 0].mean() for each in sequences.take(np.arange(count))])
    labels = 1 / (1 + np.exp(-mean[:, None] - rng.normal(0, 0.5, (count, 7))))
    labels[rng.random(labels.shape) < unknown] = np.nan
    return LabelledSequences(sequences=sequences, labels=labels.astype(np.float32))


def made_network(config: NetworkConfig, seed: int = 3) -> MaskedRNN:
    """A network with random weights, the routed layer's large enough to matter."""
    network = random_rnn(WIDTH, LONGEST, config, seed=seed)
    with torch.no_grad():
        for parameter in network.routed_parameters().values():
            parameter.mul_(3)
    return network


def made_training(
    world: World = World(),  # noqa: B008
    *,
    rule: str = "sgd",
    size: int = 12,
    readout: str = "routed-dense",
    dtype: torch.dtype = torch.float64,
    rate: float = 0.05,
    **network: Any,
) -> ReactionTraining:
    """A training with dropout on; batches of `size` videos (`steps`)."""
    config = NetworkConfig(units=6, dense_width=4, dropout=0.25, readout=readout, **network)
    options = FitOptions(
        optimiser=rule, learning_rate=rate, batch_size=max(size, 8), weight_decay=0.01, clip_norm=0.5, groups=3
    )
    return ReactionTraining(
        made_network(config).to(dtype), made_videos(), made_videos(20, 5), options, seed=1, world=world
    )


def made_batches(count: int, size: int, videos: int = 60) -> list[np.ndarray]:
    """Draws of videos, the same everywhere."""
    rng = np.random.default_rng(11)
    return [rng.choice(videos, size, replace=False).astype(np.int64) for _ in range(count)]


def steps(world: World, *, size: int, count: int = 20, **settings: Any) -> dict[str, Any]:
    """The losses of some steps, the first gradients, and the weights, norms and routed state at the end."""
    training = made_training(world, size=size, **settings)
    losses, gradients = [], {}
    for number, batch in enumerate(made_batches(count, size)):
        losses.append(training.step(batch))
        if number == 0:
            gradients = {name: each.grad.numpy().copy() for name, each in training.network.named_parameters()}
    return {
        "losses": losses,
        "gradients": gradients,
        "end": {name: each.numpy().copy() for name, each in training.network.state_dict().items()},
        "routed": {name: each.numpy().copy() for name, each in training.routed.state_tensors().items()},
    }


def epochs(world: World, *, stopped: bool = False) -> dict[str, Any]:
    """Two epochs as the job runs them, with their validation scores; `stopped`: another training takes up the second
    from the state after the first."""
    training = made_training(world, rule="adamw", size=13, rate=0.01)
    if stopped:
        next(training.epochs())
        first, training = training, made_training(world, rule="adamw", size=13, rate=0.01)
        training.resume(first.state())
    while training.progress.epochs_done < 2:
        next(training.epochs())
    kept = ("loss_total", "val_mean_pearson", "val_mean_ccc")
    return {
        "history": [{name: entry[name] for name in kept} for entry in training.progress.history],
        "predictions": training.predict(training.val.sequences),
        "one": training.predict(made_sequences([3])),  # other ranks have no video at all
        "routed": {name: each.numpy().copy() for name, each in training.routed.state_tensors().items()},
    }


CASES: Cases = {
    "sgd, 12": ((2,), lambda world: steps(world, size=12)),
    "sgd, 13": ((2, 3), lambda world: steps(world, size=13)),
    "sgd, 9": ((4,), lambda world: steps(world, size=9)),
    "sgd, 8": ((3,), lambda world: steps(world, size=8, readout="masked-statistics", bidirectional=True, cell="lstm")),
    "adam, float32": ((2,), lambda world: steps(world, size=13, rule="adam", dtype=torch.float32, rate=0.003)),
    "adam": ((2,), lambda world: steps(world, size=13, rule="adam", rate=0.01)),
    "adamw": ((2,), lambda world: steps(world, size=13, rule="adamw", rate=0.01)),
    "epochs": ((2,), epochs),
    "epochs, stopped in between": ((2,), lambda world: epochs(world, stopped=True)),
}
"""Name -> the worlds it is run in beside a world of one, and what it is."""


if __name__ == "__main__":
    one_of(Path(sys.argv[1]), int(sys.argv[2]), CASES)
