"""Floors beside the scores of stage 1: what a constant scores by the metrics' own counting, and who predicts one."""

import numpy as np
import pytest

from mma.descriptors import MMA26
from mma.floors import EXPRESSION, constant_floors, constant_predictions
from mma.metrics import Stage1Metrics

N = 200


def metrics(*, valence_arousal=None, expressions=None, action_units=None, seed=0) -> Stage1Metrics:
    """Random labels, a third of the action units' cells unknown; predictions as given, else random."""
    rng, of_labels = np.random.default_rng(seed), np.random.default_rng(99)
    classes, units = len(MMA26.expressions), len(MMA26.action_units)
    return Stage1Metrics.of(
        MMA26,
        valence_arousal=rng.uniform(-1, 1, (N, 2)) if valence_arousal is None else valence_arousal,
        expressions=rng.random((N, classes)) if expressions is None else expressions,
        action_units=rng.random((N, units)) if action_units is None else action_units,
        valence_arousal_label=of_labels.uniform(-1, 1, (N, 2)),
        valence_arousal_known=np.ones((N, 2), bool),
        expression_label=of_labels.choice([-1, 0, 0, 0, 1, 2, 3], N),
        action_unit_label=(of_labels.random((N, units)) < np.linspace(0, 0.9, units)).astype(float),
        action_unit_known=of_labels.random((N, units)) < 0.67,
    )


def test_floors_are_what_constant_predictors_score():
    always = constants(0)
    scores, floors = always.scores(), constant_floors(metrics())
    for name in MMA26.action_units:
        assert floors["by_name"][name] == pytest.approx(scores["by_name"][name]["f1"])
    for name in ("valence_ccc", "arousal_ccc", "au_f1", "expression_f1", "expression_accuracy", "abaw_score"):
        assert floors[name] == pytest.approx(scores[name]), name
    for k, name in enumerate(MMA26.expressions):
        assert floors["by_name"][name] == pytest.approx(constants(k).scores()["by_name"][name]["f1"])
    assert max(constants(k).scores()["expression_f1"] for k in range(7)) == floors["expression_f1"]


def constants(expression: int) -> Stage1Metrics:
    """One class, every action unit, one valence."""
    chosen = np.tile(np.eye(7)[expression], (N, 1))
    return metrics(valence_arousal=np.full((N, 2), 0.3), expressions=chosen, action_units=np.ones((N, 17)))


def test_floors_do_not_look_at_the_predictions():
    assert constant_floors(metrics()) == constant_floors(constants(2))


def test_constant_predictions_are_told_with_their_value():
    told = constant_predictions(constants(3), {})
    assert (told["valence"], told["arousal"], told[EXPRESSION]) == ("always 0.300", "always 0.300", "always fear")
    assert "AU01" not in told  # it has no positives here
    assert {told[name] for name in MMA26.action_units[1:]} == {"always present"}


def test_a_threshold_can_make_a_prediction_constant():
    units = np.random.default_rng(1).uniform(0.2, 0.4, (N, 17))
    part = metrics(action_units=units)
    assert constant_predictions(part, {})["AU26"] == "never present"
    assert constant_predictions(part, {"AU26": 0.1})["AU26"] == "always present"
    assert "AU26" not in constant_predictions(part, {"AU26": 0.3})
    assert constant_predictions(metrics(), {}) == {}


def test_nothing_labelled_has_floors_of_0_and_no_flag():
    none = Stage1Metrics.of(
        MMA26, valence_arousal=np.zeros((3, 2)), expressions=np.zeros((3, 7)), action_units=np.zeros((3, 17)),
        valence_arousal_label=np.zeros((3, 2)), valence_arousal_known=np.zeros((3, 2), bool),
        expression_label=np.full(3, -1), action_unit_label=np.zeros((3, 17)), action_unit_known=np.zeros((3, 17), bool),
    )  # fmt: skip
    floors = constant_floors(none)
    assert {value for value in floors.values() if not isinstance(value, dict)} == {0.0}
    assert set(floors["by_name"].values()) == {0.0}
    assert constant_predictions(none, {}) == {}
