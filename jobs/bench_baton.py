"""Training sides that stand ready side by side and run one at a time: the start is paid once, and turns are short."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.bench_process import Side
from mma.training.world import current_world
from rnn.network import MaskedRNN, NetworkConfig, random_rnn
from rnn.training.loop import LabelledSequences, ReactionTraining
from rnn.training.options import PRESETS, FitOptions

BATCH = 128
POLL_S = 0.02
READY_S = 180.0
"""Longest wait for a side to stand ready."""
TURN_S = 600.0
END = "end"


class Baton:
    """A folder by which a side is told to go, and tells that it is done."""

    def __init__(self, folder: Path):
        self.folder = folder

    def serve(self, run: Callable[[str, list[list[int]]], list[float]], *, tells: bool = True) -> None:
        """The side's part: run turn after turn until the end. `run(data, batches)` gives the loss of each update.

        tells: False for all processes of a side but one.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        turn = 0
        if tells:
            self._put("ready", {})
        while True:
            while not (go := self.folder / f"go-{turn}").exists():
                if (self.folder / END).exists():
                    return
                time.sleep(POLL_S)
            asked = json.loads(go.read_text())
            started_s = time.perf_counter()
            losses = run(asked["data"], asked["batches"])
            seconds = time.perf_counter() - started_s
            if tells:
                self._put(
                    f"done-{turn}", {"seconds": seconds, "loss": losses[0] if losses else None, "updates": len(losses)}
                )
            turn += 1

    def go(self, side: Side, turn: int, data: str, batches: list[list[int]]) -> dict[str, float]:
        """The driver's part: one turn of the side, and what it told (`loss` is None after no update). Raises SideError
        where it ended or hangs."""
        self.start(turn, data, batches)
        return self.done(side, turn)

    def start(self, turn: int, data: str, batches: list[list[int]]) -> None:
        """The first half of `go`."""
        self._put(f"go-{turn}", {"data": data, "batches": batches})

    def done(self, side: Side, turn: int) -> dict[str, float]:
        """The second half of `go`. Raises as that."""
        return self.wait(side, f"done-{turn}", TURN_S)

    def wait(self, side: Side, name: str, limit_s: float) -> dict[str, float]:
        """Wait for what the side tells under a name. Raises as `go`."""
        until_s = time.monotonic() + limit_s
        while not (self.folder / name).exists():
            if not side.running or time.monotonic() > until_s:
                raise side.error(f"did not come to {name}")
            time.sleep(POLL_S)
        return json.loads((self.folder / name).read_text())

    def end(self) -> None:
        """Tell the side to end."""
        self._put(END, {})

    def _put(self, name: str, content: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{name}.partial"
        partial.write_text(json.dumps(content))
        partial.rename(self.folder / name)


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
    """A worker of Ray Train that trains in the turns that its baton gives."""
    from cluster.training import report
    from jobs.bench_inputs import read_sequences

    told = config["worker"]
    torch.set_num_threads(told["threads"])
    world = current_world()
    loops = {name: OurLoop(read_sequences(folder), world=world) for name, folder in told["folders"].items()}
    Baton(Path(told["baton"])).serve(lambda data, batches: loops[data].run(batches), tells=world.rank == 0)
    report({"final": True}, {})
