"""Stage 1's scores: any sharding gives the whole's, sklearn agrees, and nothing constant or absent gives NaN."""

import functools
import itertools
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from mma.descriptors import ABAW22, MMA26, DescriptorSet
from mma.metrics import THRESHOLDS, ConfusionMatrix, PairMoments, Stage1Metrics, ThresholdCounts

VA = ("valence", "arousal")


def made_frames(num: int, seed=0, descriptor_set=MMA26) -> dict[str, np.ndarray]:
    """Predictions that follow the labels to a degree; some of all families unknown."""
    rng = np.random.default_rng(seed)
    units, classes = len(descriptor_set.action_units), len(descriptor_set.expressions)
    va, expression = rng.uniform(-1, 1, (num, 2)), rng.integers(0, classes, num)
    occurs = (rng.random((num, units)) < rng.uniform(0.05, 0.5, units)).astype(np.float32)
    scores = rng.normal(size=(num, classes)) + 2 * np.eye(classes)[expression]
    return {
        "valence_arousal": (0.6 * va + rng.normal(0, 0.3, (num, 2))).astype(np.float32),
        "expressions": scores,
        "action_units": 1 / (1 + np.exp(1.5 - 2 * occurs - rng.normal(size=(num, units)))),
        "valence_arousal_label": va.astype(np.float32),
        "valence_arousal_known": rng.random((num, 2)) < 0.7,
        "expression_label": np.where(rng.random(num) < 0.7, expression, -1),
        "action_unit_label": occurs,
        "action_unit_known": rng.random((num, units)) < 0.7,
    }


def part(frames: dict[str, np.ndarray], rows) -> Stage1Metrics:
    return Stage1Metrics.of(MMA26, **{name: values[rows] for name, values in frames.items()})


def sent(metrics: Stage1Metrics) -> Stage1Metrics:
    """As a worker would send it, in JSON that any reader takes."""
    return Stage1Metrics.from_state(json.loads(json.dumps(metrics.state(), allow_nan=False)))


def flat(scores: dict) -> dict[str, float]:
    """All numbers of a result by one name each."""
    found = {name: value for name, value in scores.items() if isinstance(value, float)}
    for name, of in scores["by_name"].items():
        found |= {f"{name}.{what}": float(value) for what, value in of.items()}
    return found


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), num=st.integers(0, 120), shards=st.integers(1, 9))
def test_any_sharding_merges_to_the_whole(seed, num, shards):
    """Also shards that are empty, of one sample, or without any label of a task."""
    frames = made_frames(num, seed)
    owner = np.random.default_rng(seed).integers(0, shards, num)
    parts = [sent(part(frames, owner == k)) for k in range(shards)]
    whole = part(frames, slice(None)).scores()
    merged = functools.reduce(Stage1Metrics.merge, parts).scores()
    assert flat(merged) == pytest.approx(flat(whole), abs=1e-12)
    assert merged["absent"] == whole["absent"]
    backwards = functools.reduce(Stage1Metrics.merge, parts[::-1]).scores()
    assert flat(backwards) == pytest.approx(flat(whole), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(-100, 100), st.integers(-100, 100), st.booleans()), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    offset=st.sampled_from([0.0, 0.1, 50.0]),
)
def test_moments_of_any_cut_are_those_of_the_whole(pairs, cuts, offset):
    x, y = (np.array([[p[k] / 100 + offset] for p in pairs]) for k in (0, 1))
    known = np.array([[p[2]] for p in pairs])
    edges = [0, *sorted(min(cut, len(x)) for cut in cuts), len(x)]
    parts = [PairMoments.of(["a"], x[i:j], y[i:j], known[i:j]) for i, j in itertools.pairwise(edges)]
    merged, whole = functools.reduce(PairMoments.merge, parts), PairMoments.of(["a"], x, y, known)
    scale = 1 + offset**2
    assert merged.count == whole.count
    assert merged.constant == whole.constant
    assert merged.mean == pytest.approx(whole.mean, abs=1e-12 * scale)
    assert merged.squares == pytest.approx(whole.squares, abs=1e-12 * scale)
    assert merged.products == pytest.approx(whole.products, abs=1e-12 * scale)
    assert merged.ccc() == pytest.approx(whole.ccc(), abs=1e-12 * scale)
    a, b = x[known], y[known]
    if len(a) and np.ptp(a) and np.ptp(b):
        expected = 2 * np.cov(a, b, ddof=0)[0, 1] / (a.var() + b.var() + (a.mean() - b.mean()) ** 2)
        assert whole.ccc()[0] == pytest.approx(expected, abs=1e-12 * scale)
    else:
        assert whole.constant
        assert whole.ccc()[0] == 0


