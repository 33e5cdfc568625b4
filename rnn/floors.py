"""What simple predictors reach on the same videos: the floors beside every score of stage 2.

All are fitted on the training split and choose their penalty on validation: the mean label, ridge on summary
statistics of the descriptors, ridge on what is known beside the picture, and the best single statistic.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rnn.metrics import ReactionMetrics
from rnn.reactions import REACTIONS

Floats = npt.NDArray[np.float64]
Columns = Mapping[str, tuple[str, ...] | None]
"""Of metadata, by name: numbers (None), or the words that are told apart."""

PENALTIES = tuple(10.0**k for k in np.arange(-3, 5.01, 0.5))
"""Of ridge, times the number of videos; the best on validation is taken."""
VIDEOS_AT_ONCE = 512
"""Their steps are taken as float64 together."""
MOST_CATEGORIES = 30
"""Values of a column of words that are told apart, the commonest; the others are one."""


def summary_statistics(values: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> Floats:
    """Mean, maximum and deviation over known steps of each descriptor, and the log of their number: (N, 3 D + 1).

    `values` (S, D), NaN in unknown steps, of N videos after one another, the k-th from step `offsets[k]` up to
    `offsets[k + 1]`. A video without any known step is NaN throughout, which a fitted floor takes for the mean.
    """
    edges = [*range(0, len(offsets) - 1, VIDEOS_AT_ONCE), len(offsets) - 1]
    parts = [_statistics(values, offsets[a : b + 1]) for a, b in itertools.pairwise(edges)]
    return np.concatenate([np.zeros((0, 3 * values.shape[1] + 1)), *parts])


def _statistics(values: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]) -> Floats:
    values = values[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    known: npt.NDArray[np.bool_] = np.asarray(~np.isnan(values).any(axis=1))
    # Steps that are unknown, and with them videos that have no known one, are gone before anything is summed:
    # `reduceat` gives an empty segment the next one's first value.
    count = np.bincount(np.repeat(np.arange(len(lengths)), lengths), known, len(lengths)).astype(np.int64)
    found = np.full((len(lengths), 3 * values.shape[1] + 1), np.nan)
    some = count > 0
    if some.any():
        steps, n = values[known].astype(np.float64), count[some]
        starts = np.cumsum(n) - n
        mean = np.add.reduceat(steps, starts) / n[:, None]
        maximum = np.maximum.reduceat(steps, starts)
        steps -= np.repeat(mean, n, axis=0)
        deviation = np.sqrt(np.add.reduceat(np.square(steps, out=steps), starts) / n[:, None])
        found[some] = np.concatenate([mean, maximum, deviation, np.log1p(n)[:, None]], axis=1)
    return found


@dataclass(frozen=True, eq=False)
class _Ridge:
    """Standardised columns to 7 reactions."""

    centre: Floats
    scale: Floats
    weights: Floats
    """(K + 1, 7); the last row is the intercept."""

    def to_dict(self) -> dict[str, Any]:
        return {name: each.tolist() for name, each in vars(self).items()}

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> _Ridge:
        # A ridge on no column at all has weights (1, 7) still.
        return cls(**{name: np.array(each, np.float64) for name, each in told.items()})

    def __call__(self, x: Floats) -> Floats:
        return _standard(x, self.centre, self.scale) @ self.weights[:-1] + self.weights[-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Floors:
    """Fitted floors; `predict` gives each one's predictions. They travel with a model (`to_dict`), so that a score on
    a store without training videos has them beside it."""

    mean: Floats
    statistics: _Ridge
    metadata: tuple[_Ridge, Columns] | None
    best: tuple[npt.NDArray[np.int64], Floats, Floats, Floats]
    """By reaction: a column of the statistics, its centre, a slope and an intercept."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "mean": self.mean.tolist(),
            "statistics": self.statistics.to_dict(),
            "metadata": None if self.metadata is None else [self.metadata[0].to_dict(), dict(self.metadata[1])],
            "best": [each.tolist() for each in self.best],
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Floors:
        """What `to_dict` gave."""
        metadata = None
        if told["metadata"] is not None:
            ridge, columns = told["metadata"]
            words = {name: None if each is None else tuple(each) for name, each in columns.items()}
            metadata = (_Ridge.from_dict(ridge), words)
        columns, *numbers = (np.array(each) for each in told["best"])
        return cls(
            mean=np.array(told["mean"]),
            statistics=_Ridge.from_dict(told["statistics"]),
            metadata=metadata,
            best=(columns.astype(np.int64), *numbers),  # type: ignore[arg-type]
        )

    def predict(self, statistics: Floats, metadata: pa.Table | None) -> dict[str, Floats]:
        """By floor, (N, 7)."""
        columns, centre, slope, intercept = self.best
        chosen = _standard(statistics[:, columns], centre, np.ones(len(columns)))
        found = {
            "constant": np.tile(self.mean, (len(statistics), 1)),
            "ridge_statistics": self.statistics(statistics),
            "best_descriptor": chosen * slope + intercept,
        }
        if self.metadata is not None and metadata is not None:
            ridge, of_training = self.metadata
            found["ridge_metadata"] = ridge(_numbers(metadata, of_training))
        return found


