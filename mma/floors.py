"""What a network that knows nothing would score: the floors that stand beside every score of stage 1.

A constant valence or arousal has CCC 0. Always predicting an action unit has F1 2 p / (1 + p) at a share p of
positives; always predicting a class, the same with its share. The floor of the macro F1 and of the accuracy is the
commonest class, always predicted. Shares are those of the scored labels themselves: no constant does better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mma.metrics import DEFAULT_THRESHOLD, Stage1Metrics

EXPRESSION = "expression"
"""Stands in `constant_predictions` for the expressions together."""


def constant_floors(metrics: Stage1Metrics) -> dict[str, Any]:
    """The best constant predictor's scores, under the names of `Stage1Metrics.scores`; `by_name` has one number each.

    A column without labels has the floor 0.
    """
    support, units = metrics.expressions.support, metrics.action_units
    labelled, classes = int(support.sum()), int((support > 0).sum())
    known = units.positives + units.negatives
    always = {
        **{name: _f1(n, labelled) for name, n in zip(metrics.expressions.names, support.tolist())},
        **{name: _f1(n, all_of) for name, n, all_of in zip(units.names, units.positives.tolist(), known.tolist())},
    }
    expression_f1 = max((always[name] for name in metrics.expressions.names), default=0.0) / max(classes, 1)
    with_positives = [always[name] for name, n in zip(units.names, units.positives.tolist()) if n]
    au_f1 = float(np.mean(with_positives)) if with_positives else 0.0
    moments = metrics.valence_arousal.names
    return {
        **{f"{name}_ccc": 0.0 for name in moments},
        "expression_f1": expression_f1,
        "expression_accuracy": int(support.max(initial=0)) / max(labelled, 1),
        "au_f1": au_f1,
        "abaw_score": expression_f1 + au_f1,
        "by_name": {**dict.fromkeys(moments, 0.0), **always},
    }


def constant_predictions(metrics: Stage1Metrics, thresholds: Mapping[str, float]) -> dict[str, str]:
    """What the network predicts alike for every labelled sample, with the words for it.

    Valence and arousal by their extreme values; `EXPRESSION` where one class alone is ever predicted; action units that
    have positives, at their thresholds (.5 for those not given).
    """
    told = {}
    moments = metrics.valence_arousal
    for k, name in enumerate(moments.names):
        if moments.count[k] > 1 and moments.lowest[0, k] == moments.highest[0, k]:
            told[name] = f"always {moments.lowest[0, k]:.3f}"
    predicted = metrics.expressions.counts.sum(axis=0)
    if predicted.sum() > 1 and (predicted > 0).sum() == 1:
        told[EXPRESSION] = f"always {metrics.expressions.names[int(predicted.argmax())]}"
    units = metrics.action_units
    for k, name in enumerate(units.names):
        place = units.thresholds.index(thresholds.get(name, DEFAULT_THRESHOLD))
        hits = int(units.true_positives[k, place] + units.false_positives[k, place])
        known = int(units.positives[k] + units.negatives[k])
        if known > 1 and units.positives[k] and hits in (0, known):
            told[name] = "always present" if hits else "never present"
    return told


def _f1(positives: int, known: int) -> float:
    """Of predicting it always."""
    return 2 * positives / (positives + known) if positives else 0.0
