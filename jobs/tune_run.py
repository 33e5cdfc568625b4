"""One run of `tune` on the driver: what is drawn, what ASHA has seen already, and what is left of a sweep."""

from __future__ import annotations

import csv
import io
import json
import time
from types import SimpleNamespace
from typing import Any

import yaml
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from ray.tune.search import Searcher

from jobs.card_facts import CARD_FILE, reaction_card
from jobs.outcome import DONE, InputError, Outcome, input_errors
from jobs.progress import say
from jobs.reaction_run import METRICS_FILE, score_numbers, told_scores
from jobs.reaction_training import MODEL_FILE
from jobs.search_space import check_space, flat_settings, read_space, told, with_settings
from jobs.sweep import SweepRun
from jobs.sweep_book import TrialRecord
from jobs.sweep_report import sweep_page
from jobs.sweep_search import METRIC, MODE, Adaptive, Planned
from jobs.sweep_tracking import costs
from jobs.tune import Options
from rnn.training.final import summary_numbers

TABLE_FILE, BEST_FILE, PAGE_FILE = "trials.csv", "best.yaml", "sweep.html"


class TuneRun(SweepRun):
    """One sweep over a search space."""

    job = "tune"
    free = SweepRun.free | {"max_concurrent", "alias"}

    def __init__(self, options: Options):
        super().__init__(options)
        self.options: Options = options

    def check_plan(self) -> None:
        """The space, and under random search each configuration that will be tried."""
        self.space = read_space(self.options.space)
        check_space(self.space, self.options)
        if self.options.search == "random":
            for number in range(self.options.trials):
                self._check(number, self._drawn(number))
        if not self.options.subjects and any(
            each.name == "sequence.normalise" and "subject" in (each.choices or ()) for each in self.space
        ):
            say("sequence.normalise subject needs every video's subject: trials without fail; give --subjects")

    def _drawn(self, number: int) -> dict[str, Any]:
        return {each.name: each.draw(self.options.search_seed, number) for each in self.space}

    def _check(self, number: int, settings: dict[str, Any]) -> None:
        with input_errors(ValueError, option=f"configuration {number} of the search space"):
            with_settings(self.options, settings)

    def descriptors(self) -> list[tuple[str, ...]]:
        """Every choice of the space."""
        choices = [each.choices or () for each in self.space if each.name == "sequence.descriptors"]
        return [*super().descriptors(), *(tuple(asked) for each in choices for asked in each)]

    def plan_trials(self) -> None:
        """Under random search, all of them; under Optuna they come one by one."""
        if self.options.search == "random":
            for number in range(self.options.trials):
                if number not in self.book.trials:
                    self.book.write(TrialRecord(number=number, settings=self._drawn(number)))

    def expected_trials(self) -> int:
        """As many as were asked for."""
        return self.options.trials

    def searcher(self, at_once: int) -> Searcher:
        """Planned or adaptive; what has begun comes first."""
        begun = sorted(self.left(), key=lambda each: (each.state == "planned", each.number))
        if self.options.search == "random":
            return Planned(begun, self.config_of)
        return Adaptive(
            self.space,
            count=self.options.trials,
            seed=self.options.search_seed,
            known=self.book.ended(),
            begun=begun,
            new=self.new_trial,
            config=self.config_of,
        )

    def scheduler(self) -> TrialScheduler | None:
        """ASHA, which is told what ended trials had reached in an earlier run; others report theirs again."""
        options = self.options
        if options.scheduler == "none":
            return None
        asha = ASHAScheduler(
            time_attr="epoch",
            max_t=options.fit.epochs,
            grace_period=self.grace_epochs(),
            reduction_factor=options.reduction,
        )
        asha.set_search_properties(METRIC, MODE)
        for record in self.book.ended():
            before: Any = SimpleNamespace(trial_id=f"ended-{record.number}")
            asha.on_trial_add(None, before)  # type: ignore[arg-type]  # the controller is not looked at
            for entry in record.history:
                asha.on_trial_result(None, before, entry)  # type: ignore[arg-type]
        asha._metric = asha._mode = None  # set once more by Tune, with the same
        return asha

    def grace_epochs(self) -> int:
        """Epochs that no trial is stopped before."""
        return self.options.grace_epochs or max(1, self.options.fit.epochs // 10)

    # --- the end ---

    def conclude(self) -> Outcome:
        """The best trial's model and scores, the table, the page."""
        best = self.book.best()
        if best is None:
            raise InputError("no trial came as far as a score: run again with --resume")
        finished = self.finish_trials([best], floors=True)[best.number]
        scores = finished.scores | {"history": best.history}
        chosen = with_settings(self.options, best.settings)
        split = next((name for name in ("test", "val") if name in scores["splits"]), None)
        metrics = summary_numbers(scores["splits"][split]) if split else {}
        records = self.book.ordered()
        counts = {state: sum(each.state == state for each in records) for state in ("done", "stopped", "failed")}
        summary = {
            "job": self.job,
            "run_id": self.record["run_id"],
            "seconds": round(time.monotonic() - self.started_s, 3),
            "out": self.folder.display,
            "model": f"{self.folder.display}/{MODEL_FILE}",
            "trials": {"all": len(records), **counts},
            "steps": sum(each.steps for each in records),
            "best": {
                "trial": best.number,
                "settings": {name: told(value) for name, value in best.settings.items()},
                "val_mean_pearson": best.score,
            },
            "split": split,
            "metrics": metrics,
        }
        of_best = {**self.record, "options": {**self.record["options"], **_nested(flat_settings(chosen))}}
        workers = self.trial_workers
        left = {
            MODEL_FILE: finished.model,
            METRICS_FILE: json.dumps(scores, indent=1).encode(),
            CARD_FILE: reaction_card(of_best, scores, finished.model).encode(),
            TABLE_FILE: _table(records, workers.count * workers.cpus, workers.count * workers.gpus),
            BEST_FILE: yaml.safe_dump(_nested(flat_settings(chosen)) | {"seeds": list(chosen.seeds)}).encode(),
        }
        left[PAGE_FILE] = sweep_page(
            self.space,
            records,
            best,
            scores["splits"],
            facts={
                "search": self.options.search,
                "scheduler": self.options.scheduler,
                "grace": self.grace_epochs(),
                "reduction": self.options.reduction,
                "seeds": list(self.options.seeds),
                "labels": self.record["data"]["labels"],
                "seconds": summary["seconds"],
                "stores": self.record["data"]["stores"],
            },
        ).encode()
        missing = self._close_tracking()
        self.leave(left, summary | ({"untracked_trials": missing} if missing else {}))
        self._track_best(best, finished.model)
        numbers = {
            f"final_{name}_{key}": v for name, each in scores["splits"].items() for key, v in score_numbers(each)
        }
        self.log_result({**numbers, "best_trial": best.number}, left)
        self.register(finished.model, alias=self.options.alias)
        for name, each in scores["splits"].items():
            say(told_scores(name, each))
        say(
            f"best of {len(records)} trials: {best.number}, "
            + ", ".join(f"{name} {told(value)}" for name, value in best.settings.items())
        )
        return Outcome(summary=self.record["summary"], exit_code=DONE)

    def _track_best(self, best: TrialRecord, model: bytes) -> None:
        tracker = self.tracking.tracker(best.number) if self.tracking else None
        if tracker is not None:
            self.track(lambda _: tracker.log_files({MODEL_FILE: model}))


def _nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted names as a file for --config has them."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        value = list(value) if isinstance(value, tuple) else value
        group, _, rest = name.rpartition(".")
        (result.setdefault(group, {}) if group else result)[rest] = value
    return result


def _table(records: list[TrialRecord], cpus: float, gpus: float) -> bytes:
    names = list(dict.fromkeys(name for each in records for name in each.settings))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    cost_names = ["duration_s", "cpu_s", "gpu_s"]
    writer.writerow(["trial", "state", "val_mean_pearson", "epochs", "steps", *cost_names, *names, "error"])
    for each in records:
        cost = costs(each, cpus, gpus)
        writer.writerow(
            [
                *(each.number, each.state, "" if each.score is None else f"{each.score:.6f}", each.epochs, each.steps),
                *(f"{cost[name]:.1f}" for name in cost_names),
                *(told(each.settings[name]) if name in each.settings else "" for name in names),
                each.error or "",
            ]
        )
    return buffer.getvalue().encode()
