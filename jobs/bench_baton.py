"""Training sides that stand ready side by side and run one at a time: the start is paid once, and turns are short."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from jobs.bench_process import Side
from mma.training.world import World, current_world
from rnn.network import MaskedRNN, NetworkConfig, random_rnn
from rnn.training.loop import LabelledSequences, ReactionTraining
from rnn.training.options import PRESETS, FitOptions

BATCH = 128
POLL_S = 0.02
READY_S = 180.0
"""Longest wait for a side to stand ready."""
TURN_S = 600.0
END = "end"


class Loop(Protocol):
    """A training that goes on from turn to turn."""

    def run(self, batches: list[list[int]]) -> list[float]:
        """An update a batch; the loss of each that was made."""


def serve_turns(folder: Path, begin: Callable[[str, World], Loop], world: World) -> None:
    """A side's own part: run turn after turn until the end, each on the threads that it is given.

    Args:
        folder: by which the side is told to go, and by which its first process tells that it is done.
        begin: a data set's name, and those who train on it, to a training from equal weights.
        world: the side's processes.
    """
    loops: dict[tuple[str, World], Loop] = {}
    tells = world.rank == 0
    if tells:
        _put(folder / "ready", {})
    for turn in itertools.count():
        while not (go := folder / f"go-{turn}").exists():
            if (folder / END).exists():
                return
            time.sleep(POLL_S)
        asked = json.loads(go.read_text())
        if asked["alone"] and not tells:
            continue
        key = asked["data"], World() if asked["alone"] else world
        torch.set_num_threads(asked["threads"])
        if asked["fresh"] or key not in loops:
            loops[key] = begin(*key)
        started_s = time.perf_counter()
        losses = loops[key].run(asked["batches"])
        seconds = time.perf_counter() - started_s
        if tells:
            told = {"seconds": seconds, "loss": losses[0] if losses else None, "updates": len(losses)}
            _put(folder / f"done-{turn}", told)


class Runner:
    """A side that stands ready, as the bench sees it."""

    def __init__(self, side: Side, folder: Path):
        self.side, self.folder, self.turn = side, folder, 0

    def ready(self) -> None:
        """Wait until it stands ready. Raises SideError where it ended or hangs."""
        self._wait("ready", READY_S)

    def go(self, data: str, batches: list[list[int]], **settings: Any) -> dict[str, float]:
        """One turn, and what the side told of it (`loss` is None after no update). Raises as `ready`."""
        self.start(data, batches, **settings)
        return self.done()

    def start(
        self, data: str, batches: list[list[int]], *, threads: int, fresh: bool = False, alone: bool = False
    ) -> None:
        """The first half of `go`.

        Args:
            data, batches: what is trained on.
            threads: of each of the side's processes.
            fresh: from the first weights again, not from where the side's last turn on these data ended.
            alone: by the first of its processes, while the others wait.
        """
        asked = {"data": data, "batches": batches, "threads": threads, "fresh": fresh, "alone": alone}
        _put(self.folder / f"go-{self.turn}", asked)

    def done(self) -> dict[str, float]:
        """The second half of `go`. Raises as that."""
        told = self._wait(f"done-{self.turn}", TURN_S)
        self.turn += 1
        return told

    def tell_end(self) -> None:
        """Let the side come to its end."""
        _put(self.folder / END, {})

    def _wait(self, name: str, limit_s: float) -> dict[str, float]:
        until_s = time.monotonic() + limit_s
        while not (self.folder / name).exists():
            if not self.side.running or time.monotonic() > until_s:
                raise self.side.error(f"did not come to {name}")
            time.sleep(POLL_S)
        return json.loads((self.folder / name).read_text())


def _put(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content))
    partial.rename(path)


def recommended(data: LabelledSequences) -> tuple[MaskedRNN, FitOptions]:
    """The network and the settings of the default preset, fresh and equal for all sides."""
    preset = PRESETS["recommended"]
    config = NetworkConfig(**preset["network"])
    steps = int(data.sequences.lengths.max())
    return random_rnn(len(data.sequences.names), steps, config, seed=0), FitOptions(**preset["fit"])


def batches_of(count: int, number: int, turn: int) -> list[list[int]]:
    """So many batches of videos drawn from all, others each turn."""
    order = np.random.default_rng([1, turn]).permutation(count)
    size = min(BATCH, count)
    return [np.roll(order, -size * each)[:size].tolist() for each in range(number)]


class OurLoop:
    """`rnn.training`'s own loop over given batches."""

    def __init__(self, data: LabelledSequences, **settings: Any):
        network, fit = recommended(data)
        self.training = ReactionTraining(network, data, None, fit, **settings)

    def run(self, batches: list[list[int]]) -> list[float]:
        """An update a batch; the loss of each that was made."""
        losses = [self.training.step(np.array(batch, np.int64)) for batch in batches]
        return [loss for loss in losses if loss is not None]


def turns_worker(config: dict[str, Any]) -> None:
    """A worker of Ray Train that trains in the turns that its folder gives."""
    from cluster.training import report
    from jobs.bench_inputs import read_sequences

    told = config["worker"]
    folders = told["folders"]
    serve_turns(
        Path(told["baton"]),
        lambda data, world: OurLoop(read_sequences(folders[data]), world=world),
        current_world(),
    )
    report({"final": True}, {})
