"""Progress for people, on stderr: a live bar in a terminal, a line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_INTERVAL_S = 10.0
"""Between two lines where stderr is no terminal."""


def say(message: str) -> None:
    """A line for people."""
    print(message, file=sys.stderr, flush=True)


class RunProgress:
    """Videos done of all, frames a second, failures and the time left.

    `total` counts what this run has to do; frames a second are of the last minute or of the run so far.
    """

    def __init__(self, total: int, *, unit: str = "videos"):
        self.total, self.unit = total, unit
        self.done = self.frames = self.failed = 0
        self.on_tick: Callable[[], None] | None = None
        """Called at every look."""
        self._started_s = time.monotonic()
        self._told_s = self._started_s
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn(unit),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=Console(file=sys.stderr),
            )
            self._task = self._bar.add_task(unit, total=total, told="starting")

    def __enter__(self) -> RunProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()
        elif self.done:
            say(self.line())

    def advance(self, *, frames: int = 0, failed: bool = False) -> None:
        """One more is done."""
        self.done += 1
        self.frames += frames
        self.failed += failed

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started_s

    def line(self) -> str:
        """The state as one line."""
        left = "?" if not self.done else _clock((self.total - self.done) * self.seconds / self.done)
        return f"{self.done}/{self.total} {self.unit}, {self._rate()}, {left} left"

    def _rate(self) -> str:
        return f"{self.frames / max(self.seconds, 1e-9):.0f} frames/s, {self.failed} failed"

    def tick(self) -> None:
        """Draw, if it is time to."""
        if self.on_tick:
            self.on_tick()
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=self.done, told=self._rate())
        elif now - self._told_s >= LOG_INTERVAL_S:
            self._told_s = now
            say(self.line())


_VAL_TOLD = ("val_valence_ccc", "val_arousal_ccc", "val_expression_f1", "val_au_f1", "val_abaw_score")


class EpochProgress:
    """A line an epoch: loss, validation scores, speed, and the time left."""

    def __init__(self, epochs: int):
        self.epochs, self.told = epochs, 0

    def tell(self, history: list[dict[str, Any]]) -> None:
        """Tell those epochs of a training's history that were not told yet."""
        for entry in history[self.told :]:
            left_s = (self.epochs - entry["epoch"] - 1) * entry["seconds"]
            val = [f"{name[4:]} {entry[name]:.3f}" for name in _VAL_TOLD if name in entry]
            say(
                f"epoch {entry['epoch'] + 1}/{self.epochs}: loss {entry['loss_total']:.3f}"
                f"{', val ' if val else ''}{', '.join(val)}, {entry['samples_per_s']:.0f} samples/s, "
                f"{left_s / 60:.1f} min left at most"
            )
        self.told = max(self.told, len(history))


class SeedProgress:
    """A line every few seconds for the epochs of several seeds, and one at the end of each seed."""

    def __init__(self, epochs: int, seeds: Sequence[int]):
        self.epochs, self.seeds = epochs, list(seeds)
        self.told, self._told_s = 0, 0.0

    def tell(self, history: list[dict[str, Any]]) -> None:
        """Tell what is new in a training's history, at most once in `LOG_INTERVAL_S / 5` within a seed."""
        new = history[self.told :]
        if not new:
            return
        ends = [entry for entry, after in zip(new, [*new[1:], None]) if after and after["seed"] != entry["seed"]]
        now = time.monotonic()
        if now - self._told_s >= LOG_INTERVAL_S / 5:
            ends.append(new[-1])
            self._told_s = now
        for entry in ends:
            val = f", val mean Pearson {entry['val_mean_pearson']:.3f}" if "val_mean_pearson" in entry else ""
            if val and "val_ridge_pearson" in entry:
                val += f" (ridge {entry['val_ridge_pearson']:.3f})"
            loss = f"loss {entry['loss_total']:.3f}" if entry.get("loss_total") is not None else "no batch had a loss"
            say(
                f"seed {entry['seed']} ({self.seeds.index(entry['seed']) + 1} of {len(self.seeds)}), epoch "
                f"{entry['seed_epoch'] + 1}/{self.epochs}: {loss}{val}, {entry['samples_per_s']:.0f} videos/s"
            )
        self.told = len(history)


class SweepProgress:
    """A line every few seconds for a sweep: what has ended, what runs, and the best so far."""

    def __init__(self, total: int):
        self.total = total
        self._told_s = time.monotonic()
        self._ended = -1

    def tell(self, book: Any) -> None:
        """Tell how a `jobs.sweep_book.Book` stands: at each trial's end, and at most every `LOG_INTERVAL_S` between."""
        records = book.ordered()
        counts = {state: sum(each.state == state for each in records) for state in ("done", "stopped", "failed")}
        ended, now = sum(counts.values()), time.monotonic()
        if ended == self._ended and now - self._told_s < LOG_INTERVAL_S:
            return
        self._ended, self._told_s = ended, now
        running = [f"{each.number} (epoch {each.epochs})" for each in records if each.state == "running"]
        best = book.best()
        say(
            f"{ended}/{self.total} trials: {', '.join(f'{count} {state}' for state, count in counts.items() if count)}"
            f"{'; running ' if running else ''}{', '.join(running)}"
            + (f"; best {best.number}: val mean Pearson {best.score:.3f}" if best else "")
        )


def _clock(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
