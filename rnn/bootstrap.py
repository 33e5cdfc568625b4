"""Intervals and comparisons of mean Pearson r by resampling subjects, or videos where subjects are not known.

A draw is a weight for each subject (how often it was drawn), so that all draws together are a matrix product over sums
of moments by subject; no video is copied. Comparisons use the same draws for both sides (PAPER.md, "Metrics").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rnn.metrics import ReactionMetrics

Floats = npt.NDArray[np.float64]
Groups = npt.NDArray[np.int64] | None

DRAWS = 1000
LEVEL = 0.95
LEAST_VIDEOS = 30
"""Smaller groups are not scored."""
WEIGHTS_AT_ONCE = 2**22
"""Draws are made in blocks of 32 MB."""
ROUNDING = 1e-12


def draw_scores(
    predictions: npt.ArrayLike, labels: npt.ArrayLike, groups: Groups, *, draws: int = DRAWS, seed: int = 0
) -> Floats:
    """Mean r in each draw, (draws,), as `ReactionMetrics` has it; of several seeds' predictions (S, N, 7), their mean.

    Labels (N, 7) are NaN where unknown; videos without any label are not drawn. A reaction that is constant in a draw
    scores 0 there. Equal numbers of groups and equal seeds give equal draws. Raises ValueError for other shapes.
    """
    return _mean(*_drawn(predictions, labels, groups, draws, seed))


def _drawn(
    predictions: npt.ArrayLike, labels: npt.ArrayLike, groups: Groups, draws: int, seed: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """r by draw, seed and reaction, (draws, S, 7), and whether two cells or more were known there."""
    p, y = _by_seed(predictions, labels)
    labelled = ~np.isnan(y).all(axis=1)
    owner = np.arange(len(y)) if groups is None else np.asarray(groups)
    owner = np.unique(owner[labelled], return_inverse=True)[1]
    sums = [_moment_sums(each[labelled], y[labelled], owner) for each in p]
    count = len(sums[0])
    r = np.zeros((draws, len(p), y.shape[1]))
    there = np.zeros(r.shape, bool)
    if count == 0:
        return r, there
    rng = np.random.default_rng([seed, count, draws])
    at_once = max(1, WEIGHTS_AT_ONCE // count)
    for start in range(0, draws, at_once):
        part = slice(start, min(start + at_once, draws))
        weights = rng.multinomial(count, np.full(count, 1 / count), size=part.stop - start).astype(np.float64)
        for k, each in enumerate(sums):
            r[part, k], there[part, k] = _pearson(np.tensordot(weights, each, axes=1))
    return r, there


def _mean(r: Floats, there: npt.NDArray[np.bool_]) -> Floats:
    """Over the reactions that are there, then over seeds: (draws,)."""
    return np.asarray(((r * there).sum(axis=2) / np.maximum(there.sum(axis=2), 1)).mean(axis=1))


def _by_seed(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Floats, Floats]:
    """(S, N, 7) and (N, 7)."""
    p, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    p = p[None] if p.ndim == 2 else p
    if p.ndim != 3 or p.shape[1:] != y.shape or not len(p):
        raise ValueError(f"predictions {p.shape} do not fit labels {y.shape}: give (N, 7), or (S, N, 7) of S seeds")
    return p, y


def _moment_sums(p: Floats, y: Floats, owner: npt.NDArray[np.int64]) -> Floats:
    """By owner, (G, 6, 7): the number of known cells, and the sums of p, y, p^2, y^2 and p y over these."""
    known = ~np.isnan(y)
    n = np.maximum(known.sum(axis=0), 1)
    # Centred first: differences of sums of squares far from zero lose digits.
    dp, dy = (np.where(known, each - np.where(known, each, 0.0).sum(axis=0) / n, 0.0) for each in (p, y))
    dp, dy = (each / np.maximum(np.abs(each).max(axis=0, initial=0.0), 1e-30) for each in (dp, dy))
    terms = np.stack([known, dp, dy, dp * dp, dy * dy, dp * dy], axis=1)
    by_owner = np.zeros((int(owner.max(initial=-1)) + 1, *terms.shape[1:]))
    np.add.at(by_owner, owner, terms)
    return by_owner


def _pearson(sums: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """r (draws, 7) from weighted sums (draws, 6, 7), and whether it has two known cells or more."""
    n = sums[:, 0]
    p, y, pp, yy, py = np.moveaxis(sums[:, 1:] / np.maximum(n, 1)[:, None], 1, 0)
    variance_p, variance_y = pp - p**2, yy - y**2
    # What a constant leaves are rounding errors of its second moment.
    varies = (variance_p > ROUNDING * pp) & (variance_y > ROUNDING * yy)
    spread = np.where(varies, np.sqrt(np.abs(variance_p)) * np.sqrt(np.abs(variance_y)), 1.0)
    r = np.where(varies, np.clip((py - p * y) / spread, -1.0, 1.0), 0.0)
    return r, n >= 2


def interval(
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: Groups,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """The `mean` r, with `low` and `high` that hold the share `level` of draws; `by` says what was drawn, and
    `by_reaction` has the 7 reactions' own ends.

    As wide as the draws are: of very few subjects an interval is too narrow, of one it is a point.
    """
    r, there = _drawn(predictions, labels, groups, draws, seed)
    own = np.where(there, r, 0.0).mean(axis=1)
    return {
        "mean": _score(predictions, labels),
        **_ends(_mean(r, there), level),
        "by_reaction": [_ends(own[:, k], level) for k in range(own.shape[1])],
        "by": "video" if groups is None else "subject",
        "draws": draws,
        "level": level,
    }


def paired_difference(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: Groups,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """The difference of mean r (ours less theirs) with its interval and two-sided `p`; and the `ratio` with its own.

    Predictions are (N, 7), or (S, N, 7) of several seeds, whose r is averaged inside each draw. A ratio to a score
    that is not above 0 says nothing and is None; so are its ends where theirs is not above 0 in every draw.
    """
    first, second = (draw_scores(each, labels, groups, draws=draws, seed=seed) for each in (ours, theirs))
    score, other = _score(ours, labels), _score(theirs, labels)
    difference = first - second
    wrong = int(min((difference <= 0).sum(), (difference >= 0).sum()))
    safe = other > 0 and bool((second > 0).all())
    ends = _ends(first / second, level) if safe else {"low": None, "high": None}
    return {
        "difference": score - other,
        **_ends(difference, level),
        "p": min(1.0, 2 * (wrong + 1) / (draws + 1)),
        "ratio": {"ratio": score / other if other > 0 else None, **ends},
        "by": "video" if groups is None else "subject",
        "draws": draws,
    }


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjustment of several comparisons' p."""
    adjusted, running = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        running = max(running, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = running
    return {name: adjusted[name] for name in p_values}


def group_scores(
    predictions: npt.NDArray[np.float64],
    labels: npt.NDArray[np.float32],
    named: Mapping[str, Sequence[str | None]],
    groups: Groups,
    *,
    minimum: int = LEAST_VIDEOS,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """By grouping (such as country): `scored` values with `videos`, `mean_pearson` and its interval, `not_scored` ones
    with their counts, and the `gap` of the largest to the smallest with an unpaired interval (None under two).

    `named` has a value for each of the N videos, None where unknown. Only videos with a label count.
    """
    known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(labels).any(axis=1))
    result = {}
    for grouping, values in named.items():
        if len(values) != len(known):
            raise ValueError(f"{grouping}: {len(values)} values for {len(known)} videos: give one a video, or None")
        of_value: dict[str, list[int]] = {}
        for row, value in enumerate(values):
            if value is not None and known[row]:
                of_value.setdefault(value, []).append(row)
        scored, drawn = {}, {}
        for number, (value, rows) in enumerate(sorted(of_value.items())):
            if len(rows) < minimum:
                continue
            own = None if groups is None else groups[rows]
            # Of its own seed: the people of two groups are other people.
            drawn[value] = draw_scores(predictions[rows], labels[rows], own, draws=draws, seed=seed + number)
            score = _score(predictions[rows], labels[rows])
            scored[value] = {"videos": len(rows), "mean_pearson": score, **_ends(drawn[value], LEVEL)}
        gap = None
        if len(scored) > 1:
            by_score = sorted(scored, key=lambda value: scored[value]["mean_pearson"])
            low, high = by_score[0], by_score[-1]
            gap = {
                "largest": high,
                "smallest": low,
                "difference": scored[high]["mean_pearson"] - scored[low]["mean_pearson"],
                **_ends(drawn[high] - drawn[low], LEVEL),
            }
        small = {value: len(rows) for value, rows in sorted(of_value.items()) if value not in scored}
        result[grouping] = {"scored": scored, "not_scored": small, "gap": gap}
    return result


def age_bands(ages: npt.ArrayLike) -> list[str | None]:
    """Ages in years as bands of ten from 20 on; None where unknown."""
    edges = [(0, 17), (18, 29), *((start, start + 9) for start in range(30, 70, 10)), (70, 200)]
    names = {edge: f"{edge[0]} to {edge[1]}" for edge in edges} | {(0, 17): "under 18", (70, 200): "70 and over"}
    found: list[str | None] = []
    for age in np.asarray(ages, np.float64):
        found.append(next((names[edge] for edge in edges if edge[0] <= age < edge[1] + 1), None))
    return found


def _score(predictions: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Over all videos, the mean over seeds."""
    p, y = _by_seed(predictions, labels)
    return float(np.mean([ReactionMetrics.of(each, y).scores()["mean_pearson"] for each in p]))


def _ends(scores: Floats, level: float) -> dict[str, float]:
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}
