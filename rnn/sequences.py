"""From videos on a grid to what a network eats: chosen, filled, smoothed, standardised, and padded batch by batch.

Everything here is an array operation over all videos at once. What was learnt from training videos alone (resting
values, scale, range) is a `Normaliser` of plain numbers, which travels with the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mma.descriptors import BASIC_EXPRESSIONS, VALENCE_AROUSAL
from rnn.grid import Floats, GridVideos, Indices

FILLS = ("hold", "interpolate", "zero")
CLIP = 5.0
"""Standardised values are cut here, in deviations (PAPER.md, "Chunks and gaps" [ours])."""
MOST_LOG_ODDS = 6.0
"""Log odds are cut here: probabilities nearer than .0025 to 0 or 1 differ by a network's confidence alone."""


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """How videos become sequences; recorded with the model, and applied to whatever it predicts."""

    descriptors: tuple[str, ...] = ("all",)
    """all, va, expressions, aus, or names of descriptors, in any mixture."""
    fill: Literal["hold", "interpolate", "zero"] = "hold"
    """What stands for a step without a face: the last one seen, a line between its neighbours, or the resting value."""
    normalise: Literal["corpus", "video", "subject"] = "corpus"
    """Whose median counts as rest: the corpus's mean, or the video's or the person's own median."""
    probabilities: Literal["plain", "log-odds"] = "plain"
    """How expressions and AUs enter: as they are, or as log odds, in which a resting face that looks a little like an
    AU is an offset, for `normalise` to take away, and not a limit."""
    smooth_s: float = 0.0
    """Length of a centred moving mean over known steps, seconds; 0: none."""

    def __post_init__(self) -> None:
        if not self.descriptors:
            raise ValueError("--sequence.descriptors is empty: give all, va, expressions, aus, or names")
        if not self.smooth_s >= 0:
            raise ValueError(f"--sequence.smooth-s {self.smooth_s}: give 0 or more seconds")


def chosen_names(asked: Sequence[str], there: Sequence[str]) -> tuple[str, ...]:
    """Descriptors of a store by family or name, in the store's order.

    Raises ValueError for a name that is not there, with those that are.
    """
    expressions, units = _expressions(there), _action_units(there)
    families = {"all": set(there), "va": set(VALENCE_AROUSAL) & set(there), "expressions": expressions, "aus": units}
    wanted: set[str] = set()
    for word in asked:
        found = families.get(word.lower(), {word} & set(there))
        if not found:
            raise ValueError(
                f"--sequence.descriptors {word}: the store has none of that name: give all, va, expressions, aus, or "
                f"of {', '.join(there)}"
            )
        wanted |= found
    return tuple(name for name in there if name in wanted)


def _expressions(names: Sequence[str]) -> set[str]:
    return {*BASIC_EXPRESSIONS, "other"} & set(names)


