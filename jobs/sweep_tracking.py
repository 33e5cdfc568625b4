"""A sweep in MLflow: a run for the whole, and inside it a run a trial, written by a thread that never holds it up.

A server that is away for a while costs nothing: what a trial's run lacks is sent when it answers again, and what could
not be sent by the end is reported. A trial has one run, however often the driver is started.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from cluster.tracking import Tracker, TrackingError, find_run, start_run
from jobs.progress import say
from jobs.search_space import told
from jobs.sweep_book import TrialRecord

RETRY_S = 5.0
"""Between two tries of a server that did not answer."""
EVERY_S = 2.0
"""Between two syncs of one trial that still runs."""
STATUS: Mapping[str, Any] = {"done": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
TRIAL_TAG = "mma_mrnnet.trial"


class SweepTracking:
    """The trials' runs under `parent`. `put` returns at once; `close` waits for what is still to be sent."""

    def __init__(
        self,
        parent: Tracker,
        *,
        experiment: str,
        sweep: str,
        cpus: float,
        gpus: float,
        resumed: bool,
        on_run: Callable[[int, str], None],
    ) -> None:
        """`sweep`: the sweep's id; `cpus`, `gpus`: what a trial takes; `resumed`: runs may be there already; `on_run`
        gets a trial's number and its run's id, from the thread."""
        self.parent, self.experiment, self.sweep = parent, experiment, sweep
        self.cpus, self.gpus, self.resumed, self.on_run = cpus, gpus, resumed, on_run
        self._trackers: dict[int, Tracker] = {}
        self._waiting: dict[int, TrialRecord] = {}
        self._sent_s: dict[int, float] = {}
        self._failed = False
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, record: TrialRecord) -> None:
        """Have a trial's run brought up to this state, some time soon."""
        with self._changed:
            self._waiting[record.number] = deepcopy(record)
            self._changed.notify()

    def tracker(self, number: int) -> Tracker | None:
        """Of a trial's run, where it was reached."""
        return self._trackers.get(number)

    def close(self, wait_s: float) -> list[int]:
        """Send the rest, for at most so long; the numbers of trials whose runs lack something."""
        until = time.monotonic() + wait_s
        with self._changed:
            self._closing = True
            self._changed.notify()
        while self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(0.2)
        with self._changed:
            return sorted(self._waiting)

    def _run(self) -> None:
        while True:
            with self._changed:
                number = self._due()
                while number is None:
                    if self._closing and not self._waiting:
                        return
                    self._changed.wait(0.5)
                    number = self._due()
                record = self._waiting[number]
            try:
                self._sync(record)
            except TrackingError as error:
                if not self._failed:
                    say(f"MLflow: {error}; the sweep goes on, and what is missing is sent when it answers")
                self._failed = True
                time.sleep(RETRY_S)
                continue
            if self._failed:
                self._failed = False
                say("MLflow answers again")
            with self._changed:
                self._sent_s[number] = time.monotonic()
                if self._waiting.get(number) is record:
                    del self._waiting[number]

    def _due(self) -> int | None:
        now_s = time.monotonic()
        for number, record in self._waiting.items():
            ended = record.state in STATUS
            if ended or self._closing or now_s - self._sent_s.get(number, -EVERY_S) >= EVERY_S:
                return number
        return None

    def _sync(self, record: TrialRecord) -> None:
        tracker = self._trackers.get(record.number)
        if tracker is None:
            tracker = self._trackers[record.number] = self._open(record)
            self.on_run(record.number, tracker.run_id)
        numbers = [{k: float(v) for k, v in entry.items() if _is_number(v)} for entry in record.history]
        tracker.log_epochs(numbers)
        if record.state not in STATUS:
            return
        tracker.log_metrics(costs(record, self.cpus, self.gpus))
        if record.error is not None:
            tracker.set_tags({"error": record.error})
        tracker.set_tags({"mma_mrnnet.state": record.state})
        tracker.finish(STATUS[record.state])

    def _open(self, record: TrialRecord) -> Tracker:
        tag = f"{self.sweep}/{record.number:04d}"
        run_id = record.mlflow_run_id
        if run_id is None and self.resumed:  # a kill may have come between the run and its record
            run_id = find_run(self.experiment, {TRIAL_TAG: tag}, tracking_uri=self.parent.tracking_uri)
        return start_run(
            experiment=self.experiment,
            run_name=f"{record.number:04d}" + (f" {record.name}" if record.name else ""),
            params={name: told(value) for name, value in record.settings.items()},
            tags={"mlflow.parentRunId": self.parent.run_id, TRIAL_TAG: tag},
            run_id=run_id,
            tracking_uri=self.parent.tracking_uri,
        )


def costs(record: TrialRecord, cpus: float, gpus: float) -> dict[str, float]:
    """What a trial took: seconds from its start to its end over all restarts, and CPU and GPU seconds held."""
    seconds = record.busy_s
    score = {} if record.score is None else {"best_val_mean_pearson": record.score}
    return {**score, "duration_s": seconds, "cpu_s": seconds * cpus, "gpu_s": seconds * gpus}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
