"""What people feel and report: the distribution of felt intensities, and the self-report made of them.

Numbers here are ours; their shape is CORPUS.md's: one to three active reactions, correlated, 20 % weak clips, 10 % of
what is felt not shown, labels scaled to a largest of 1. The distribution is simple on purpose: `ceiling` inverts it.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np

from rnn.reactions import REACTIONS

WEAK_SHARE = 0.2
"""Share of clips in which nothing is felt strongly."""
WEAK_LEVEL = (0.1, 0.3)
STRONG_LEVEL = (0.5, 1.0)
"""A clip's level is uniform in one of these two."""
RATIO = (0.6, 1.0)
"""An active reaction's intensity is the clip's level times a uniform draw from this; so weak clips lie under .3."""
HIDDEN_SHARE = 0.1
"""Probability that a felt reaction is not shown."""

_SIZE_SHARE = {1: 0.35, 2: 0.4, 3: 0.25}
_KIN = (("Fear", "Anxiety", "Surprise", "Empathic-Pain"), ("Adoration", "Amusement"))
_KIN_GAIN, _STRANGER_GAIN = 1.0, -0.5
_OWN_GAIN = {"Disgust": 1.0, "Adoration": 0.6, "Amusement": 0.6}
"""Makes up for having few kin, so that every reaction is about as frequent."""


def _active_sets() -> tuple[np.ndarray, np.ndarray]:
    """Every possible set of active reactions, bool (63, 7), and its probability (63,): pairs of kin go together."""

    def gain(first: str, second: str) -> float:
        return _KIN_GAIN if any(first in kin and second in kin for kin in _KIN) else _STRANGER_GAIN

    def own(reaction: str) -> float:
        return _OWN_GAIN.get(reaction, 0.0)

    sets, weights = [], []
    for size, share in _SIZE_SHARE.items():
        members = list(combinations(REACTIONS, size))
        energy = np.exp([sum(gain(*pair) for pair in combinations(each, 2)) + sum(map(own, each)) for each in members])
        sets += [[reaction in each for reaction in REACTIONS] for each in members]
        weights += list(share * energy / energy.sum())
    return np.array(sets), np.array(weights)


ACTIVE_SETS, ACTIVE_SHARE = _active_sets()


def sample_level(rng: np.random.Generator, size: int) -> np.ndarray:
    """Levels of `size` clips, float64 (size,)."""
    weak = rng.random(size) < WEAK_SHARE
    return np.where(weak, rng.uniform(*WEAK_LEVEL, size), rng.uniform(*STRONG_LEVEL, size))


def sample_felt(rng: np.random.Generator, size: int) -> np.ndarray:
    """Felt intensities of `size` clips in [0, 1], float64 (size, 7) in the order of REACTIONS."""
    active = ACTIVE_SETS[rng.choice(len(ACTIVE_SETS), size, p=ACTIVE_SHARE)]
    return active * sample_level(rng, size)[:, None] * rng.uniform(*RATIO, (size, len(REACTIONS)))


def sample_shown(rng: np.random.Generator, felt: np.ndarray, expressivity: np.ndarray) -> np.ndarray:
    """Peaks of the displays, float64 (n, 7): expressivity (n,) times intensity, at most 1, and 0 where hidden."""
    hidden = rng.random(felt.shape) < HIDDEN_SHARE
    return np.where(hidden, 0.0, np.minimum(expressivity[:, None] * felt, 1.0))


def self_report(
    rng: np.random.Generator, felt: np.ndarray, exponent: np.ndarray, baseline: np.ndarray, noise: np.ndarray
) -> np.ndarray:
    """Labels of n clips, float64 (n, 7), the largest of each row 1; a row of zeros is reported again.

    `felt` is (n, 7); `exponent`, `baseline` and `noise` are the reporters' styles (`ResponseStyle`), (n,) each.
    """
    meant = baseline[:, None] + (1 - baseline[:, None]) * felt ** exponent[:, None] * (felt > 0)
    report = np.zeros_like(meant)
    empty = np.arange(len(meant))
    while len(empty):
        drawn = meant[empty] + noise[empty, None] * rng.standard_normal((len(empty), meant.shape[1]))
        report[empty] = drawn.clip(0.0, 1.0)
        empty = empty[report[empty].max(axis=1) <= 0]
    return report / report.max(axis=1, keepdims=True)