def fit_floors(
    train_statistics: Floats,
    train_metadata: pa.Table | None,
    train_labels: npt.NDArray[np.float32],
    val_statistics: Floats,
    val_metadata: pa.Table | None,
    val_labels: npt.NDArray[np.float32],
) -> Floors:
    """Statistics (N, K) and tables of N rows whose columns are numbers or words; labels (N, 7), NaN where unknown."""
    labels, judge = np.asarray(train_labels, np.float64), np.asarray(val_labels, np.float64)
    known = ~np.isnan(labels)
    mean = np.where(known, labels, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    metadata = None
    if train_metadata is not None and val_metadata is not None:
        columns = _columns(train_metadata)
        known_of, judged_of = (_numbers(each, columns) for each in (train_metadata, val_metadata))
        metadata = (_best_ridge(known_of, labels, judged_of, judge), columns)
    return Floors(
        mean=mean,
        statistics=_best_ridge(train_statistics, labels, val_statistics, judge),
        metadata=metadata,
        best=_best_column(train_statistics, labels, mean),
    )


def _best_ridge(x: Floats, y: Floats, val_x: Floats, val_y: Floats) -> _Ridge:
    there = np.isfinite(x)
    count = np.maximum(there.sum(axis=0), 1)
    centre = np.where(there, x, 0).sum(axis=0) / count  # 0 for a column that nobody has
    scale = np.sqrt((np.where(there, x - centre, 0) ** 2).sum(axis=0) / count)
    scale = np.where(scale > 1e-9, scale, 1.0)
    z = _standard(x, centre, scale)
    fits: list[Floats] = [np.zeros((x.shape[1] + 1, y.shape[1])) for _ in PENALTIES]
    for column in range(y.shape[1]):
        own = ~np.isnan(y[:, column])
        if own.sum() < 2:
            continue
        a, b = z[own], y[own, column]
        middle, target = a.mean(axis=0), b.mean()
        values, vectors = np.linalg.eigh((a - middle).T @ (a - middle))
        projected = vectors.T @ ((a - middle).T @ (b - target))
        for fit, penalty in zip(fits, PENALTIES):
            weights = vectors @ (projected / (np.maximum(values, 0) + penalty * len(a)))
            fit[:-1, column], fit[-1, column] = weights, target - middle @ weights
    ridges = [_Ridge(centre, scale, fit) for fit in fits]
    if not np.isfinite(val_y).any():
        return ridges[PENALTIES.index(min(PENALTIES, key=lambda each: abs(each - 0.1)))]
    return max(ridges, key=lambda ridge: ReactionMetrics.of(ridge(val_x), val_y).scores()["mean_pearson"])


def _standard(x: Floats, centre: Floats, scale: Floats) -> Floats:
    """What is unknown as the mean: 0."""
    z = (x - centre) / scale
    return np.where(np.isfinite(z), z, 0.0)


def _best_column(x: Floats, y: Floats, mean: Floats) -> tuple[npt.NDArray[np.int64], Floats, Floats, Floats]:
    columns, centre = np.zeros(len(REACTIONS), np.int64), np.zeros(len(REACTIONS))
    slope = np.zeros(len(REACTIONS))
    for reaction in range(len(REACTIONS)):
        own = ~np.isnan(y[:, reaction]) & np.isfinite(x).all(axis=1)
        if own.sum() < 3:
            continue
        dx, dy = x[own] - x[own].mean(axis=0), y[own, reaction] - y[own, reaction].mean()
        spread = np.sqrt((dx**2).sum(axis=0) * (dy**2).sum())
        r = (dx * dy[:, None]).sum(axis=0) / np.where(spread > 1e-12, spread, np.inf)
        columns[reaction] = best = int(np.abs(r).argmax())
        centre[reaction] = x[own, best].mean()
        slope[reaction] = (dx[:, best] * dy).sum() / max((dx[:, best] ** 2).sum(), 1e-12)
    return columns, centre, slope, mean


def _columns(table: pa.Table) -> Columns:
    """The columns that say something at all: numbers, or words with the values that are told apart."""
    found: dict[str, tuple[str, ...] | None] = {}
    for name, column in zip(table.column_names, table.columns):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            counts: list[dict[str, Any]] = column.drop_null().value_counts().to_pylist()
            common = sorted(counts, key=lambda each: (-each["counts"], each["values"]))[:MOST_CATEGORIES]
            found[name] = tuple(each["values"] for each in common)
        elif not pa.types.is_null(column.type):
            found[name] = None
    return found


def _numbers(table: pa.Table, columns: Columns) -> Floats:
    """The columns of training, whatever is in them here: numbers as they are, NaN where unknown; words as a column of
    0 and 1 for each value."""
    made: list[Floats] = []
    for name, words in columns.items():
        if words is None:
            made.append(table[name].cast(pa.float64()).to_numpy())
        else:
            values = np.array(table[name].to_pylist(), object)
            made += [(values == each).astype(np.float64) for each in words]
    return np.stack(made, axis=1) if made else np.zeros((table.num_rows, 0))
