"""One run of `ablate` on the driver: the default and its variants as a sweep's trials, and the table of differences."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from jobs.ablate import VARIANTS, Options
from jobs.ablation_table import Row, draw_table, table_csv, table_markdown
from jobs.outcome import DONE, JobFailedError, Outcome
from jobs.progress import say
from jobs.reaction_run import METRICS_FILE
from jobs.search_space import flat_settings, with_settings
from jobs.sweep import SweepRun
from jobs.sweep_book import TrialRecord
from jobs.sweep_search import Planned
from jobs.sweep_trial import FinishedTrial
from jobs.training_run import read_samples
from rnn.bootstrap import holm, paired_difference
from rnn.network import NetworkConfig
from rnn.training.data import labels_of, person_numbers

CSV_FILE, MARKDOWN_FILE, FIGURE_FILE = "ablation.csv", "ablation.md", "ablation.png"
DEFAULT = "default"


class AblateRun(SweepRun):
    """One ablation."""

    job = "ablate"
    model_file = CSV_FILE
    free = SweepRun.free | {"max_concurrent"}

    def __init__(self, options: Options):
        super().__init__(options)
        self.options: Options = options

    def variants(self) -> dict[str, dict[str, Any]]:
        """Settings by name, the default's own (none) first; what changes nothing is left out."""
        base = flat_settings(self.options)
        data = self.record.get("data", {"videos": {}})
        people = {name: data["subjects"][name] for name, count in data["videos"].items() if count}
        # OpenFace's intensities run to 5.
        intensities = any(name.endswith("_r") for name in data.get("descriptors", ()))
        found: dict[str, dict[str, Any]] = {DEFAULT: {}}
        for group in self.options.groups:
            for name, settings in VARIANTS[group].items():
                unknown = settings.get("sequence.normalise") == "subject" and None in people.values()
                unfit = intensities and settings.get("sequence.probabilities") == "log-odds"
                if not unknown and not unfit and any(base[key] != value for key, value in settings.items()):
                    found[f"{group}: {name}"] = dict(settings)
        return found

    def networks(self) -> list[NetworkConfig]:
        """Of all variants."""
        return [with_settings(self.options, settings).network for settings in self.variants().values()]

    def check_plan(self) -> None:
        """Each variant is made once: what does not go together is told now."""
        self.networks()

    def plan_trials(self) -> None:
        """All of them are known."""
        for number, (name, settings) in enumerate(self.variants().items()):
            if number not in self.book.trials:
                self.book.write(TrialRecord(number=number, settings=settings, name=name))

    def expected_trials(self) -> int:
        """The default and its variants."""
        return len(self.book.trials)

    def searcher(self, at_once: int) -> Planned:
        """In their order; what has begun comes first."""
        return Planned(sorted(self.left(), key=lambda each: (each.state == "planned", each.number)), self.config_of)

    def conclude(self) -> Outcome:
        """The table."""
        records = self.book.ordered()
        if records[0].state == "failed":
            self._close_tracking()
            raise JobFailedError(f"the default itself failed ({records[0].error}): there is nothing to compare with")
        say("scoring")
        finished = self.finish_trials([each for each in records if each.state == "done"], floors=False)
        split = next((name for name in ("test", "val") if name in finished[0].predictions), "val")
        rows = self._rows(records, finished, split)
        told = {"split": split, "seeds": list(self.options.seeds), "rows": [vars(row) for row in rows]}
        by = rows[0].by
        left = {
            CSV_FILE: table_csv(rows),
            MARKDOWN_FILE: table_markdown(rows, split, len(self.options.seeds)).encode(),
            FIGURE_FILE: draw_table(rows, split),
            METRICS_FILE: json.dumps(told, indent=1).encode(),
        }
        summary = {
            "job": self.job,
            "run_id": self.record["run_id"],
            "seconds": round(time.monotonic() - self.started_s, 3),
            "out": self.folder.display,
            "table": f"{self.folder.display}/{CSV_FILE}",
            "trials": {
                "all": len(records),
                **{state: sum(each.state == state for each in records) for state in ("done", "failed")},
            },
            "split": split,
            "interval_by": by,
            "default": rows[0].mean_pearson,
            "better": [row.variant for row in rows[1:] if row.sure and (row.difference or 0) > 0],
            "worse": [row.variant for row in rows[1:] if row.sure and (row.difference or 0) < 0],
        }
        missing = self._close_tracking()
        self.leave(left, summary | ({"untracked_trials": missing} if missing else {}))
        scores = {f"{split}_mean_pearson_{row.number:02d}": row.mean_pearson for row in rows if row.error is None}
        self.log_result({name: float(value or 0.0) for name, value in scores.items()}, left)
        say(left[MARKDOWN_FILE].decode())
        return Outcome(summary=self.record["summary"], exit_code=DONE)

    def _rows(self, records: list[TrialRecord], finished: dict[int, FinishedTrial], split: str) -> list[Row]:
        samples = read_samples(self.folder)
        samples = samples.filter(np.array(samples["split"].to_pylist(), object) == split)
        labels, people = labels_of(samples), person_numbers(samples)
        default = finished[0].predictions[split]
        rows, p = [], {}
        for record in records:
            group, _, variant = record.name.partition(": ")
            common: dict[str, Any] = {"number": record.number, "group": group, "variant": variant or DEFAULT}
            if record.number not in finished:
                rows.append(Row(**common, error=record.error or "not trained"))
                continue
            seeds = finished[record.number].scores["splits"][split]["seeds"]
            interval = finished[record.number].scores["splits"][split]["interval"]
            row = Row(
                **common,
                mean_pearson=seeds["mean"],
                spread=seeds["spread"],
                by=interval["by"],
                epochs=record.epochs,
                busy_s=round(record.busy_s, 1),
            )
            if record.number:
                difference = paired_difference(finished[record.number].predictions[split], default, labels, people)
                row.difference, row.low, row.high = (difference[key] for key in ("difference", "low", "high"))
                p[record.number] = row.p = difference["p"]
            rows.append(row)
        adjusted = holm({str(number): value for number, value in p.items()})
        for row in rows:
            if str(row.number) in adjusted:
                row.p_holm = adjusted[str(row.number)]
        return rows
