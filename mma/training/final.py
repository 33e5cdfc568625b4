"""The scores that a training ends with: everything chosen on validation, and reported for people nobody chose by."""

from __future__ import annotations

from typing import Any

import numpy as np

from mma.metrics import DEFAULT_THRESHOLD, Stage1Metrics, ThresholdCounts
from mma.network import MMANetwork
from mma.training.loop import Training

CROSS_FITTED = "cross-fitted over two halves of the validation subjects"


def final_scores(training: Training, network: MMANetwork) -> dict[str, Any]:
    """Scores of a network, by all ranks together.

    `thresholds` (action unit -> threshold, chosen on validation), `split` (the one that the scores are of) and
    `scores` (`Stage1Metrics.scores`), `threshold_choice` in words, and `val` with the scores on validation itself.
    Without labelled test samples, the scores are of validation with thresholds cross-fitted over two halves of its
    subjects (PAPER.md, "Metrics"); without any validation samples, of nothing: {}.
    """
    val_rows, test_rows = training.data.of_split("val"), training.data.of_split("test")
    val = training.evaluate(val_rows, network)
    if val is None:
        return {}
    thresholds = val.action_units.best_thresholds()
    told: dict[str, Any] = {"thresholds": thresholds, "val": val.scores(thresholds)}
    test = training.evaluate(test_rows, network)
    scores = test.scores(thresholds) if test is not None else {}
    if scores and len(scores["absent"]) < len(network.config.descriptors.families):
        return told | {"split": "test", "threshold_choice": "val", "scores": scores}
    first = np.isin(training.data.people[val_rows], _half(training.data.people[val_rows]))
    halves = [training.evaluate(val_rows[mask], network) for mask in (first, ~first)]
    if halves[0] is None or halves[1] is None:
        return told | {
            "split": "val",
            "threshold_choice": "val itself: one subject cannot be halved",
            "scores": told["val"],
        }
    return told | {"split": "val", "threshold_choice": CROSS_FITTED, "scores": cross_fitted(halves[0], halves[1])}


def cross_fitted(one: Stage1Metrics, other: Stage1Metrics) -> dict[str, Any]:
    """Scores of two halves together, the action units of each at the thresholds that are best on the other."""
    counts = []
    for half, chosen_on in ((one, other), (other, one)):
        units, thresholds = half.action_units, chosen_on.action_units.best_thresholds()
        index = [units.thresholds.index(thresholds[name]) for name in units.names]
        rows = np.arange(len(units.names))
        counts.append(
            ThresholdCounts(
                names=units.names,
                thresholds=(DEFAULT_THRESHOLD,),
                positives=units.positives,
                negatives=units.negatives,
                true_positives=units.true_positives[rows, index][:, None],
                false_positives=units.false_positives[rows, index][:, None],
            )
        )
    both = one.merge(other)
    scores = Stage1Metrics(
        valence_arousal=both.valence_arousal, expressions=both.expressions, action_units=counts[0].merge(counts[1])
    ).scores()
    for name in both.action_units.names:
        del scores["by_name"][name]["threshold"]  # there are two
    return scores


def _half(people: np.ndarray) -> np.ndarray:
    """Every second person, in the order of a fixed shuffle."""
    return np.random.default_rng(0).permutation(np.unique(people))[::2]
