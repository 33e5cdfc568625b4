"""One run of `import-openface`: find the files, subtract what the store has, read the rest side by side, sum up."""

from __future__ import annotations

import json
import secrets
import socket
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from cluster.lock import StoreLock
from cluster.s3 import retry_count
from cluster.session import Stop, stop_signals
from cluster.storage import Folder, read
from cluster.uri import StorageError, parse_uri
from jobs.extraction import STORE_ERRORS, ToDo, left_to_do
from jobs.import_openface import Options
from jobs.intake import Intake
from jobs.outcome import DONE, FAILED, TOO_MANY_FAILURES, InputError, JobFailedError, Outcome, input_errors
from jobs.pipeline import UNREACHABLE, cause_of, shown_uri
from jobs.plan import GLOB_SIGNS, Plan, find_videos
from jobs.progress import RunProgress, say
from mma.descriptors import OPENFACE
from mma.openface import OpenFaceError, video_row
from mma.store import schema as s
from mma.store.reader import count_statuses, drop_videos
from mma.store.rows import chunk_row
from mma.store.writer import StoreWriter, settle_spec

READERS = 8
"""Files read side by side."""


class OpenFaceRun:
    """One run; `run` is the whole of it."""

    def __init__(self, options: Options):
        self.options = options
        self.started_s = time.monotonic()
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        self.retries_before = retry_count()
        self.error: JobFailedError | None = None
        with input_errors():
            self.folder = Folder(options.store)

    def run(self) -> Outcome:
        """Find, subtract, read, commit, sum up."""
        options, folder = self.options, self.folder
        files = find_csvs(options.csvs, video_id=options.video_id).videos.slice(0, options.limit)
        say(f"plan: {files.num_rows} csv files -> {folder.display}")
        spec = store_spec(options.confidence)
        with stop_signals() as stop, ExitStack() as held:
            with input_errors(*STORE_ERRORS, option="--store"):
                folder.check_writable()
                holder = f"run {self.run_id} on {socket.gethostname()}"
                lock = held.enter_context(StoreLock(folder, holder, on_wait=say))
                for each in (folder, folder.child(s.RUNS_FOLDER)):
                    each.sweep_temporaries(older_than_s=0)  # the lock is ours, so their writers have ended
                with _of_csvs():
                    todo = left_to_do(
                        folder, files, retry_failed=options.retry_failed, redo_changed=options.redo_changed
                    )
                settle_spec(folder, spec, has_data=bool(todo.index.num_rows))
                drop_videos(folder, todo.again)
            writer = StoreWriter(folder, OPENFACE, spec, self.run_id)
            if todo.videos.num_rows:
                self._read(todo.videos, lock, writer, stop)
            return self._sum_up(todo, writer, lock, stop)

    def _read(self, files: pa.Table, lock: StoreLock, writer: StoreWriter, stop: Stop) -> None:
        """Whatever ends it, what is complete is committed."""
        with RunProgress(files.num_rows, unit="files") as progress:
            intake = Intake(self.folder, lock, writer, progress, stop)
            stop.soft = True
            try:
                self._record("running")
                intake.take(read_files(files, self.options.confidence))
            except JobFailedError as error:
                self.error = error
            except StorageError as error:
                self.error = JobFailedError(f"the store cannot be written: {error}")
            try:
                intake.commit()
            except JobFailedError as error:
                self.error = self.error or error

    def _record(self, state: str, summary: dict[str, Any] | None = None) -> None:
        """The run's own file in the store: what was asked, and how it ended."""
        record = {"run_id": self.run_id, "state": state, "options": vars(self.options), "summary": summary}
        self.folder.child(s.RUNS_FOLDER).write(f"{self.run_id}.json", json.dumps(record, indent=1).encode())

    def _sum_up(self, todo: ToDo, writer: StoreWriter, lock: StoreLock, stop: Stop) -> Outcome:
        old = count_statuses(todo.index)
        store = {status: old[status] + writer.videos[status] for status in s.STATUSES}
        missing = todo.videos.num_rows - sum(writer.videos.values())
        state, code = self._verdict(store, missing, stop)
        seconds = time.monotonic() - self.started_s
        summary = {
            "job": "import-openface",
            "run_id": self.run_id,
            "seconds": round(seconds, 3),
            "videos": todo.planned.num_rows,
            "units": writer.rows,
            **writer.videos,
            "skipped": todo.skipped,
            "forgotten": todo.forgotten,
            "frames": writer.frames,
            "frames_per_s": round(writer.frames / seconds, 2),
            "changed": todo.changed,
            "missing": missing,
            "retries": retry_count() - self.retries_before,
            "store": self.folder.display,
            "store_videos": store,
        }
        if todo.videos.num_rows and not lock.lost:
            try:
                self.folder.write(s.SUMMARY_FILE, json.dumps(summary, indent=1).encode())
                self._record(state, summary)
            except StorageError as error:
                say(f"the summary cannot be written into the store: {error}")
                code = code or FAILED
        return Outcome(summary=summary, exit_code=code)

    def _verdict(self, store: dict[str, int], missing: int, stop: Stop) -> tuple[str, int]:
        if self.error is not None:
            say(f"mma-mrnnet import-openface failed: {self.error}")
            return "failed", FAILED
        if stop.signal:
            return "interrupted", stop.exit_code
        if missing:
            say(f"{missing} files could not be had: run the same command again when their storage answers")
            return "incomplete", FAILED
        failed, total, allowed = store[s.FAILED], sum(store.values()), self.options.max_failed_fraction
        if total and failed / total > allowed:
            say(
                f"{failed} of {total} files failed, more than --max-failed-fraction {allowed}; error_message in the "
                f"store's failed-*.parquet says why"
            )
            return "done with failures", TOO_MANY_FAILURES
        return "done", DONE


