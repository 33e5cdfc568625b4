"""How well anybody can do on a made corpus: Pearson of the labels' expectation with the labels, by Monte Carlo.

Labels are noisy and scaled to a largest of 1, so the best predictor is neither the truth nor the truth over its
maximum, but the labels' expectation given what is known (CORPUS.md, "The ceiling"): `label` knows what was felt,
`display` only the peaks that the clip shows, which leaves open who the person is, how expressive, and what they hide.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from statistics import NormalDist

import numpy as np

from rnn.made.felt import (
    ACTIVE_SETS,
    ACTIVE_SHARE,
    HIDDEN_SHARE,
    RATIO,
    STRONG_LEVEL,
    WEAK_LEVEL,
    WEAK_SHARE,
    self_report,
)
from rnn.made.plan import SPLITS, Clip
from rnn.made.subjects import EXPRESSIVITY_SD, sample_style
from rnn.reactions import REACTIONS

REDRAWS = 500
"""Redraws of style and noise (and for `display` of what is unseen) a clip."""

_BLOCK = 200
"""Clips at a time; keeps the memory near 100 MB."""


def expected_labels(felt: np.ndarray, noise: np.ndarray, redraws: int = REDRAWS, seed: int = 0) -> np.ndarray:
    """Expected labels given felt intensities (n, 7) and the reports' noise (n,): float64 (n, 7)."""
    rng = np.random.default_rng([seed, 10])
    blocks = [slice(i, i + _BLOCK) for i in range(0, len(felt), _BLOCK)]
    return np.concatenate([_mean_report(rng, np.repeat(felt[b, None], redraws, axis=1), noise[b]) for b in blocks])


def expected_labels_of_display(
    shown: np.ndarray, noise: np.ndarray, redraws: int = REDRAWS, seed: int = 0
) -> np.ndarray:
    """Expected labels given the shown peaks (n, 7) and the reports' noise (n,): float64 (n, 7).

    Felt intensities are drawn from their distribution given the peaks: expressivity and level from a grid of their
    quantiles, weighted by the chance of these peaks; what may be hidden from the sets that hold all that is shown.
    """
    rng = np.random.default_rng([seed, 11])
    return np.concatenate(
        [
            _mean_report(rng, _felt_given_shown(rng, shown[i : i + _BLOCK], redraws), noise[i : i + _BLOCK])
            for i in range(0, len(shown), _BLOCK)
        ]
    )


def ceiling(clips: Sequence[Clip], redraws: int = REDRAWS, seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """`ceiling.json` (DESIGN.md): split (lower case) -> `display`, `label` -> `mean` and each reaction -> Pearson.

    A reaction whose labels or expectations are constant (a split of one clip) scores 0.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for split in reversed(SPLITS):
        members = [clip for clip in clips if clip.split == split]
        if not members:
            continue
        labels = np.array([clip.labels for clip in members])
        noise = np.array([clip.subject.style.noise for clip in members])
        predictions = {
            "display": expected_labels_of_display(np.array([clip.shown for clip in members]), noise, redraws, seed),
            "label": expected_labels(np.array([clip.felt for clip in members]), noise, redraws, seed),
        }
        found[split.lower()] = {}
        for name, predicted in predictions.items():
            scores = pearson(predicted, labels)
            by_reaction = dict(zip(REACTIONS, map(float, scores), strict=True))
            found[split.lower()][name] = {"mean": float(scores.mean()), **by_reaction}
    return found


def pearson(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson's r of each column of two (n, k) arrays, population moments; 0 where a column is constant."""
    a, b = first - first.mean(axis=0), second - second.mean(axis=0)
    scale = np.sqrt((a**2).mean(axis=0) * (b**2).mean(axis=0))
    covariance = (a * b).mean(axis=0)
    return np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 1e-12)


