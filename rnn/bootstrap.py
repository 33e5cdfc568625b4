"""Intervals and comparisons of mean Pearson r by resampling subjects, or videos where subjects are not known.

A draw is a weight for each subject (how often it was drawn), so that all draws together are a matrix product over sums
of moments by subject; no video is copied. Comparisons use the same draws for both sides (PAPER.md, "Metrics").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Groups = npt.NDArray[np.int64] | None

DRAWS = 1000
LEAST_VIDEOS = 30
"""Smaller groups are not scored."""


def draw_scores(
    predictions: npt.ArrayLike, labels: npt.ArrayLike, groups: Groups, *, draws: int = DRAWS, seed: int = 0
) -> Floats:
    """Mean r over the reactions in each draw, (draws,); of several seeds' predictions (S, N, 7), their mean.

    Equal numbers of groups and equal seeds give equal draws. Labels (N, 7) are NaN where unknown; a reaction that is
    constant in a draw scores 0 there.
    """
    p = np.asarray(predictions, np.float64)
    if p.ndim == 2:
        p = p[None]
    y = np.asarray(labels, np.float64)
    owner = np.arange(len(y)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(owner.max(initial=-1)) + 1
    rng = np.random.default_rng([seed, count, draws])
    weights = rng.multinomial(count, np.full(count, 1 / max(count, 1)), size=draws).astype(np.float64)
    return np.mean([_weighted_mean_pearson(each, y, owner, weights) for each in p], axis=0)


def _weighted_mean_pearson(p: Floats, y: Floats, owner: npt.NDArray[np.int64], weights: Floats) -> Floats:
    known = ~np.isnan(y)
    there = known.sum(axis=0) >= 2
    if not there.any():
        return np.zeros(len(weights))
    p, y, known = p[:, there], y[:, there], known[:, there]
    n = np.maximum(known.sum(axis=0), 1)
    # Centred first: sums of squares of uncentred values lose digits.
    dp = np.where(known, p - np.where(known, p, 0).sum(axis=0) / n, 0.0)
    dy = np.where(known, y - np.where(known, y, 0).sum(axis=0) / n, 0.0)
    dp /= np.maximum(np.abs(dp).max(axis=0), 1e-30)
    dy /= np.maximum(np.abs(dy).max(axis=0), 1e-30)
    sums = []
    for term in (known.astype(np.float64), dp, dy, dp * dp, dy * dy, dp * dy):
        by_owner = np.zeros((weights.shape[1], term.shape[1]))
        np.add.at(by_owner, owner, term)
        sums.append(weights @ by_owner)
    total, sp, sy, spp, syy, spy = sums
    total = np.maximum(total, 1.0)
    variance_p, variance_y = spp / total - (sp / total) ** 2, syy / total - (sy / total) ** 2
    covariance = spy / total - sp * sy / total**2
    alive = (variance_p > 1e-12) & (variance_y > 1e-12)
    r = np.where(alive, covariance / np.sqrt(np.where(alive, variance_p * variance_y, 1.0)), 0.0)
    return np.asarray(np.clip(r, -1, 1).mean(axis=1))


def interval(
    predictions: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: Groups,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """`low` and `high` of mean r, the share `level` of draws between them; `by` says what was drawn."""
    scores = draw_scores(predictions, labels, groups, draws=draws, seed=seed)
    return {**_ends(scores, level), "by": "video" if groups is None else "subject", "draws": draws, "level": level}


def paired_difference(
    ours: npt.ArrayLike,
    theirs: npt.ArrayLike,
    labels: npt.ArrayLike,
    groups: Groups,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """The difference of mean r (ours less theirs) with its interval and two-sided `p`; and the `ratio` with its own.

    Predictions are (N, 7), or (S, N, 7) of several seeds, averaged inside each draw.
    """
    first, second = (draw_scores(each, labels, groups, draws=draws, seed=seed) for each in (ours, theirs))
    difference = first - second
    wrong = min((difference <= 0).sum(), (difference >= 0).sum())
    ratio = first / np.where(np.abs(second) > 1e-9, second, np.nan)
    return {
        "difference": float(_score(ours, labels) - _score(theirs, labels)),
        **_ends(difference, level),
        "p": float(min(1.0, 2 * (wrong + 1) / (draws + 1))),
        "ratio": {"ratio": float(_score(ours, labels) / max(_score(theirs, labels), 1e-9)), **_ends(ratio, level)},
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
    seed: int = 0,
) -> dict[str, Any]:
    """By grouping (such as country): `scored` values with `videos`, `mean_pearson` and its interval, `not_scored` ones
    with their counts, and the `gap` of the largest to the smallest with an unpaired interval (None under two)."""
    known: npt.NDArray[np.bool_] = np.asarray(np.isfinite(labels).any(axis=1))
    result = {}
    for grouping, values in named.items():
        of_value: dict[str, list[int]] = {}
        for row, value in enumerate(values):
            if value is not None and known[row]:
                of_value.setdefault(value, []).append(row)
        scored, draws = {}, {}
        for number, (value, rows) in enumerate(sorted(of_value.items())):
            if len(rows) < minimum:
                continue
            own = None if groups is None else groups[rows]
            draws[value] = draw_scores(predictions[rows], labels[rows], own, seed=seed + number)
            score = float(_score(predictions[rows], labels[rows]))
            scored[value] = {"videos": len(rows), "mean_pearson": score, **_ends(draws[value], 0.95)}
        gap = None
        if len(scored) > 1:
            by_score = sorted(scored, key=lambda value: scored[value]["mean_pearson"])
            low, high = by_score[0], by_score[-1]
            gap = {
                "largest": high,
                "smallest": low,
                "difference": scored[high]["mean_pearson"] - scored[low]["mean_pearson"],
                **_ends(draws[high] - draws[low], 0.95),
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
    p = np.asarray(predictions, np.float64)
    y = np.asarray(labels, np.float64)
    once, owner = np.ones((1, len(y))), np.arange(len(y))
    return float(np.mean([_weighted_mean_pearson(each, y, owner, once)[0] for each in (p[None] if p.ndim == 2 else p)]))


def _ends(scores: Floats, level: float) -> dict[str, float]:
    low, high = np.nanquantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return {"low": float(low), "high": float(high)}
