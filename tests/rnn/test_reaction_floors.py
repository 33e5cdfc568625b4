"""Floors: fitted on training, chosen on validation, as strong as scikit-learn's, finite for every video."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import Ridge

from rnn import floors as floors_module
from rnn.floors import PENALTIES, Floors, fit_floors, summary_statistics
from rnn.metrics import ReactionMetrics


def mean_pearson(p: np.ndarray, y: np.ndarray) -> float:
    return ReactionMetrics.of(p, y).scores()["mean_pearson"]


def test_statistics_are_of_known_steps_alone():
    values = np.array([[1, 2], [np.nan, np.nan], [3, 6], [5, 5], [np.nan, np.nan], [7, 8]], np.float32)
    found = summary_statistics(values, np.array([0, 3, 4, 4, 5, 6]))
    np.testing.assert_allclose(found[0], [2, 4, 3, 6, 1, 2, np.log(3)])
    np.testing.assert_allclose(found[1], [5, 5, 5, 5, 0, 0, np.log(2)])
    assert np.isnan(found[2:4]).all()
    np.testing.assert_allclose(found[4], [7, 8, 7, 8, 0, 0, np.log(2)])


def test_statistics_are_a_loops_over_videos_also_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 9, 50)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = (1e3 + rng.normal(size=(offsets[-1], 4))).astype(np.float32)
    values[rng.random(len(values)) < 0.3] = np.nan
    for at_once in (512, 50, 7, 1):
        monkeypatch.setattr(floors_module, "VIDEOS_AT_ONCE", at_once)
        found = summary_statistics(values, offsets)
        for k, row in enumerate(found):
            own = values[offsets[k] : offsets[k + 1]].astype(np.float64)
            own = own[~np.isnan(own[:, 0])]
            if len(own) == 0:
                assert np.isnan(row).all()
                continue
            expected = [*own.mean(axis=0), *own.max(axis=0), *own.std(axis=0), np.log1p(len(own))]
            np.testing.assert_allclose(row, expected, rtol=1e-12, atol=1e-12)
    assert summary_statistics(values[:0], np.zeros(1, np.int64)).shape == (0, 13)


def made() -> dict[str, tuple[np.ndarray, pa.Table, np.ndarray]]:
    """Labels follow one statistic, downwards, and the country; noise follows nothing."""
    rng = np.random.default_rng(4)
    parts = {}
    for name, count in {"train": 400, "val": 150, "test": 300}.items():
        statistics = rng.normal(size=(count, 6))
        country = rng.choice(["A", "B"], count)
        labels = np.tile((-statistics[:, 2] + (country == "A"))[:, None], (1, 7)) + rng.normal(0, 0.5, (count, 7))
        labels[rng.random(labels.shape) < 0.1] = np.nan
        statistics[0] = np.nan  # a video without a face
        parts[name] = statistics, pa.table({"country": country, "noise": rng.normal(size=count)}), labels
    return parts


@pytest.mark.parametrize("with_metadata", [True, False])
def test_floors_travel_as_json(with_metadata):
    parts = made()
    train, val, test = (parts[name] if with_metadata else (parts[name][0], None, parts[name][2]) for name in parts)
    fitted = fit_floors(*train, *val)
    again = Floors.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    ours, theirs = again.predict(*test[:2]), fitted.predict(*test[:2])
    assert list(ours) == list(theirs)
    assert ("ridge_metadata" in ours) == with_metadata
    for name, expected in theirs.items():
        np.testing.assert_array_equal(ours[name], expected)


def test_floors_find_what_is_there_and_nothing_else():
    parts = made()
    found = fit_floors(*parts["train"], *parts["val"]).predict(*parts["test"][:2])
    r = {name: mean_pearson(p, parts["test"][2]) for name, p in found.items()}
    assert r["constant"] == 0
    assert r["ridge_statistics"] > 0.7
    assert 0.3 < r["ridge_metadata"] < 0.6
    assert r["best_descriptor"] == pytest.approx(r["ridge_statistics"], abs=0.05)
    train = parts["train"][2]
    np.testing.assert_allclose(found["constant"][0], np.nanmean(train, axis=0))
    # The best column turned over, on a line through the middle of training.
    reading = np.nan_to_num(parts["test"][0][:, 2])
    assert np.corrcoef(found["best_descriptor"][1:, 3], reading[1:])[0, 1] == pytest.approx(-1)
    for p in found.values():
        assert np.isfinite(p).all()
    np.testing.assert_allclose(found["best_descriptor"][0], np.nanmean(train, axis=0))


def test_ridge_is_scikit_learns_at_the_penalty_that_validation_likes_best():
    rng = np.random.default_rng(1)
    x = {
        name: rng.normal(3, [1, 10, 0.1, 5, 2, 1], (n, 6)) for name, n in {"train": 40, "val": 200, "test": 20}.items()
    }
    mixing = rng.normal(size=(6, 7)) / np.array([1, 10, 0.1, 5, 2, 1])[:, None]
    y = {name: each @ mixing + rng.normal(0, 5, (len(each), 7)) for name, each in x.items()}
    y["train"][rng.random(y["train"].shape) < 0.2] = np.nan
    middle, scale = x["train"].mean(axis=0), x["train"].std(axis=0)

    def fitted(penalty: float, on: np.ndarray) -> np.ndarray:
        columns = []
        for k in range(7):
            known = ~np.isnan(y["train"][:, k])
            ridge = Ridge(alpha=penalty * known.sum())
            ridge.fit(((x["train"] - middle) / scale)[known], y["train"][known, k])
            columns.append(ridge.predict((on - middle) / scale))
        return np.stack(columns, axis=1)

    best = max(PENALTIES, key=lambda each: mean_pearson(fitted(each, x["val"]), y["val"]))
    assert min(PENALTIES) < best < 0.05  # nor what is taken where validation has no labels
    floors = fit_floors(x["train"], None, y["train"], x["val"], None, y["val"])
    found = floors.predict(x["test"], None)["ridge_statistics"]
    np.testing.assert_allclose(found, fitted(best, x["test"]), rtol=1e-8)


def test_a_video_without_a_face_gets_the_mean_and_not_a_guess_far_out():
    """Lengths are nearly equal, so that a length of 0 would lie hundreds of deviations away."""
    rng = np.random.default_rng(2)
    lengths = rng.integers(95, 105, 300)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = rng.normal(size=(offsets[-1], 2)).astype(np.float32)
    labels = np.tile(np.log(lengths)[:, None], (1, 7)) + rng.normal(0, 0.01, (300, 7))
    statistics = summary_statistics(values, offsets)
    faceless = summary_statistics(np.full((5, 2), np.nan, np.float32), np.array([0, 5, 5]))
    floors = fit_floors(statistics, None, labels, statistics, None, labels)
    for name, found in floors.predict(faceless, None).items():
        np.testing.assert_allclose(found, np.tile(labels.mean(axis=0), (2, 1)), rtol=1e-6, err_msg=name)


def test_without_validation_labels_floors_are_fitted_all_the_same():
    statistics = np.random.default_rng(5).normal(size=(50, 3))
    labels = np.tile(statistics[:, :1], (1, 7)).astype(np.float32)
    floors = fit_floors(statistics, None, labels, statistics[:0], None, labels[:0])
    found = floors.predict(statistics, None)
    assert set(found) == {"constant", "ridge_statistics", "best_descriptor"}
    assert mean_pearson(found["ridge_statistics"], labels) > 0.99


NOTHING = pa.table({"country": pa.nulls(60), "age": pa.nulls(60)})
SOME = pa.table({"country": ["A", "B", None] * 20, "age": [20.0, None, np.inf, 60.0] * 15})
OTHERS = pa.table({"country": pa.array(["C", "D"] * 30, pa.large_string()), "age": list(range(60))})


@pytest.mark.parametrize("train", [NOTHING, SOME, OTHERS])
@pytest.mark.parametrize("asked", [NOTHING, SOME, OTHERS])
def test_metadata_that_only_some_splits_have_are_taken_as_training_has_them(train, asked):
    """Also countries that training never saw, and splits in which nobody gave any."""
    rng = np.random.default_rng(6)
    statistics, labels = rng.normal(size=(60, 3)), rng.random((60, 7))
    floors = fit_floors(statistics, train, labels, statistics, asked, labels)
    found = floors.predict(statistics, asked)["ridge_metadata"]
    assert found.shape == (60, 7)
    assert np.isfinite(found).all()


def test_reactions_without_training_labels_and_columns_that_never_vary_are_finite():
    rng = np.random.default_rng(7)
    statistics, labels = rng.normal(size=(40, 4)), rng.random((40, 7))
    statistics[:, 1] = 5.0
    labels[:, 2] = np.nan
    labels[:, 3] = 0.5
    floors = fit_floors(statistics, None, labels, statistics, None, labels)
    moved = statistics + [[0, 1e6, 0, 0]]  # what never varied in training has no say later
    for name, found in floors.predict(moved, None).items():
        np.testing.assert_allclose(found, floors.predict(statistics, None)[name], err_msg=name)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[:, 3], 0.5)