def _mean_report(rng: np.random.Generator, felt: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Mean label of each clip over redrawn styles and noise; `felt` is (n, redraws, 7)."""
    n, redraws, _ = felt.shape
    exponent, baseline = sample_style(rng, n * redraws)
    labels = self_report(rng, felt.reshape(n * redraws, -1), exponent, baseline, np.repeat(noise, redraws))
    return labels.reshape(felt.shape).mean(axis=1)


def _gains() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A grid of expressivities and levels, and the pairs' shares, (G,) each: quantiles of the two distributions."""
    middles = (np.arange(48) + 0.5) / 48
    expressivity = np.exp([EXPRESSIVITY_SD * NormalDist().inv_cdf(q) for q in middles])
    levels = [(low + q * (high - low), share / 48)
              for (low, high), share in ((WEAK_LEVEL, WEAK_SHARE), (STRONG_LEVEL, 1 - WEAK_SHARE))
              for q in middles]  # fmt: skip
    pairs = [(e, level, share) for e, (level, share) in product(expressivity, levels)]
    e, level, share = np.array(pairs).T
    return e, level, share


_EXPRESSIVITY, _LEVEL, _SHARE = _gains()


def _felt_given_shown(rng: np.random.Generator, shown: np.ndarray, redraws: int) -> np.ndarray:
    """Draws of what was felt given the peaks (n, 7): float64 (n, redraws, 7)."""
    low, high = RATIO
    gain = _EXPRESSIVITY * _LEVEL
    seen, capped = shown > 0, shown >= 1.0
    # The chance of peak p = gain * ratio with a uniform ratio: a density 1 / gain over a range; a mass at the cap of 1.
    open_count = (seen & ~capped).sum(axis=1)
    largest = np.where(seen & ~capped, shown, 0.0).max(axis=1)
    smallest = np.where(seen & ~capped, shown, np.inf).min(axis=1)
    fits = (largest[:, None] <= gain * high) & (smallest[:, None] >= gain * low)
    above = ((high - np.maximum(low, 1 / gain)) / (high - low)).clip(0, 1)
    weight = _SHARE * fits * gain ** -open_count[:, None].astype(float) * above ** capped.sum(axis=1)[:, None]
    # The grid is finite: peaks that none of its points explains take the nearest one.
    nearest = np.abs(gain - largest[:, None]).argmin(axis=1)
    lost = np.flatnonzero(weight.sum(axis=1) == 0)
    weight[lost, nearest[lost]] = 1.0
    pick = _pick(rng, weight, redraws)
    expressivity, level = _EXPRESSIVITY[pick][..., None], _LEVEL[pick][..., None]

    ratio = rng.uniform(low, high, (*pick.shape, len(REACTIONS)))
    least = np.maximum(low, 1 / (expressivity * level))
    capped_ratio = least + (high - least) * (ratio - low) / (high - low)
    felt = np.where(seen[:, None], shown[:, None] / expressivity, level * ratio)
    felt = np.where(capped[:, None], level * np.minimum(capped_ratio, high), felt)
    return felt * _active_given_seen(rng, seen, redraws)


def _active_given_seen(rng: np.random.Generator, seen: np.ndarray, redraws: int) -> np.ndarray:
    """Draws of the set of felt reactions given the seen one (n, 7): bool (n, redraws, 7)."""
    hidden = (ACTIVE_SETS[None] & ~seen[:, None]).sum(axis=2)
    holds = (ACTIVE_SETS[None] | ~seen[:, None]).all(axis=2)
    return ACTIVE_SETS[_pick(rng, ACTIVE_SHARE * holds * HIDDEN_SHARE**hidden, redraws)]


def _pick(rng: np.random.Generator, weight: np.ndarray, redraws: int) -> np.ndarray:
    """Draws of column numbers by the weights (n, m) of each row: int (n, redraws)."""
    total = np.cumsum(weight, axis=1)
    draws = rng.random((len(weight), redraws)) * total[:, -1:]
    picked = np.array([np.searchsorted(row, draw, side="right") for row, draw in zip(total, draws, strict=True)])
    return np.minimum(picked, weight.shape[1] - 1)