def test_a_large_offset_does_not_eat_the_moments():
    """Sums of squares less the squared sum would give noise here."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4000, 1))
    y = 0.5 * x + y
    known = np.ones_like(x, dtype=bool)
    shifted = [PairMoments.of(["a"], x[k::7] + 1e8, y[k::7] + 1e8, known[k::7]) for k in range(7)]
    whole = PairMoments.of(["a"], x, y, known)
    assert functools.reduce(PairMoments.merge, shifted).ccc() == pytest.approx(whole.ccc(), abs=1e-6)


def test_the_pooled_score_is_not_the_mean_of_the_batches():
    """The trap: where each batch is of one person, batch means lose what differs between people."""
    person = np.repeat(np.arange(20) / 20, 10)[:, None]
    noise = np.random.default_rng(0).normal(0, 0.05, (200, 1))
    batches = [
        PairMoments.of(["a"], (person + noise)[k : k + 10], person[k : k + 10], np.ones((10, 1)))
        for k in range(0, 200, 10)
    ]
    assert functools.reduce(PairMoments.merge, batches).ccc()[0] > 0.95
    assert np.mean([batch.ccc()[0] for batch in batches]) == 0


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3])
def test_constant_predictions_score_zero_and_are_flagged(value):
    frames = made_frames(300)
    # 0.1 is no sum of powers of two: its mean is a little off, so that M2 is not quite 0.
    frames["valence_arousal"] = np.full((300, 2), value)
    frames["expressions"] = np.full((300, 7), value)
    frames["action_units"] = np.full((300, 17), value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = functools.reduce(
            Stage1Metrics.merge, (part(frames, slice(k, k + 37)) for k in range(0, 300, 37))
        ).scores()
    assert scores["valence_ccc"] == scores["arousal_ccc"] == 0
    assert scores["by_name"]["valence"]["constant"]
    assert all(np.isfinite(value) for value in flat(scores).values())
    # What a training that keeps the best score needs: comparable with any other.
    assert scores["abaw_score"] > float("-inf")
    assert scores["abaw_score"] < part(made_frames(300), slice(None)).scores()["abaw_score"]


def test_parts_that_are_each_constant_make_a_column_that_is_not():
    ones = np.ones((5, 1))
    low, high = (PairMoments.of(["a"], value * ones, value * ones, ones) for value in (0.1, 0.7))
    assert low.constant
    assert high.constant
    assert not low.merge(high).constant
    assert low.merge(high).ccc()[0] == pytest.approx(1)
    assert low.merge(low).constant


def test_valence_is_scored_where_arousal_is_unknown():
    """The trap of `np.where(a) and np.where(b)`: one mask for both columns."""
    x = np.array([[0.1, 0.3], [0.5, 0.1], [0.4, 0.2], [0.9, 0.9]])
    known = np.array([[1, 0], [1, 0], [1, 1], [0, 1]])
    moments = PairMoments.of(VA, x, np.where(known, x, -5.0), known)
    assert moments.count.tolist() == [3, 2]
    assert moments.ccc() == pytest.approx([1, 1])


def test_expression_scores_are_sklearns():
    frames = made_frames(500, seed=3, descriptor_set=ABAW22)
    # No sample of `other` is labelled, though the network predicts it.
    label = np.where(frames["expression_label"] == ABAW22.expressions.index("other"), -1, frames["expression_label"])
    matrix = ConfusionMatrix.of(ABAW22.expressions, frames["expressions"], label)
    true, predicted = label[label >= 0], frames["expressions"].argmax(axis=1)[label >= 0]
    assert (predicted == 7).any()
    expected = sklearn_metrics.f1_score(true, predicted, labels=range(7), average=None)
    assert matrix.f1()[:7] == pytest.approx(expected, abs=1e-12)
    assert matrix.macro_f1() == pytest.approx(expected.mean(), abs=1e-12)
    assert matrix.accuracy() == pytest.approx(sklearn_metrics.accuracy_score(true, predicted), abs=1e-12)
    assert matrix.support[-1] == 0


def test_action_unit_scores_are_sklearns_at_every_threshold():
    frames = made_frames(300, seed=4)
    # Probabilities that lie on thresholds exactly count as predicted.
    probability = np.round(frames["action_units"], 2)
    known = frames["action_unit_known"]
    counts = ThresholdCounts.of(MMA26.action_units, probability, frames["action_unit_label"], known)
    for k in range(0, 17, 4):
        y, p = frames["action_unit_label"][known[:, k], k], probability[known[:, k], k]
        expected = [sklearn_metrics.f1_score(y, p >= t, zero_division=0) for t in THRESHOLDS[::7]]
        assert counts.f1()[k, ::7] == pytest.approx(expected, abs=1e-12)
        assert counts.positives[k] == y.sum()
        assert counts.negatives[k] == (1 - y).sum()


def test_the_chosen_threshold_is_the_best_and_is_found_again_on_other_data():
    validation, test = made_frames(400, seed=5), made_frames(400, seed=6)
    chosen = part(validation, slice(None)).action_units.best_thresholds()
    known = validation["action_unit_known"]
    for k, name in enumerate(MMA26.action_units):
        y, p = validation["action_unit_label"][known[:, k], k], validation["action_units"][known[:, k], k]
        every = [sklearn_metrics.f1_score(y, p >= t, zero_division=0) for t in (*THRESHOLDS[::10], chosen[name])]
        assert max(every) == every[-1]
    stored = json.loads(json.dumps(chosen))
    scores = part(test, slice(None)).scores(stored)
    known = test["action_unit_known"]
    by_hand = [
        sklearn_metrics.f1_score(
            test["action_unit_label"][known[:, k], k], test["action_units"][known[:, k], k] >= chosen[name]
        )
        for k, name in enumerate(MMA26.action_units)
    ]
    assert scores["au_f1"] == pytest.approx(np.mean(by_hand), abs=1e-12)
    assert scores["by_name"]["AU12"]["threshold"] == chosen["AU12"]


def test_of_equal_thresholds_the_nearest_to_a_half_is_chosen():
    counts = ThresholdCounts.of(["low", "none"], [[0.2, 0.9], [0.1, 0.9]], [[1, 0], [0, 0]], np.ones((2, 2)))
    assert counts.best_thresholds() == {"low": 0.2, "none": 0.5}
    apart = ThresholdCounts.of(["a"], [[0.9], [0.1]], [[1], [0]], np.ones((2, 1)))
    assert apart.best_thresholds() == {"a": 0.5}


def test_a_unit_without_positives_leaves_the_mean_and_is_listed():
    frames = made_frames(200)
    rare = MMA26.action_units.index("AU20")
    frames["action_unit_label"][:, rare] = 0
    scores = part(frames, slice(None)).scores()
    others = [scores["by_name"][name]["f1"] for name in MMA26.action_units if name != "AU20"]
    assert scores["au_f1"] == pytest.approx(np.mean(others))
    assert scores["by_name"]["AU20"]["n"] == 0
    assert scores["by_name"]["AU20"]["known"] > 100


def test_the_abaw_score_is_the_sum_of_its_parts_and_says_which_are_absent():
    frames = made_frames(200)
    whole = part(frames, slice(None)).scores()
    va = (whole["valence_ccc"] + whole["arousal_ccc"]) / 2
    assert whole["abaw_score"] == pytest.approx(va + whole["expression_f1"] + whole["au_f1"])
    assert whole["absent"] == []
    frames["expression_label"][:] = -1
    frames["valence_arousal_known"][:] = False
    scores = part(frames, slice(None)).scores()
    assert scores["absent"] == ["valence_arousal", "expressions"]
    assert scores["abaw_score"] == whole["au_f1"]
    assert part(frames, slice(0, 0)).scores()["abaw_score"] == 0


def test_scores_are_by_name_whatever_the_order():
    """The trap of AU columns in lexicographic order."""
    rng = np.random.default_rng(0)
    e, a = rng.permutation(7), rng.permutation(17)
    shuffled = DescriptorSet(
        name="shuffled",
        expressions=tuple(MMA26.expressions[k] for k in e),
        action_units=tuple(MMA26.action_units[k] for k in a),
    )
    frames = made_frames(200)
    moved = dict(frames, expressions=frames["expressions"][:, e])
    moved["expression_label"] = np.array([*np.argsort(e), -1])[frames["expression_label"]]
    for name in ("action_units", "action_unit_label", "action_unit_known"):
        moved[name] = frames[name][:, a]
    thresholds = part(frames, slice(None)).action_units.best_thresholds()
    other = Stage1Metrics.of(shuffled, **moved)
    assert other.action_units.best_thresholds() == thresholds
    assert flat(other.scores(thresholds)) == pytest.approx(flat(part(frames, slice(None)).scores(thresholds)))
    with pytest.raises(ValueError, match="different names"):
        other.merge(part(frames, slice(None)))


def test_values_that_are_no_scores_are_refused_with_their_cause():
    frames = made_frames(10)
    diverged = dict(frames, valence_arousal=np.full((10, 2), np.nan))
    with pytest.raises(ValueError, match="not finite"):
        part(diverged, slice(None))
    marker = dict(frames, action_unit_label=np.full((10, 17), 9.0))
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        part(marker, slice(None))
    with pytest.raises(ValueError, match="map classes by name"):
        part(dict(frames, expression_label=np.full(10, 7)), slice(None))
    with pytest.raises(ValueError, match="no counts"):
        part(frames, slice(None)).scores({"AU01": 0.123})
    with pytest.raises(ValueError, match="does not fit"):
        ConfusionMatrix.of(MMA26.expressions, np.zeros((3, 8)), [0, 1, 2])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), num=st.integers(2, 60), cut=st.integers(0, 60))
def test_pearson_is_numpys_also_of_merged_parts(seed, num, cut):
    rng = np.random.default_rng(seed)
    y = 5 + rng.normal(size=(num, 2))
    x = y + rng.normal(0, [1.0, 1e-9], (num, 2))
    known = rng.random((num, 2)) < 0.8
    known[:2] = True
    halves = [PairMoments.of(VA, x[rows], y[rows], known[rows]) for rows in (slice(cut), slice(cut, None))]
    for k, found in enumerate(halves[0].merge(halves[1]).pearson()):
        assert found == pytest.approx(np.corrcoef(x[known[:, k], k], y[known[:, k], k])[0, 1], abs=1e-9)
        assert -1 <= found <= 1


def test_pearson_of_what_never_varies_is_0():
    y = np.random.default_rng(0).normal(size=(30, 2))
    moments = PairMoments.of(VA, np.stack([np.full(30, 0.1), -y[:, 1]], axis=1), y, np.ones((30, 2)))
    assert moments.pearson() == pytest.approx([0, -1])
    assert (PairMoments.of(VA, y[:0], y[:0], np.ones((0, 2))).pearson() == 0).all()


def test_unknown_cells_may_hold_anything():
    frames = made_frames(50)
    holes = dict(frames)
    holes["valence_arousal_label"] = np.where(frames["valence_arousal_known"], frames["valence_arousal_label"], np.nan)
    holes["action_unit_label"] = np.where(frames["action_unit_known"], frames["action_unit_label"], 999)
    assert part(holes, slice(None)).scores() == part(frames, slice(None)).scores()
