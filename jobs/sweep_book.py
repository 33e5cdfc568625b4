"""The driver's book of a sweep: what each trial is and how it went, one file a trial in `OUT/_trials/`.

A trial's file is written before it starts and when it ends; what lies between is in the state that the trial itself
keeps. So a driver that is killed at any instant finds all of it again.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cluster.storage import Folder
from jobs.sweep_trial import TRIALS_FOLDER, read_state

State = Literal["planned", "running", "done", "stopped", "failed"]
ENDED: tuple[State, ...] = ("done", "stopped", "failed")


@dataclass
class TrialRecord:
    """One configuration and its training."""

    number: int
    settings: dict[str, Any]
    """By name of option, away from the sweep's own."""
    name: str = ""
    """What a person calls it; empty where its settings say it all."""
    state: State = "planned"
    """stopped: by the scheduler, before its end."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """An entry an epoch."""
    error: str | None = None
    mlflow_run_id: str | None = None

    @property
    def score(self) -> float | None:
        """The best validation score so far, the mean of the seeds'; None before the first epoch."""
        return self.history[-1]["score"] if self.history else None

    @property
    def epochs(self) -> int:
        """Epochs trained."""
        return self.history[-1]["epoch"] if self.history else 0

    @property
    def steps(self) -> int:
        """Updates of all seeds."""
        return self.history[-1]["steps"] if self.history else 0

    @property
    def busy_s(self) -> float:
        """Seconds that its process was at it, over all restarts."""
        return self.history[-1]["busy_s"] if self.history else 0.0

    def add(self, entry: Mapping[str, Any]) -> bool:
        """Take an epoch's entry; whether it was new."""
        if entry["epoch"] <= self.epochs:
            return False
        self.history.append(dict(entry))
        return True


class Book:
    """All trials of a sweep by number, as they stand in OUT."""

    def __init__(self, out: Folder) -> None:
        self.out = out
        self.trials: dict[int, TrialRecord] = {}
        self._lock = threading.Lock()

    def read(self) -> None:
        """Take what an earlier driver left. Raises ValueError where a file is damaged."""
        folder = self.out.child(TRIALS_FOLDER)
        for entry in folder.list(suffix=".json"):
            try:
                record = TrialRecord(**json.loads(folder.read(entry.name)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{folder.display}/{entry.name} is damaged ({error}): delete it") from error
            if record.state not in ENDED:
                record.history = read_state(self.out, record.number).history
            self.trials[record.number] = record

    def write(self, record: TrialRecord) -> None:
        """Put one trial down; from any thread."""
        with self._lock:
            self.trials[record.number] = record
            self.out.write(f"{TRIALS_FOLDER}/{record.number:04d}.json", json.dumps(asdict(record)).encode())

    def next_number(self) -> int:
        """Of a trial that is not there yet."""
        return max(self.trials, default=-1) + 1

    def ended(self) -> list[TrialRecord]:
        """Those that are done or were stopped; a failed one is tried again by the next run."""
        return [each for each in self.ordered() if each.state in ("done", "stopped")]

    def ordered(self) -> list[TrialRecord]:
        """All by number."""
        return [self.trials[number] for number in sorted(self.trials)]

    def best(self) -> TrialRecord | None:
        """The one of the highest score; of equals the first. Failed ones do not count."""
        scored = [each for each in self.ordered() if each.score is not None and each.state != "failed"]
        return max(scored, key=lambda each: each.score or 0.0, default=None)
