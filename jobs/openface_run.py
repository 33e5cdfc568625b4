"""One run of `import-openface`: find the files, subtract what the store has, read the rest side by side, sum up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from cluster.lock import STORE_ERRORS
from cluster.session import stop_signals
from cluster.storage import read
from cluster.uri import StorageError, parse_uri
from jobs.intake import Intake
from jobs.outcome import InputError, JobFailedError, Outcome, input_errors
from jobs.pipeline import UNREACHABLE, cause_of, shown_uri
from jobs.plan import GLOB_SIGNS, Plan, find_videos
from jobs.progress import RunProgress, say
from jobs.store_run import StoreRun
from mma.descriptors import OPENFACE
from mma.openface import OpenFaceError, video_row
from mma.store import schema as s
from mma.store.reader import drop_videos
from mma.store.rows import chunk_row
from mma.store.writer import StoreWriter, settle_spec

READERS = 8
"""Files read side by side."""


class OpenFaceRun(StoreRun):
    """One run; `run` is the whole of it."""

    job = "import-openface"
    noun = "files"
    why_failed = "; error_message in the store's failed-*.parquet says why"

    def run(self) -> Outcome:
        """Find, subtract, read, commit, sum up."""
        options, folder = self.options, self.folder
        files = find_csvs(options.csvs, video_id=options.video_id).videos.slice(0, options.limit)
        say(f"plan: {files.num_rows} csv files -> {folder.display}")
        spec = store_spec(options.confidence)
        with stop_signals() as stop, ExitStack() as held:
            with input_errors(*STORE_ERRORS, option="--store"):
                self.take_store(held)
                with _of_csvs():
                    todo = self.left_of(files)
                settle_spec(folder, spec, has_data=bool(todo.index.num_rows))
                drop_videos(folder, todo.again)
            if todo.videos.num_rows:
                with RunProgress(todo.videos.num_rows, unit="files") as progress:
                    writer = StoreWriter(folder, OPENFACE, spec, self.run_id)
                    intake = Intake(folder, self.lock, writer, progress, stop)
                    self.fill(intake, stop, lambda: self._read(intake, todo.videos))
            return self.sum_up(todo, stop)

    def _read(self, intake: Intake, files: pa.Table) -> None:
        try:
            self.record("running")
        except StorageError as error:
            raise JobFailedError(f"the store cannot be written: {error}") from error
        intake.take(read_files(files, self.options.confidence))

    def lacking_words(self, count: int) -> str:
        """Of files whose storage did not answer."""
        return f"{count} files could not be had: run the same command again when their storage answers"


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
