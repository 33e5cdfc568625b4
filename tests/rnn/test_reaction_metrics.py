"""Scores of reactions: exact over any sharding, never NaN; bootstrap, comparisons, groups and floors."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnn.bootstrap import age_bands, draw_scores, group_scores, holm, interval, paired_difference
from rnn.floors import fit_floors, summary_statistics
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


# --- resampling ---


def test_draws_are_those_of_a_plain_bootstrap_by_subject():
    """A draw's score is that of the videos of the subjects drawn, each as often as drawn."""
    p, y = made(60)
    groups = np.repeat(np.arange(12), 5)
    scores = draw_scores(p, y, groups, draws=20, seed=3)
    rng = np.random.default_rng([3, 12, 20])
    for weights, score in zip(rng.multinomial(12, np.full(12, 1 / 12), size=20), scores):
        rows = np.concatenate([np.tile(np.flatnonzero(groups == g), w) for g, w in enumerate(weights)]).astype(int)
        assert score == pytest.approx(ReactionMetrics.of(p[rows], y[rows]).scores()["mean_pearson"], abs=1e-9)


def test_an_interval_holds_the_score_and_is_wider_by_subject():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 10)
    own = rng.normal(0, 1, (40, 7))[groups]  # people differ in how they answer
    y = rng.random((400, 7))
    p = y + own + rng.normal(0, 0.1, y.shape)
    by_subject, by_video = interval(p, y, groups), interval(p, y, None)
    score = ReactionMetrics.of(p, y).scores()["mean_pearson"]
    assert by_subject["low"] < score < by_subject["high"]
    assert (by_subject["by"], by_video["by"]) == ("subject", "video")
    assert by_subject["high"] - by_subject["low"] > by_video["high"] - by_video["low"]


def test_a_paired_comparison_sees_what_two_intervals_would_not():
    rng = np.random.default_rng(2)
    y = rng.random((300, 7))
    shared = rng.normal(0, 1.0, y.shape)
    better, worse = y + shared, y + shared + rng.normal(0, 0.35, y.shape)
    told = paired_difference(better, worse, y, np.repeat(np.arange(60), 5))
    assert told["low"] > 0
    assert told["p"] < 0.01
    assert interval(better, y, None)["low"] < interval(worse, y, None)["high"]
    assert told["ratio"]["low"] > 1
    same = paired_difference(better, better, y, None)
    assert (same["difference"], same["p"]) == (0.0, 1.0)
    seeds = paired_difference(np.stack([better, worse]), worse, y, None)
    assert 0 < seeds["difference"] < told["difference"]


def test_holm_adjusts_step_by_step():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {
        "a": pytest.approx(0.03),
        "b": pytest.approx(0.06),
        "c": pytest.approx(0.06),
    }


def test_groups_tell_a_planted_gap_and_leave_small_ones_out():
    rng = np.random.default_rng(3)
    y = rng.random((400, 7)).astype(np.float32)
    country = np.array(["A"] * 190 + ["B"] * 190 + ["C"] * 20, object)
    p = y + rng.normal(0, np.where(country == "B", 1.0, 0.2)[:, None], y.shape)
    told = group_scores(p, y, {"country": list(country), "age": [None] * 400}, None)
    assert set(told["country"]["scored"]) == {"A", "B"}
    assert told["country"]["not_scored"] == {"C": 20}
    assert told["country"]["gap"]["low"] > 0.1
    assert (told["country"]["gap"]["largest"], told["country"]["gap"]["smallest"]) == ("A", "B")
    assert told["age"] == {"scored": {}, "not_scored": {}, "gap": None}
    json.dumps(told, allow_nan=False)


def test_ages_fall_into_bands():
    assert age_bands([17.9, 18, 29.5, 30, 45, 71, np.nan]) == [
        *("under 18", "18 to 29", "18 to 29", "30 to 39", "40 to 49", "70 and over", None)
    ]


# --- floors ---


def test_statistics_are_of_known_steps_alone():
    values = np.array([[1, 2], [np.nan, np.nan], [3, 6], [5, 5], [np.nan, np.nan]], np.float32)
    found = summary_statistics(values, np.array([0, 3, 4, 4, 5]))
    np.testing.assert_allclose(found[0], [2, 4, 3, 6, 1, 2, np.log(3)])
    np.testing.assert_allclose(found[1], [5, 5, 5, 5, 0, 0, np.log(2)])
    assert np.isnan(found[2:, :6]).all()


def test_floors_find_what_is_there_and_nothing_else():
    """Labels follow one statistic and the country; noise follows nothing."""
    import pyarrow as pa

    rng = np.random.default_rng(4)
    parts = {}
    for name, count in {"train": 400, "val": 150, "test": 300}.items():
        stats = rng.normal(size=(count, 6))
        country = rng.choice(["A", "B"], count)
        labels = np.tile((stats[:, 2] + (country == "A"))[:, None], (1, 7)) + rng.normal(0, 0.5, (count, 7))
        labels[rng.random(labels.shape) < 0.1] = np.nan
        stats[0] = np.nan  # a video without a face
        parts[name] = stats, pa.table({"country": country, "noise": rng.normal(size=count)}), labels
    floors = fit_floors(*parts["train"], *parts["val"])
    found = floors.predict(*parts["test"][:2])
    r = {name: ReactionMetrics.of(p, parts["test"][2]).scores()["mean_pearson"] for name, p in found.items()}
    assert r["constant"] == 0
    assert r["ridge_statistics"] > 0.7
    assert 0.3 < r["ridge_metadata"] < 0.6
    assert r["best_descriptor"] == pytest.approx(r["ridge_statistics"], abs=0.05)
    assert all(np.isfinite(each).all() for each in found.values())


def test_without_validation_labels_floors_are_fitted_all_the_same():
    stats = np.random.default_rng(5).normal(size=(50, 3))
    labels = np.tile(stats[:, :1], (1, 7)).astype(np.float32)
    floors = fit_floors(stats, None, labels, stats[:0], None, labels[:0])
    assert set(floors.predict(stats, None)) == {"constant", "ridge_statistics", "best_descriptor"}
