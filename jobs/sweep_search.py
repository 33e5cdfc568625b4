"""Which configuration comes next: those that were planned, or what Optuna makes of those that were trained."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ray.tune.search import Searcher

from jobs.search_space import Space
from jobs.sweep_book import TrialRecord

METRIC, MODE = "score", "max"


class Planned(Searcher):
    """Hands out configurations that are known already, in their order."""

    def __init__(self, records: Iterable[TrialRecord], config: Callable[[TrialRecord], dict[str, Any]]) -> None:
        super().__init__(metric=METRIC, mode=MODE)
        self.records, self.config = list(records), config

    def suggest(self, trial_id: str) -> Any:
        """The next one."""
        return self.config(self.records.pop(0)) if self.records else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learnt from it."""

    def save(self, checkpoint_path: str) -> None:
        """The sweep keeps its own book; Tune's is never read."""
        open(checkpoint_path, "wb").close()

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""
        raise NotImplementedError("a sweep is resumed from its book")

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Adaptive(Planned):
    """First what an earlier driver has begun, then what Optuna's sampler of trees suggests, up to `count` trials."""

    def __init__(
        self,
        space: Space,
        *,
        count: int,
        seed: int,
        known: Iterable[TrialRecord],
        begun: Iterable[TrialRecord],
        new: Callable[[dict[str, Any]], TrialRecord],
        config: Callable[[TrialRecord], dict[str, Any]],
    ) -> None:
        """`known` have ended, `begun` have not; `new` makes a record of a suggestion."""
        import optuna

        optuna.logging.set_verbosity(logging.WARNING)
        super().__init__(begun, config)
        self.space = space
        self.distributions = {each.name: each.distribution() for each in space}
        known = list(known)
        self.left = count - len(known) - len(self.records)
        self.new = new
        sampler = optuna.samplers.TPESampler(seed=seed + len(known), constant_liar=True)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        for record in known:
            self.study.add_trial(
                optuna.trial.create_trial(
                    params=self._params(record.settings), distributions=self.distributions, value=record.score or 0.0
                )
            )
        self.asked: dict[str, Any] = {}

    def suggest(self, trial_id: str) -> Any:
        """The next one, recorded before it starts."""
        if self.records:
            record = self.records.pop(0)
            self.study.enqueue_trial(self._params(record.settings))
            self.asked[trial_id] = self.study.ask(self.distributions)
            return self.config(record)
        if self.left < 1:
            return Searcher.FINISHED
        self.left -= 1
        asked = self.asked[trial_id] = self.study.ask(self.distributions)
        return self.config(self.new({each.name: each.value(asked.params[each.name]) for each in self.space}))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the study the score, of a stopped trial the last one."""
        import optuna

        asked = self.asked.pop(trial_id, None)
        if asked is None:
            return
        if result is None or error or METRIC not in result:
            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(asked, result[METRIC])

    def _params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {each.name: each.suggestion(settings[each.name]) for each in self.space}
