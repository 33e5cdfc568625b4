"""What a bench row is: sides run in turns, counts that must agree before a speed is told, figures, and their table.

Shared machines are noisy, so a speed is only ever told as a ratio of two sides that took turns within one run: the
median of the turns' own ratios. A run whose counts differ has no speed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

GATE = 1 / 3
"""How far below what was reached the floor of `make bench` lies: shared machines are noisy."""


class CountsDifferError(Exception):
    """Two sides did not do the same work, or one of them not the work that was asked for."""


class SkippedError(Exception):
    """The row cannot be measured here; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one side did in one turn."""

    counts: Mapping[str, int]
    """What it did, by kind (videos, frames, ...)."""
    rate: float
    """How much of it a second."""
    videos: Mapping[str, int] = field(default_factory=dict)
    """Frames by video id, where the work is of videos."""
    seconds: float = 0.0
    """Of the whole command, its start included."""
    memory_bytes: int = 0
    """Of all its processes together, where it was watched."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of a row, and what it should reach."""

    name: str
    value: float
    unit: str = ""
    """None: a ratio."""
    ours: float | None = None
    theirs: float | None = None
    """Medians of what the ratio is of, in `of`."""
    of: str = ""
    to_reach: float | None = None
    at_most: bool = False
    """Whether less is better."""
    reached: float | None = None
    """What the small version reached on a quiet machine; None: no gate."""

    @property
    def good(self) -> bool | None:
        """Whether it is what it should be; None where nothing is asked."""
        if self.to_reach is None:
            return None
        return self.value <= self.to_reach if self.at_most else self.value >= self.to_reach

    @property
    def floor(self) -> float | None:
        """The gate of `make bench`: a third worse than what was reached."""
        if self.reached is None:
            return None
        return self.reached * (1 + GATE if self.at_most else 1 - GATE)

    @property
    def through(self) -> bool:
        """Whether it passes that gate."""
        if self.floor is None:
            return True
        return self.value <= self.floor if self.at_most else self.value >= self.floor


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: what is measured, beside what."""

    id: str
    measured: str
    beside: str
    measure: Callable[[Any], Sequence[Figure]]
    """Gets the `jobs.bench_inputs.Bench`. Raises CountsDifferError and SkippedError."""


State = Literal["done", "skipped", "failed"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row once it was measured."""

    row: Row
    state: State
    why: str = ""
    """Why there is no figure, or which gate it did not pass."""
    figures: Sequence[Figure] = ()
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        told = [{**asdict(each), "good": each.good, "floor": each.floor} for each in self.figures]
        about = {"id": self.row.id, "measured": self.row.measured, "beside": self.row.beside, "state": self.state}
        return {**about, "why": self.why, "seconds": round(self.seconds, 1), "figures": told}


def gated(result: Result) -> Result:
    """The result as the small version takes it: failed where a figure lies beyond its gate."""
    if missed := [each for each in result.figures if not each.through]:
        sign = {True: "over", False: "under"}
        why = "; ".join(f"{e.name} {shown(e.value)} lies {sign[e.at_most]} {shown(e.floor)}" for e in missed)
        return Result(row=result.row, state="failed", why=why, figures=result.figures, seconds=result.seconds)
    return result


# --- turns ---


def demand_equal(ours: Turn, theirs: Turn) -> None:
    """Raises CountsDifferError where two sides did not do the same."""
    if dict(ours.counts) != dict(theirs.counts):
        raise CountsDifferError(f"counts differ: {_told(ours.counts)} beside {_told(theirs.counts)}")
    if dict(ours.videos) != dict(theirs.videos):
        ids = sorted({*ours.videos, *theirs.videos})
        first = next(each for each in ids if ours.videos.get(each) != theirs.videos.get(each))
        raise CountsDifferError(
            f"videos differ, such as {first!r}: {ours.videos.get(first)} frames beside {theirs.videos.get(first)}"
        )


def _told(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items())


def take_turns(sides: Mapping[str, Callable[[], Turn]], turns: int) -> dict[str, list[Turn]]:
    """All sides one after another, turn by turn, each turn begun by another one.

    Raises CountsDifferError in the first turn in which a side did not do the same as the first side.
    """
    names = list(sides)
    found: dict[str, list[Turn]] = {name: [] for name in names}
    for turn in range(turns):
        begin = turn % len(names)
        for name in names[begin:] + names[:begin]:
            found[name].append(sides[name]())
        for name in names[1:]:
            demand_equal(found[names[0]][-1], found[name][-1])
    return found


def ratio_figure(ours: Sequence[Turn], theirs: Sequence[Turn], *, name: str, of: str, **settings: Any) -> Figure:
    """How many times the rate of their side ours has: the median over the turns."""
    return Figure(
        name=name,
        value=statistics.median(mine.rate / other.rate for mine, other in zip(ours, theirs)),
        ours=statistics.median(turn.rate for turn in ours),
        theirs=statistics.median(turn.rate for turn in theirs),
        of=of,
        **settings,
    )


def steady_rate(arrivals: Sequence[tuple[float, int]], *, share: float = 0.3) -> float:
    """Units a second once everything runs: from the arrival with which `share` of all had come to the last one.

    `arrivals`: (seconds on any clock, units), in any order. What a start leaves waiting in queues is worked off
    within the first part.
    """
    ordered = sorted(arrivals)
    total, seen = sum(units for _, units in ordered), 0
    for time_s, units in ordered:
        seen += units
        if seen >= share * total:
            return (total - seen) / max(ordered[-1][0] - time_s, 1e-9)
    return 0.0


# --- the table ---


def shown(value: float | None) -> str:
    """A number with three figures that count."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def line(result: Result) -> str:
    """A row as a line for people, while the others are measured."""
    if not result.figures:
        return f"{result.row.id}: {result.state}: {result.why}"
    told = []
    for each in result.figures:
        sides = "" if each.ours is None else f" ({shown(each.ours)} beside {shown(each.theirs)} {each.of})"
        told.append(f"{each.name} {shown(each.value)}{f' {each.unit}' if each.unit else ''}{sides}")
    return f"{result.row.id}: {'; '.join(told)}{f'; {result.state}: {result.why}' if result.why else ''}"


def markdown(results: Sequence[Result], about: Mapping[str, Any]) -> str:
    """The table for people and README: where and how it was measured, then a line a figure."""
    lines = [
        f"Measured by `{about['command']}` on {about['machine']} ({about['versions']}), medians of turns.",
        "",
        "| row | measured | beside | ours | theirs | figure | to reach |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in results:
        head = f"| `{each.row.id}` | {each.row.measured} | {each.row.beside} |"
        if not each.figures:
            lines.append(f"{head} | | {each.state}: {each.why} | |")
        for figure in each.figures:
            unit = f" {figure.unit}" if figure.unit else ""
            of = f" {figure.of}" if figure.of else ""
            sides = [f"{shown(side)}{of}" if side is not None else "" for side in (figure.ours, figure.theirs)]
            value = (
                f"{figure.name} {'**' if figure.good else ''}{shown(figure.value)}{unit}{'**' if figure.good else ''}"
            )
            bound = (
                "" if figure.to_reach is None else f"{'≤' if figure.at_most else '≥'} {shown(figure.to_reach)}{unit}"
            )
            lines.append(f"{head} {sides[0]} | {sides[1]} | {value} | {bound} |")
            head = "| | | |"
        if each.figures and each.state == "failed":
            lines.append(f"| | | | | | failed: {each.why} | |")
    return "\n".join(lines) + "\n"
