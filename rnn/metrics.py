"""The scores of stage 2: Pearson's r of each reaction over a split, CCC and absolute error beside it.

Conventions (PAPER.md, "Metrics"): population moments pooled over the split, merged exactly over any sharding. A
reaction whose predictions or labels are constant scores 0 and is flagged, never NaN; one with fewer than two known
labels leaves the mean and is listed as absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mma.metrics import PairMoments
from rnn.reactions import REACTIONS


@dataclass(frozen=True, kw_only=True, eq=False)
class ReactionMetrics:
    """All that the scores of a split need."""

    moments: PairMoments
    """Of predictions and labels, a column a reaction."""
    absolute: npt.NDArray[np.float64]
    """(7,) sums of absolute errors over known labels."""

    @classmethod
    def of(cls, predictions: npt.ArrayLike, labels: npt.ArrayLike) -> ReactionMetrics:
        """Predictions (N, 7), finite; labels (N, 7), NaN where unknown. N may be 0: the start of a sum.

        Raises ValueError for other shapes, and for a prediction that is not finite beside a known label.
        """
        p, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
        if p.shape != y.shape:
            raise ValueError(f"predictions {p.shape} and labels {y.shape} differ in shape: give both as (N, 7)")
        known = ~np.isnan(y)
        moments = PairMoments.of(REACTIONS, p, y, known)
        return cls(moments=moments, absolute=np.where(known, np.abs(p - y), 0.0).sum(axis=0))

    def merge(self, other: ReactionMetrics) -> ReactionMetrics:
        """Of both parts together."""
        return ReactionMetrics(moments=self.moments.merge(other.moments), absolute=self.absolute + other.absolute)

    def scores(self) -> dict[str, Any]:
        """Plain JSON: `mean_pearson`, `mean_ccc`, `mean_absolute_error` over the reactions with labels, `absent` ones,
        and `by_reaction` with `pearson`, `ccc`, `absolute_error`, `n`, `constant`."""
        moments = self.moments
        count = np.maximum(moments.count, 1)
        pearson, ccc, absolute = moments.pearson(), moments.ccc(), self.absolute / count
        there = moments.count >= 2
        by_reaction = {
            name: {
                "pearson": float(pearson[k]),
                "ccc": float(ccc[k]),
                "absolute_error": float(absolute[k]),
                "n": int(moments.count[k]),
                "constant": bool(moments.constant[k]) and bool(there[k]),
            }
            for k, name in enumerate(REACTIONS)
        }
        means = (float(each[there].mean()) if there.any() else 0.0 for each in (pearson, ccc, absolute))
        return {
            **dict(zip(("mean_pearson", "mean_ccc", "mean_absolute_error"), means)),
            "absent": [name for name, known in zip(REACTIONS, there) if not known],
            "by_reaction": by_reaction,
        }
