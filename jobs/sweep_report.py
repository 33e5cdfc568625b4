"""`sweep.html`: the best configurations, all of them side by side, their learning curves, what mattered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.page import page_environment
from jobs.search_space import Space, told
from jobs.sweep_book import TrialRecord
from jobs.sweep_figures import importance_bars, learning_curves, parallel_coordinates

SHOWN = 10
"""Configurations in the table of the best."""
LEAST_FOR_IMPORTANCE = 8
"""Trials under which nothing is said about settings; under five times as many it is said with a warning."""


def sweep_page(
    space: Space,
    records: Sequence[TrialRecord],
    best: TrialRecord,
    scores: Mapping[str, Any],
    *,
    facts: Mapping[str, Any],
) -> str:
    """The page, self-contained; `scores` are the best trial's by split, `facts` are of the sweep."""
    environment = page_environment()
    environment.filters["told"] = setting_told
    ranked = sorted((each for each in records if each.score is not None), key=lambda each: -(each.score or 0.0))
    importance = importances(space, records)
    return environment.get_template("sweep.html").render(
        records=records,
        best=best,
        ranked=ranked[:SHOWN],
        names=[each.name for each in space],
        scores=scores,
        sweep=facts,
        counts={state: sum(each.state == state for each in records) for state in ("done", "stopped", "failed")},
        stopped=[each for each in records if each.state == "stopped"],
        failed=[each for each in records if each.state == "failed"],
        steps=sum(each.steps for each in records),
        parallel=parallel_coordinates(space, records, best),
        curves=learning_curves(records, best),
        importance=importance_bars(importance) if importance else None,
        few=len(ranked) < 5 * LEAST_FOR_IMPORTANCE,
        least=LEAST_FOR_IMPORTANCE,
    )


def setting_told(record: TrialRecord, name: str) -> str:
    """A trial's setting as the tables show it."""
    return told(record.settings[name]) if name in record.settings else ""


def importances(space: Space, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Optuna's fANOVA: by setting, the share of the variance of the scores that it explains; empty for few trials.

    Trials that were stopped early count with what they had reached.
    """
    import optuna

    scored = [each for each in records if each.score is not None and each.state != "failed"]
    if len(scored) < LEAST_FOR_IMPORTANCE or len({each.score for each in scored}) < 2:
        return {}
    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(direction="maximize")
    varies = [each for each in space if len({told(record.settings[each.name]) for record in scored}) > 1]
    distributions = {each.name: each.distribution() for each in varies}
    for record in scored:
        params = {each.name: each.suggestion(record.settings[each.name]) for each in varies}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=record.score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))
