"""Intervals, comparisons and groups: a draw is a plain bootstrap's, and nothing ends in NaN."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rnn import bootstrap
from rnn.bootstrap import age_bands, draw_scores, group_scores, holm, interval, paired_difference
from rnn.metrics import ReactionMetrics


def made(count: int, seed: int = 0, noise: float = 0.5, unknown: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random((count, 7))
    predictions = labels + rng.normal(0, noise, labels.shape)
    labels[rng.random(labels.shape) < unknown] = np.nan
    return predictions, labels


def mean_pearson(p: np.ndarray, y: np.ndarray) -> float:
    return ReactionMetrics.of(p, y).scores()["mean_pearson"]


def drawn_one_by_one(p: np.ndarray, y: np.ndarray, groups: np.ndarray, draws: int, seed: int) -> list[float]:
    """The scores of copies of the videos of the subjects drawn, each as often as drawn."""
    names = np.unique(groups)
    rng = np.random.default_rng([seed, len(names), draws])
    scores = []
    for weights in rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws):
        rows = np.concatenate([np.tile(np.flatnonzero(groups == g), w) for g, w in zip(names, weights)])
        scores.append(mean_pearson(p[rows], y[rows]))
    return scores


def test_draws_are_those_of_a_plain_bootstrap_by_subject():
    p, y = made(60)
    groups = np.repeat([7, 3, 900, *range(20, 29)], 5)
    assert draw_scores(p, y, groups, draws=20, seed=3) == pytest.approx(drawn_one_by_one(p, y, groups, 20, 3), abs=1e-9)


def test_draws_of_odd_columns_are_those_of_a_plain_bootstrap():
    """A reaction that three videos have labels of, one that never varies, and one with a single far value: in draws
    without that value the others must not count as constant."""
    p, y = made(30, unknown=0.0)
    y[3:, 0] = np.nan
    p[:, 1] = 0.3
    y[:, 2] = 0.7
    p[5, 3] = 1e6
    p[:, 4] += 1e6
    each = np.arange(30)
    expected = drawn_one_by_one(p, y, each, 200, 0)
    assert draw_scores(p, y, None, draws=200) == pytest.approx(expected, abs=1e-6)


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    p, y = made(50)
    whole = draw_scores(p, y, None, draws=33)
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 500)
    np.testing.assert_allclose(draw_scores(p, y, None, draws=33), whole, rtol=1e-12)


def test_videos_without_a_label_change_nothing():
    p, y = made(40, unknown=0.0)
    more = np.concatenate([y, np.full((25, 7), np.nan)])
    assert interval(np.concatenate([p, p[:25]]), more, None) == interval(p, y, None)


def test_an_interval_holds_the_score_and_is_wider_by_subject():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 10)
    own = rng.normal(0, 1, (40, 7))[groups]  # people differ in how they answer
    y = rng.random((400, 7))
    p = y + own + rng.normal(0, 0.1, y.shape)
    by_subject, by_video = interval(p, y, groups), interval(p, y, None)
    assert by_subject["mean"] == by_video["mean"] == mean_pearson(p, y)
    assert by_subject["low"] < by_subject["mean"] < by_subject["high"]
    assert (by_subject["by"], by_video["by"]) == ("subject", "video")
    assert by_subject["high"] - by_subject["low"] > by_video["high"] - by_video["low"]
    narrower = interval(p, y, groups, level=0.5)
    assert by_subject["low"] < narrower["low"] < narrower["high"] < by_subject["high"]


def test_the_interval_of_a_reaction_is_that_of_a_set_where_only_it_is_labelled():
    p, y = made(60, unknown=0.0)
    groups = np.arange(60) // 4
    p[:, 3] = 0.5  # constant: it scores 0 in every draw
    whole = interval(p, y, groups, draws=100)
    for k, ends in enumerate(whole["by_reaction"]):
        alone = np.where(np.arange(7) == k, y, np.nan)
        expected = interval(p, alone, groups, draws=100)
        assert ends == pytest.approx({"low": expected["low"], "high": expected["high"]}, abs=1e-12)
    assert whole["by_reaction"][3] == {"low": 0.0, "high": 0.0}


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    """Of 100 samples of 60 subjects, whose own level is what a video-wise bootstrap overlooks."""
    rng = np.random.default_rng(0)
    covered = {"subject": 0, "video": 0}
    groups = np.repeat(np.arange(60), 8)
    for _ in range(100):
        person = rng.normal(size=(2, 60, 1))[:, groups]
        # Levels of predictions and labels are independent, so that the true r is .5 x 1 / (1 + 1).
        y = rng.normal(size=(480, 1))
        p = 0.5 * y + np.sqrt(0.75) * rng.normal(size=(480, 1))
        p, y = np.repeat(p + person[0], 7, axis=1), np.repeat(y + person[1], 7, axis=1)
        for by in covered:
            found = interval(p, y, groups if by == "subject" else None, draws=200)
            covered[by] += found["low"] < 0.25 < found["high"]
    assert covered["subject"] >= 87
    assert covered["video"] < covered["subject"] - 15


def test_a_paired_comparison_sees_what_two_intervals_would_not():
    rng = np.random.default_rng(2)
    y = rng.random((300, 7))
    shared = rng.normal(0, 1.0, y.shape)
    better, worse = y + shared, y + shared + rng.normal(0, 0.35, y.shape)
    groups = np.repeat(np.arange(60), 5)
    told = paired_difference(better, worse, y, groups)
    assert told["low"] > 0
    wrong = (draw_scores(better, y, groups) <= draw_scores(worse, y, groups)).sum()
    assert told["p"] == pytest.approx(2 * (wrong + 1) / 1001)
    assert told["p"] < 0.02
    assert interval(better, y, None)["low"] < interval(worse, y, None)["high"]
    assert told["ratio"]["low"] > 1
    assert told["ratio"]["ratio"] == pytest.approx(mean_pearson(better, y) / mean_pearson(worse, y))
    turned = paired_difference(worse, better, y, groups)
    assert (turned["difference"], turned["p"]) == (-told["difference"], told["p"])
    same = paired_difference(better, better, y, None)
    assert (same["difference"], same["p"]) == (0.0, 1.0)


def test_several_seeds_are_scored_each_and_averaged_inside_a_draw():
    """Not the score of their mean prediction, which would be better than each."""
    p, y = made(120)
    other, third = y + 1.0, made(120, seed=3)[0]
    other = np.nan_to_num(other)
    seeds = np.stack([p, other])
    told = paired_difference(seeds, third, y, None, draws=200)
    score = np.mean([mean_pearson(p, y), mean_pearson(other, y)])
    assert told["difference"] == pytest.approx(score - mean_pearson(third, y))
    draws = np.mean([draw_scores(each, y, None, draws=200) for each in seeds], axis=0)
    expected = np.quantile(draws - draw_scores(third, y, None, draws=200), [0.025, 0.975])
    assert [told["low"], told["high"]] == pytest.approx(expected)


def test_a_ratio_to_nothing_is_none_and_never_nan():
    """Ridge on features that never vary is constant: its score is 0."""
    p, y = made(80)
    for theirs in (np.zeros_like(p), -np.nan_to_num(y)):
        told = paired_difference(p, theirs, y, None)
        assert told["ratio"] == {"ratio": None, "low": None, "high": None}
        assert told["low"] > 0
        json.dumps(told, allow_nan=False)
    # Above 0 on the whole, but not in every draw: there is a ratio, and no telling how sure it is.
    weak = np.random.default_rng(5).normal(size=p.shape)
    weak *= np.sign(mean_pearson(weak, y))
    told = paired_difference(p, weak, y, None)["ratio"]
    assert told["ratio"] > 1
    assert (told["low"], told["high"]) == (None, None)


def test_no_video_and_no_label_give_zeros():
    p, y = made(9)
    assert interval(p[:0], y[:0], None)["high"] == 0
    assert interval(p, np.full_like(y, np.nan), np.zeros(9, int))["low"] == 0


def test_predictions_that_do_not_fit_or_are_not_finite_are_refused():
    p, y = made(10)
    with pytest.raises(ValueError, match="do not fit"):
        interval(p[:, :1], y, None)  # would be broadcast
    with pytest.raises(ValueError, match="not finite"):
        interval(p * np.nan, y, None)
    with pytest.raises(ValueError, match="country: 9 values for 10 videos"):
        group_scores(p, y, {"country": ["A"] * 9}, None)


def test_holm_adjusts_step_by_step():
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5, "e": 0.9})
    assert found == pytest.approx({"a": 0.05, "b": 0.12, "c": 0.12, "d": 1.0, "e": 1.0})
    assert list(found) == ["a", "b", "c", "d", "e"]
    assert holm({}) == {}


def test_groups_tell_a_planted_gap_and_leave_small_ones_out():
    rng = np.random.default_rng(3)
    y = rng.random((430, 7)).astype(np.float32)
    country = np.array(["A"] * 190 + ["B"] * 190 + ["C"] * 50, object)
    p = y + rng.normal(0, np.where(country == "B", 1.0, 0.2)[:, None], y.shape)
    y[401:] = np.nan  # of C, 21 videos have labels
    told = group_scores(p, y, {"country": list(country), "age": [None] * 430}, None)
    assert set(told["country"]["scored"]) == {"A", "B"}
    assert told["country"]["not_scored"] == {"C": 21}
    of_b = told["country"]["scored"]["B"]
    assert of_b["mean_pearson"] == pytest.approx(mean_pearson(p[190:380], y[190:380]))
    assert of_b["low"] < of_b["mean_pearson"] < of_b["high"]
    gap = told["country"]["gap"]
    assert (gap["largest"], gap["smallest"]) == ("A", "B")
    assert 0.1 < gap["low"] < gap["difference"] < gap["high"]
    assert told["age"] == {"scored": {}, "not_scored": {}, "gap": None}
    json.dumps(told, allow_nan=False)


def test_the_gap_of_two_groups_is_of_independent_draws():
    """Of two groups of one size and one noise, drawn alike, the gap's spread would not be that of two scores."""
    p, y = made(200, unknown=0.0)
    p, y = np.concatenate([p, p]), np.concatenate([y, y])
    gap = group_scores(p, y, {"half": ["A"] * 200 + ["B"] * 200}, None)["half"]["gap"]
    one = interval(p[:200], y[:200], None)
    assert gap["difference"] == 0
    assert gap["high"] - gap["low"] == pytest.approx(np.sqrt(2) * (one["high"] - one["low"]), rel=0.15)


def test_ages_fall_into_bands():
    assert age_bands([17.9, 18, 29.5, 30, 45, 69.9, 71, np.nan, -1]) == [
        *("under 18", "18 to 29", "18 to 29", "30 to 39", "40 to 49", "60 to 69", "70 and over", None, None)
    ]
