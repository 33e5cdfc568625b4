"""The scores of stage 1, from counts and moments that merge exactly: any sharding of a split gives the whole's score.

Conventions (PAPER.md, "Metrics"): population moments and counts are pooled over the split, never scores averaged over
batches or workers. A column whose predictions or labels are constant has CCC 0 and is flagged, never NaN. A class or
action unit without positive labels leaves the mean and is listed with n = 0. A mean over nothing is 0.

`of(...)` takes a batch, `merge` two disjoint parts of a split, `state` and `from_state` go through JSON unchanged.
Plain NumPy; probabilities and labels lie in the orders of a `DescriptorSet`, results are by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from mma.descriptors import DescriptorSet

THRESHOLDS = tuple(k / 100 for k in range(1, 100))
"""Where action unit probabilities are counted. For calibrated probabilities the best threshold for F1 is half the best
F1, which is never under the share of positives: steps of .01 do for units down to 1 % positives."""
DEFAULT_THRESHOLD = 0.5

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
Part = TypeVar("Part", bound="_Part")


class _Part:
    """A frozen dataclass of tuples, which say what is counted, and of arrays, which add up over disjoint parts."""

    def merge(self: Part, other: Part) -> Part:
        """Of both parts together. Raises ValueError where they do not count the same things."""
        mine, others = vars(self), vars(other)
        for name, value in mine.items():
            if isinstance(value, tuple) and value != others[name]:
                raise ValueError(f"parts with different {name} do not merge: {value} and {others[name]}")
        return type(self)(**{name: self._merged(other, name) for name in mine})

    def _merged(self, other: Any, name: str) -> Any:
        mine = getattr(self, name)
        return mine if isinstance(mine, tuple) else mine + getattr(other, name)

    def state(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return {name: list(each) if isinstance(each, tuple) else each.tolist() for name, each in vars(self).items()}

    @classmethod
    def from_state(cls: type[Part], state: Mapping[str, Any]) -> Part:
        """What `state` gave, bit for bit."""
        kept = ("names", "thresholds")
        return cls(**{name: tuple(each) if name in kept else np.array(each) for name, each in state.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class PairMoments(_Part):
    """Population moments of predictions x and labels y over the known cells of each of K columns."""

    names: tuple[str, ...]
    """The K columns."""
    count: Counts
    """Known cells, (K,) as all that follows; 0 where the column has none, and then its other fields are 0."""
    mean: Floats
    """(2, K): of x and of y."""
    squares: Floats
    """(2, K): sums of squared deviations, M2."""
    products: Floats
    """(K,): sum of products of deviations, C."""
    lowest: Floats
    """(2, K). With `highest` tells a constant column exactly, where M2 would hold rounding errors."""
    highest: Floats
    """(2, K)."""

    @classmethod
    def of(
        cls, names: Sequence[str], prediction: npt.ArrayLike, label: npt.ArrayLike, known: npt.ArrayLike
    ) -> PairMoments:
        """Float (N, K), float (N, K), bool (N, K). Raises ValueError for a prediction or known label not finite."""
        mask = np.asarray(known, dtype=bool)
        pair = np.stack([_table(prediction, names), _table(label, names)])
        pair = np.where(mask, pair, 0.0)
        _demand_finite(pair)
        count = mask.sum(axis=0)
        mean = pair.sum(axis=1) / np.maximum(count, 1)
        deviation = np.where(mask, pair - mean[:, None], 0.0)
        lowest = np.where(mask, pair, np.inf).min(axis=1, initial=np.inf)
        highest = np.where(mask, pair, -np.inf).max(axis=1, initial=-np.inf)
        return cls(
            names=tuple(names),
            count=count,
            mean=mean,
            squares=np.square(deviation).sum(axis=1),
            products=(deviation[0] * deviation[1]).sum(axis=0),
            lowest=np.where(count > 0, lowest, 0.0),
            highest=np.where(count > 0, highest, 0.0),
        )

    def _merged(self, other: PairMoments, name: str) -> Any:
        """After Chan et al., PAPER.md, "Metrics"."""
        share = other.count / np.maximum(self.count + other.count, 1)
        delta = other.mean - self.mean
        if name == "mean":
            return self.mean + delta * share
        if name in ("lowest", "highest"):
            mine, others = getattr(self, name), getattr(other, name)
            outermost = np.minimum if name == "lowest" else np.maximum
            return outermost(np.where(self.count > 0, mine, others), np.where(other.count > 0, others, mine))
        between = {"squares": np.square(delta), "products": delta[0] * delta[1]}
        summed = super()._merged(other, name)
        return summed + between[name] * self.count * share if name in between else summed

    @property
    def constant(self) -> npt.NDArray[np.bool_]:
        """(K,): predictions or labels all have one value, or there are none."""
        return np.asarray((self.lowest >= self.highest).any(axis=0))

    def ccc(self) -> Floats:
        """(K,): 2 s_xy / (s_x^2 + s_y^2 + (mean_x - mean_y)^2); 0 for a constant column."""
        count = np.maximum(self.count, 1)
        spread = self.squares.sum(axis=0) / count + np.square(self.mean[0] - self.mean[1])
        return np.where(self.constant, 0.0, 2 * self.products / count / np.where(spread > 0, spread, 1.0))

    def pearson(self) -> Floats:
        """(K,): s_xy / (s_x s_y), within [-1, 1]; 0 for a constant column."""
        spread = np.sqrt(self.squares[0]) * np.sqrt(self.squares[1])
        return np.where(self.constant, 0.0, np.clip(self.products / np.where(spread > 0, spread, 1.0), -1.0, 1.0))


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfusionMatrix(_Part):
    """Counts of labelled samples by true and by predicted class."""

    names: tuple[str, ...]
    """The classes."""
    counts: Counts
    """(true, predicted)."""

    @classmethod
    def of(cls, names: Sequence[str], scores: npt.ArrayLike, label: npt.ArrayLike) -> ConfusionMatrix:
        """Probabilities or logits, float (N, classes), whose largest is the prediction; int (N,), -1 unknown."""
        true = np.asarray(label)
        known = true >= 0
        table = _table(scores, names)[known]
        _demand_finite(table)
        if true.max(initial=-1) >= len(names):
            raise ValueError(f"a label is class {true.max()}, but there are {len(names)}: map classes by name")
        counts = np.zeros((len(names), len(names)), dtype=np.int64)
        np.add.at(counts, (true[known], table.argmax(axis=1)), 1)
        return cls(names=tuple(names), counts=counts)

    @property
    def support(self) -> Counts:
        """Labelled samples by class, (classes,)."""
        return self.counts.sum(axis=1)

    def f1(self) -> Floats:
        """By class, (classes,); 0 for a class without labels, which the mean leaves out."""
        hits = np.diagonal(self.counts)
        return 2 * hits / np.maximum(self.support + self.counts.sum(axis=0), 1)

    def macro_f1(self) -> float:
        """The mean of F1 over the classes that have labels."""
        return _mean(self.f1()[self.support > 0])

    def accuracy(self) -> float:
        """The share of labelled samples whose class is right."""
        return float(np.trace(self.counts) / max(int(self.counts.sum()), 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class ThresholdCounts(_Part):
    """For each of K binary columns, how many known positives and negatives lie at or above each threshold."""

    names: tuple[str, ...]
    """The K columns."""
    thresholds: tuple[float, ...]
    """T thresholds, rising. A cell counts as predicted where its probability is at or above one."""
    positives: Counts
    """Known cells labelled 1, (K,)."""
    negatives: Counts
    """Known cells labelled 0, (K,)."""
    true_positives: Counts
    """(K, T)."""
    false_positives: Counts
    """(K, T)."""

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        probability: npt.ArrayLike,
        label: npt.ArrayLike,
        known: npt.ArrayLike,
        thresholds: Sequence[float] = THRESHOLDS,
    ) -> ThresholdCounts:
        """Float (N, K), 0 or 1 (N, K), bool (N, K). Raises ValueError for values not finite and labels not 0 or 1."""
        mask = np.asarray(known, dtype=bool)
        p = np.where(mask, _table(probability, names), 0.0)
        y = np.where(mask, _table(label, names), 0.0)
        _demand_finite(p)
        if not np.isin(y, (0.0, 1.0)).all():
            raise ValueError("a known action unit label is neither 0 nor 1: turn intensities and markers into those")
        edges = np.asarray(thresholds, dtype=np.float64)
        if np.any(np.diff(edges) <= 0):
            raise ValueError("thresholds must rise")
        reached = np.searchsorted(edges, p, side="right")

        def at_or_above(cells: npt.NDArray[np.bool_]) -> Counts:
            by_bin = np.zeros((len(names), len(edges) + 1), dtype=np.int64)
            column = np.broadcast_to(np.arange(len(names)), cells.shape)
            np.add.at(by_bin, (column[cells], reached[cells]), 1)
            return by_bin[:, :0:-1].cumsum(axis=1)[:, ::-1]

        positive, negative = mask & (y == 1), mask & (y == 0)
        return cls(
            names=tuple(names),
            thresholds=tuple(float(edge) for edge in edges),
            positives=positive.sum(axis=0),
            negatives=negative.sum(axis=0),
            true_positives=at_or_above(positive),
            false_positives=at_or_above(negative),
        )

    def f1(self) -> Floats:
        """Of the positive class, (K, T): 2 TP / (2 TP + FP + FN); 0 for a column without positives."""
        predicted = self.true_positives + self.false_positives
        return 2 * self.true_positives / np.maximum(predicted + self.positives[:, None], 1)

    def best_thresholds(self) -> dict[str, float]:
        """The threshold of each column's best F1 on these data, of equals the nearest to .5; .5 without positives.

        To be chosen on validation, and never on the split that a score is reported for.
        """
        distance = np.abs(np.asarray(self.thresholds) - DEFAULT_THRESHOLD)
        best = {}
        for name, positives, f1 in zip(self.names, self.positives, self.f1()):
            equals = np.flatnonzero(f1 == f1.max())
            best[name] = self.thresholds[equals[distance[equals].argmin()]] if positives else DEFAULT_THRESHOLD
        return best

    def f1_at(self, thresholds: Mapping[str, float]) -> Floats:
        """By column, (K,), at a threshold for each. Raises ValueError for one that was not counted."""
        uncounted = {name: thresholds[name] for name in self.names if thresholds[name] not in self.thresholds}
        if uncounted:
            raise ValueError(f"no counts at the thresholds {uncounted}: give those to ThresholdCounts.of")
        index = [self.thresholds.index(thresholds[name]) for name in self.names]
        return self.f1()[np.arange(len(self.names)), index]

    def mean_f1_at(self, thresholds: Mapping[str, float]) -> float:
        """The mean over the columns that have positives."""
        return _mean(self.f1_at(thresholds)[self.positives > 0])


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage1Metrics:
    """All that the scores of a split need, for the three families at once."""

    valence_arousal: PairMoments
    """Of valence and arousal."""
    expressions: ConfusionMatrix
    """Of the basic expressions."""
    action_units: ThresholdCounts
    """Of the action units."""

    @classmethod
    def of(
        cls,
        descriptor_set: DescriptorSet,
        *,
        valence_arousal: npt.ArrayLike,
        expressions: npt.ArrayLike,
        action_units: npt.ArrayLike,
        valence_arousal_label: npt.ArrayLike,
        valence_arousal_known: npt.ArrayLike,
        expression_label: npt.ArrayLike,
        action_unit_label: npt.ArrayLike,
        action_unit_known: npt.ArrayLike,
        thresholds: Sequence[float] = THRESHOLDS,
    ) -> Stage1Metrics:
        """The network's values for N frames and what is known of them, in the forms of `mma.losses.FrameLabels`.

        Expressions may be logits; action units are probabilities. N may be 0: the start of a sum.
        """
        return cls(
            valence_arousal=PairMoments.of(
                descriptor_set.valence_arousal, valence_arousal, valence_arousal_label, valence_arousal_known
            ),
            expressions=ConfusionMatrix.of(descriptor_set.expressions, expressions, expression_label),
            action_units=ThresholdCounts.of(
                descriptor_set.action_units, action_units, action_unit_label, action_unit_known, thresholds
            ),
        )

    def merge(self, other: Stage1Metrics) -> Stage1Metrics:
        """Of both parts together."""
        return Stage1Metrics(
            valence_arousal=self.valence_arousal.merge(other.valence_arousal),
            expressions=self.expressions.merge(other.expressions),
            action_units=self.action_units.merge(other.action_units),
        )

    def state(self) -> dict[str, Any]:
        """All parts as plain JSON values."""
        return {
            "valence_arousal": self.valence_arousal.state(),
            "expressions": self.expressions.state(),
            "action_units": self.action_units.state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Stage1Metrics:
        """What `state` gave."""
        return cls(
            valence_arousal=PairMoments.from_state(state["valence_arousal"]),
            expressions=ConfusionMatrix.from_state(state["expressions"]),
            action_units=ThresholdCounts.from_state(state["action_units"]),
        )

    def scores(self, thresholds: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The scores as plain JSON values, action units at the given thresholds (by name; .5 for those not given).

        `abaw_score` is the sum mean CCC + macro F1 + mean F1 of the ABAW multi-task challenge, each part over what is
        labelled; a part without any labels adds 0 and stands in `absent`. `by_name` has the counts n: known cells of
        valence and arousal, labelled samples of an expression, positives of an action unit (and its `known` cells).
        """
        moments, confusion, units = self.valence_arousal, self.expressions, self.action_units
        chosen = {name: (thresholds or {}).get(name, DEFAULT_THRESHOLD) for name in units.names}
        ccc, f1, unit_f1 = moments.ccc(), confusion.f1(), units.f1_at(chosen)
        by_name: dict[str, dict[str, Any]] = {}
        for k, name in enumerate(moments.names):
            by_name[name] = {"ccc": float(ccc[k]), "n": int(moments.count[k]), "constant": bool(moments.constant[k])}
        for k, name in enumerate(confusion.names):
            by_name[name] = {"f1": float(f1[k]), "n": int(confusion.support[k])}
        for k, name in enumerate(units.names):
            n = int(units.positives[k])
            known = n + int(units.negatives[k])
            by_name[name] = {"f1": float(unit_f1[k]), "n": n, "known": known, "threshold": chosen[name]}
        parts = {
            "valence_arousal": (_mean(ccc[moments.count > 0]), moments.count.any()),
            "expressions": (confusion.macro_f1(), confusion.support.any()),
            "action_units": (units.mean_f1_at(chosen), units.positives.any()),
        }
        return {
            **{f"{name}_ccc": by_name[name]["ccc"] for name in moments.names},
            "expression_f1": parts["expressions"][0],
            "expression_accuracy": confusion.accuracy(),
            "au_f1": parts["action_units"][0],
            "abaw_score": sum(score for score, _ in parts.values()),
            "absent": [name for name, (_, labelled) in parts.items() if not labelled],
            "by_name": by_name,
        }


def _table(values: npt.ArrayLike, names: Sequence[str]) -> Floats:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] != len(names):
        raise ValueError(f"shape {table.shape} does not fit {len(names)} columns: give (N, {len(names)})")
    return table


def _demand_finite(values: Floats) -> None:
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise ValueError(f"{bad} predictions or known labels are not finite: the training diverged or a mask is wrong")


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else 0.0