def _action_units(names: Sequence[str]) -> set[str]:
    return {name for name in names if name.startswith("AU") and name[2:4].isdigit()}


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """What training videos say of each descriptor: its rest, its scale and its range. Plain numbers, (D,) each."""

    names: tuple[str, ...]
    mean: tuple[float, ...]
    """Subtracted; where rest is a video's or a person's own, only for those without any known step."""
    scale: tuple[float, ...]
    """Divided by: the deviation over known steps, around whatever counts as rest; 1 for what never varies."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    """The range of the training's known steps as they enter, before any scaling."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {name: list(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Normaliser:
        """What `to_dict` gave."""
        return cls(**{name: tuple(value) for name, value in told.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences:
    """N sequences, each of at least one step, ready for a network."""

    names: tuple[str, ...]
    values: Floats
    """(S, D) standardised and filled, all sequences after one another."""
    offsets: Indices
    """(N + 1,)."""
    outside: Floats
    """(N,) share of a sequence's known steps in which some descriptor lies outside the training's range."""

    @property
    def lengths(self) -> Indices:
        """(N,) true lengths in steps."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def take(self, rows: npt.NDArray[np.int64]) -> list[Floats]:
        """The sequences of these numbers, each (l, D)."""
        return [self.values[self.offsets[row] : self.offsets[row + 1]] for row in rows]


def select(grid: GridVideos, videos: npt.NDArray[np.int64], names: Sequence[str]) -> GridVideos:
    """These videos alone, in this order, with these descriptors. Their values are copied."""
    lengths = np.diff(grid.offsets)[videos]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    steps = np.repeat(grid.offsets[:-1][videos] - offsets[:-1], lengths) + np.arange(offsets[-1])
    columns = [grid.names.index(name) for name in names]
    values = np.empty((len(steps), len(columns)), np.float32)
    for start in range(0, len(steps), 2**18):  # never more of a mapped file in memory at once
        values[start : start + 2**18] = grid.values[steps[start : start + 2**18]][:, columns]
    return GridVideos(
        names=tuple(names),
        step_s=grid.step_s,
        values=values,
        offsets=offsets,
        facts=grid.facts.take(videos),
    )


def select_seen(
    grid: GridVideos, videos: npt.NDArray[np.int64], names: Sequence[str]
) -> tuple[npt.NDArray[np.int64], GridVideos]:
    """Of these videos those that show the face in some step: which of them, and they alone as `select` gives them."""
    chosen = select(grid, videos, names)
    seen = np.flatnonzero(has_steps(chosen))
    return seen, chosen if len(seen) == len(videos) else select(chosen, seen, names)


def known_steps(grid: GridVideos) -> npt.NDArray[np.bool_]:
    """(S,) whether a step shows the face."""
    return np.asarray(~np.isnan(grid.values).any(axis=1))


def has_steps(grid: GridVideos) -> npt.NDArray[np.bool_]:
    """(N,) whether some step of a video shows the face: the others have no sequence."""
    counted = np.concatenate([[0], np.cumsum(known_steps(grid))])
    return np.asarray(counted[grid.offsets[1:]] > counted[grid.offsets[:-1]])


def fit_normaliser(grid: GridVideos, options: SequenceOptions, people: npt.NDArray[np.int64] | None) -> Normaliser:
    """From training videos alone; `people` (N,): numbers of the persons, needed where they have a rest of their own.

    Raises ValueError without any known step, and where log odds are asked of what is no probability.
    """
    known = known_steps(grid)
    if not known.any():
        raise ValueError("no training video shows a face in any frame")
    grid = _entering(grid, options)
    seen = grid.values[known].astype(np.float64)
    centred = (grid.values - _rest(grid, known, options, people, seen.mean(axis=0)))[known].astype(np.float64)
    scale = np.sqrt(((centred - centred.mean(axis=0)) ** 2).mean(axis=0))
    # float32 inputs: what never varies shows a deviation of rounding alone.
    still = scale <= 1e-6 * np.maximum(np.abs(seen).max(axis=0), 1e-30)
    return Normaliser(
        names=grid.names,
        mean=tuple(seen.mean(axis=0).tolist()),
        scale=tuple(np.where(still, 1.0, scale).tolist()),
        low=tuple(seen.min(axis=0).tolist()),
        high=tuple(seen.max(axis=0).tolist()),
    )


def to_sequences(
    grid: GridVideos, options: SequenceOptions, normaliser: Normaliser, people: npt.NDArray[np.int64] | None = None
) -> Sequences:
    """The sequences of videos that all have a known step (`has_steps`), with the normaliser's descriptors.

    `people` (N,): numbers of the persons; None, where rest is theirs: each video is taken for a person.
    Raises ValueError for other descriptors than the normaliser's, for a video without a known step, and where log odds
    are asked of what is no probability.
    """
    if grid.names != normaliser.names:
        raise ValueError(f"descriptors {grid.names} do not fit a model of {normaliser.names}")
    if not has_steps(grid).all():
        raise ValueError("a video without a face in any step has no sequence: leave it out")
    known = known_steps(grid)
    grid = _entering(grid, options)
    video = np.repeat(np.arange(len(grid)), np.diff(grid.offsets))
    with np.errstate(invalid="ignore"):
        off = ((grid.values < _row(normaliser.low)) | (grid.values > _row(normaliser.high))).any(axis=1)
    counts = np.bincount(video, known, len(grid))
    outside = np.bincount(video, off & known, len(grid)) / np.maximum(counts, 1)
    mean = np.asarray(normaliser.mean)
    values: Floats = (grid.values - _rest(grid, known, options, people, mean)) / _row(normaliser.scale)
    width = round(options.smooth_s / grid.step_s)
    if width > 1:
        values = _smoothed(values, known, grid.offsets, width)
    values = _filled(values, known, grid.offsets, video, options.fill)
    return Sequences(
        names=grid.names,
        values=np.clip(values, -CLIP, CLIP).astype(np.float32),
        offsets=grid.offsets,
        outside=outside.astype(np.float32),
    )


def _entering(grid: GridVideos, options: SequenceOptions) -> GridVideos:
    """The same videos with probabilities as the options have them."""
    if options.probabilities == "plain" or not len(grid.values):
        return grid
    values = np.array(grid.values, np.float32)
    for name in sorted(_expressions(grid.names) | _action_units(grid.names)):
        column = grid.names.index(name)
        own = values[:, column]
        low, high = (float(each) for each in (np.nanmin(own), np.nanmax(own)))
        if low < 0 or high > 1:
            raise ValueError(
                f"--sequence.probabilities log-odds: {name} runs from {low:.3g} to {high:.3g} in this store, so it is "
                "no probability: give plain"
            )
        with np.errstate(divide="ignore"):
            odds = np.log(own) - np.log1p(-own)
        values[:, column] = odds.clip(-MOST_LOG_ODDS, MOST_LOG_ODDS)
    return replace(grid, values=values)


def _row(numbers: Sequence[float]) -> Floats:
    return np.asarray(numbers, np.float32)


def _rest(
    grid: GridVideos,
    known: npt.NDArray[np.bool_],
    options: SequenceOptions,
    people: npt.NDArray[np.int64] | None,
    mean: npt.NDArray[np.float64],
) -> Floats:
    """What counts as rest, (1, D) or (S, D)."""
    if options.normalise == "corpus":
        return np.asarray(mean, np.float32)[None]
    owner = np.arange(len(grid)) if people is None or options.normalise == "video" else people
    of_step = np.repeat(owner, np.diff(grid.offsets))
    rest = np.tile(np.asarray(mean, np.float32), (int(owner.max(initial=-1)) + 1, 1))
    order = np.argsort(of_step[known], kind="stable")
    rows, whose = np.flatnonzero(known)[order], of_step[known][order]
    starts = np.flatnonzero(np.diff(whose, prepend=-1))
    for start, end in zip(starts, np.append(starts[1:], len(whose))):
        rest[whose[start]] = np.median(grid.values[rows[start:end]], axis=0)
    return rest[of_step]


def _smoothed(values: Floats, known: npt.NDArray[np.bool_], offsets: Indices, width: int) -> Floats:
    """A centred mean over the known ones of `width` steps (of an even width, the earlier half has one more)."""
    steps = np.arange(len(values))
    first, last = (np.repeat(each, np.diff(offsets)) for each in (offsets[:-1], offsets[1:]))
    begin, end = np.maximum(steps - width // 2, first), np.minimum(steps + (width - 1) // 2 + 1, last)
    sums = np.concatenate([np.zeros((1, values.shape[1])), np.where(known[:, None], values, 0).cumsum(0, np.float64)])
    counts = np.concatenate([[0], known.cumsum()])
    number = (counts[end] - counts[begin])[:, None]
    return np.where(known[:, None], (sums[end] - sums[begin]) / np.maximum(number, 1), np.nan).astype(np.float32)


def _filled(values: Floats, known: npt.NDArray[np.bool_], offsets: Indices, video: Indices, fill: str) -> Floats:
    if known.all():
        return values
    if fill == "zero":
        return np.where(known[:, None], values, np.float32(0))
    steps = np.arange(len(values))
    # The last known step at or before each step, and the first at or after; none in the same video: -1 and S.
    before = np.maximum.accumulate(np.where(known, steps, -1))
    after = np.minimum.accumulate(np.where(known, steps, len(values))[::-1])[::-1]
    before = np.where(before >= offsets[:-1][video], before, -1)
    after = np.where(after < offsets[1:][video], after, len(values))
    lone_start, lone_end = before < 0, after == len(values)
    before, after = np.where(lone_start, after, before), np.where(lone_end, before, after)
    if fill == "hold":
        return values[before]
    weight = ((steps - before) / np.maximum(after - before, 1)).astype(np.float32)
    weight = np.clip(weight, 0, 1)[:, None]
    return values[before] * (1 - weight) + values[after] * weight
