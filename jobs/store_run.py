"""What the jobs that fill a feature store share on the driver: whose store it is, its records, and how a run ends."""

from __future__ import annotations

import json
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar

import pyarrow as pa

from cluster import metrics
from cluster.lock import StoreLock
from cluster.s3 import retry_count
from cluster.session import Stop
from cluster.storage import Folder
from cluster.uri import StorageError
from jobs.intake import Intake
from jobs.outcome import DONE, FAILED, TOO_MANY_FAILURES, JobFailedError, Outcome, input_errors
from jobs.progress import say
from jobs.todo import ToDo, left_to_do
from mma.store import schema as s
from mma.store.reader import count_statuses
from mma.store.writer import new_run_id


class StoreRun:
    """One run on one store; a job's own class plans, fills and sums up with these."""

    job: ClassVar[str]
    """Its name on the command line."""
    noun: ClassVar[str] = "videos"
    """What its plan is of."""
    why_failed: ClassVar[str] = ""
    """What is told beside too many failures."""

    lock: StoreLock

    def __init__(self, options: Any):
        """`options`: a dataclass with `store`, `retry_failed`, `redo_changed` and `max_failed_fraction`."""
        self.options = options
        self.started_s = time.monotonic()
        self.run_id = new_run_id()
        self.retries_before = retry_count()
        self.intake: Intake | None = None
        self.error: JobFailedError | None = None
        with input_errors():
            self.folder = Folder(options.store)

    def take_store(self, held: ExitStack) -> None:
        """Be the one run of the store until `held` ends. Raises one of `STORE_ERRORS`."""
        self.folder.check_writable()
        holder = f"run {self.run_id} on {socket.gethostname()}"
        self.lock = held.enter_context(StoreLock(self.folder, holder, on_wait=say))
        for folder in (self.folder, self.folder.child(s.RUNS_FOLDER)):
            folder.sweep_temporaries(older_than_s=0)  # the lock is ours, so their writers have ended

    def left_of(self, planned: pa.Table) -> ToDo:
        """What the store lacks of a plan. Raises as `jobs.todo.left_to_do` does."""
        options = self.options
        return left_to_do(self.folder, planned, retry_failed=options.retry_failed, redo_changed=options.redo_changed)

    def record(self, state: str, summary: dict[str, Any] | None = None) -> None:
        """The run's own file in the store: what was asked, and how it ended."""
        record = {"run_id": self.run_id, "state": state, "options": vars(self.options), "summary": summary}
        runs = self.folder.child(s.RUNS_FOLDER)
        runs.write(f"{self.run_id}.json", json.dumps(record, indent=1, default=str).encode())

    def fill(self, intake: Intake, stop: Stop, take: Callable[[], None]) -> None:
        """Run `take`, which feeds the intake; whatever ends it, what is complete is committed, and `error` says why."""
        self.intake = intake
        totals = metrics.Totals()
        intake.progress.on_tick = lambda: self._tell(intake, totals)
        stop.soft = True
        try:
            take()
        except JobFailedError as error:
            self.error = error
        except Exception as error:  # of Ray or of its tasks: told whole, and then the run ends as any other
            traceback.print_exc()
            first = str(error).strip().splitlines()[:1] or [type(error).__name__]
            self.error = JobFailedError(f"the pipeline ended with {type(error).__name__}: {first[0]}")
        try:
            intake.commit()
        except JobFailedError as error:
            self.error = self.error or error
        self._tell(intake, totals)

    def _tell(self, intake: Intake, totals: metrics.Totals) -> None:
        for status, videos in intake.writer.videos.items():
            totals.tell(metrics.VIDEOS, videos, status=status)
        totals.tell(metrics.FRAMES, intake.writer.frames)
        totals.tell(metrics.RETRIES, self._retries())

    def _retries(self) -> int:
        """Requests that the driver and the workers sent again to object storage."""
        return retry_count() - self.retries_before + (self.intake.retries if self.intake else 0)

    def sum_up(self, todo: ToDo, stop: Stop, **more: Any) -> Outcome:
        """The summary, with `more` in it, and how the run ended; both are noted in the store where it did anything."""
        writer = self.intake.writer if self.intake else None
        mine = dict(writer.videos) if writer else dict.fromkeys(s.STATUSES, 0)
        store = count_statuses(todo.index)
        store = {status: store[status] + mine[status] for status in s.STATUSES}
        lacking = todo.videos.num_rows - sum(mine.values())
        state, code = self._verdict(store, lacking, stop)
        seconds = time.monotonic() - self.started_s
        frames = writer.frames if writer else 0
        summary: dict[str, Any] = {
            "job": self.job,
            "run_id": self.run_id,
            "seconds": round(seconds, 3),
            "videos": todo.planned.num_rows,
            "units": writer.rows if writer else 0,
            **mine,
            "skipped": todo.skipped,
            "forgotten": todo.forgotten,
            "frames": frames,
            "frames_per_s": round(frames / seconds, 2),
            "changed": todo.changed,
            "missing": lacking,
            "retries": self._retries(),
            "store": self.folder.display,
            "store_videos": store,
            **more,
        }
        if self.intake and not self.lock.lost:
            try:
                self.folder.write(s.SUMMARY_FILE, json.dumps(summary, indent=1).encode())
                self.record(state, summary)
            except StorageError as error:
                say(f"the summary cannot be written into the store: {error}")
                code = code or FAILED
        return Outcome(summary=summary, exit_code=code)

    def lacking_words(self, count: int) -> str:
        """What is told where so many of the plan did not arrive."""
        raise NotImplementedError

    def _verdict(self, store: dict[str, int], lacking: int, stop: Stop) -> tuple[str, int]:
        if self.error is not None:
            say(f"mma-mrnnet {self.job} failed: {self.error}")
            return "failed", FAILED
        if stop.signal:
            return "interrupted", stop.exit_code
        if lacking:
            say(self.lacking_words(lacking))
            return "incomplete", FAILED
        failed, total, allowed = store[s.FAILED], sum(store.values()), self.options.max_failed_fraction
        if total and failed / total > allowed:
            say(f"{failed} of {total} {self.noun} failed, more than --max-failed-fraction {allowed}{self.why_failed}")
            return "done with failures", TOO_MANY_FAILURES
        return "done", DONE