def store_spec(min_confidence: float) -> dict[str, Any]:
    """The spec of a store of OpenFace's descriptors: every frame of the source, as OpenFace saw it."""
    return s.make_spec(
        descriptors=OPENFACE,
        weights={"openface": "csv"},
        crop={},
        detector={"detector": "openface", "min_confidence": min_confidence},
        sampling={"fps": None},
        precision="float32",
    )


def find_csvs(uri: str, *, video_id: str) -> Plan:
    """The plan for `--csvs`, as `find_videos` makes it.

    Raises:
        InputError: nothing is there, or two files share an id.
    """
    with input_errors(ValueError, option="--csvs"):
        place = parse_uri(uri)
    if not any(sign in place.path for sign in GLOB_SIGNS):
        # As patterns, so that one csv is not taken for a table of videos, and a folder is searched for csv files.
        plain = str(place).rstrip("/")
        uri = f"{plain[:-1]}[vV]" if plain.lower().endswith(".csv") else f"{plain}/**/*.csv"
    with _of_csvs():
        return find_videos(uri, video_id=video_id)


@contextmanager
def _of_csvs() -> Iterator[None]:
    """What is told of `--videos` is of `--csvs` here."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace("--videos", "--csvs")) from error


def read_files(files: pa.Table, min_confidence: float) -> Iterator[pa.Table]:
    """The rows of these files (`jobs.plan.PLAN_SCHEMA`), one a file and in order, as `Intake` takes them."""
    pending: deque[Future[pa.Table]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for batch in files.to_batches(max_chunksize=1000):
            for file in batch.to_pylist():
                pending.append(pool.submit(read_file, file, min_confidence))
                if len(pending) > 2 * READERS:
                    yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def read_file(file: dict[str, Any], min_confidence: float) -> pa.Table:
    """One file's row; a file that gives no video is a failed row, storage that does not answer an unreachable one."""
    known = {
        "video_id": file["video_id"],
        "uri": shown_uri(file["uri"]),
        "source_version": file["version"],
        "source_bytes": file["bytes"],
    }
    try:
        row = video_row(read(file["uri"]), known, min_confidence=min_confidence)
    except Exception as error:  # whatever it is, it costs its own row alone
        if isinstance(error, OpenFaceError):
            status, stage, kind, message = s.FAILED, "read", error.error_type, str(error)
        else:
            cause = cause_of(error, listed=True)
            status = UNREACHABLE if cause.fault_of_node else s.FAILED
            stage, kind, message = cause.stage, cause.error_type, cause.message
        told = {"error_stage": stage, "error_type": kind, "error_message": message}
        place = {"work_id": f"{file['video_id']}#0", "chunk_index": 0, "num_chunks": 1, "num_frames": 0}
        row = chunk_row(OPENFACE, {**known, **place, "status": status, **told})
    return row.append_column("retries", pa.array([0], pa.int64()))
