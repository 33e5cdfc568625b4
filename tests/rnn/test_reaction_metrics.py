"""Scores of reactions: exact over any sharding, never NaN, by hand where it matters."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn.metrics import ReactionMetrics
from rnn.reactions import REACTIONS


def made(count: int = 200, seed: int = 0, unknown: float = 0.1, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random((count, 7))
    predictions = labels + rng.normal(0, noise, labels.shape)
    labels[rng.random(labels.shape) < unknown] = np.nan
    return predictions, labels


@settings(deadline=None, max_examples=25)
@given(cuts=st.lists(st.integers(0, 50), max_size=6), seed=st.integers(0, 99))
def test_any_sharding_gives_the_scores_of_the_whole(cuts, seed):
    p, y = made(50, seed)
    edges = [0, *sorted(cuts), 50]
    parts = [ReactionMetrics.of(p[a:b], y[a:b]) for a, b in itertools.pairwise(edges)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    found = merged.scores()
    for column, name in enumerate(REACTIONS):
        known = ~np.isnan(y[:, column])
        a, b = p[known, column], y[known, column]
        one = found["by_reaction"][name]
        assert one["pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
        spread = a.var() + b.var() + (a.mean() - b.mean()) ** 2
        assert one["ccc"] == pytest.approx(2 * np.cov(a, b, ddof=0)[0, 1] / spread, abs=1e-12)
        assert one["absolute_error"] == pytest.approx(np.abs(a - b).mean(), abs=1e-12)
        assert one["n"] == known.sum()
    assert found["mean_pearson"] == pytest.approx(np.mean([o["pearson"] for o in found["by_reaction"].values()]))


def test_what_never_varies_scores_0_with_a_flag_and_what_is_unknown_leaves_the_mean():
    p, y = made(40, unknown=0.0)
    p[:, 0] = 0.3
    y[:, 1] = 1.0
    y[:, 2] = np.nan
    scores = ReactionMetrics.of(p, y).scores()
    by = scores["by_reaction"]
    assert (by["Adoration"]["pearson"], by["Adoration"]["ccc"], by["Adoration"]["constant"]) == (0.0, 0.0, True)
    assert (by["Amusement"]["pearson"], by["Amusement"]["constant"]) == (0.0, True)
    assert scores["absent"] == ["Anxiety"]
    others = [by[name]["pearson"] for name in REACTIONS if name != "Anxiety"]
    assert scores["mean_pearson"] == pytest.approx(np.mean(others))
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize("count", [0, 1])
def test_no_video_and_a_single_one_give_numbers(count):
    p, y = made(count, unknown=0.0)
    scores = ReactionMetrics.of(p, y).scores()
    assert scores["mean_pearson"] == 0.0
    assert len(scores["absent"]) == 7
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize("offset", [0.0, 1.0, 1e4])
def test_predictions_that_hardly_vary_keep_their_score(offset):
    """Far from zero and in float32's last digits, sums of squares would hold nothing but rounding errors."""
    p, y = made(500)
    steps = np.round(p * 8)
    p = (np.float32(offset) + steps * np.spacing(np.float32(max(offset, 1e-3)))).astype(np.float32)
    of_steps = ReactionMetrics.of(steps, y).scores()["by_reaction"]
    for name, one in ReactionMetrics.of(p, y).scores()["by_reaction"].items():
        assert one["pearson"] == pytest.approx(of_steps[name]["pearson"], abs=1e-9)
        assert not one["constant"]


def test_perfect_predictions_score_1_and_not_more():
    y = np.random.default_rng(0).random((1000, 7))
    scores = ReactionMetrics.of(y * 0.1 + 0.3, y).scores()
    assert all(1 - 1e-12 < one["pearson"] <= 1 for one in scores["by_reaction"].values())
    assert scores["mean_ccc"] < 0.5
    same = ReactionMetrics.of(y, y).scores()
    assert (same["mean_ccc"], same["mean_absolute_error"]) == (pytest.approx(1), 0)


@pytest.mark.parametrize(
    ("p", "y", "told"),
    [
        (np.zeros((7, 4)), np.zeros((4, 7)), "differ in shape"),  # would fit after a reshape
        (np.zeros((14, 1)), np.zeros((2, 7)), "differ in shape"),
        (np.zeros((3, 6)), np.zeros((3, 6)), "give .N, 7."),
        (np.full((3, 7), np.nan), np.zeros((3, 7)), "not finite"),
        (np.zeros((3, 7)), np.full((3, 7), np.inf), "not finite"),
    ],
)
def test_what_is_no_table_of_seven_is_refused(p, y, told):
    with pytest.raises(ValueError, match=told):
        ReactionMetrics.of(p, y)
