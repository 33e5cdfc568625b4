"""What the pipeline delivers, counted and committed: the one writer's side of an extraction, on the driver."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from cluster.lock import StoreLock
from cluster.session import Stop
from cluster.storage import Folder
from cluster.uri import StorageError
from jobs.delivery import delivered
from jobs.outcome import JobFailedError
from jobs.pipeline import UNREACHABLE
from jobs.progress import RunProgress, say
from mma.store import schema as s
from mma.store.rows import VideoAssembler, video_status
from mma.store.writer import StoreWriter

SILENT_S = 300.0
"""Time without one video from storage after which few errors in a row end the run."""


@dataclass
class Reachability:
    """When storage that answers with errors ends the run: 20 videos in a row, 10 % of the last 200, or 5 in a row where
    none could be had for 5 minutes, since a server that never answers takes two of them for each.

    A failing server must not turn good videos into failed ones, nor keep a run busy for a night.
    """

    in_a_row: int = 0
    recent: collections.deque[bool] = field(default_factory=lambda: collections.deque(maxlen=200))
    last_words: str = ""
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.last_had_s = self.clock()

    def saw(self, error: str | None) -> None:
        """A video was read (None) or storage gave an error for it.

        Raises:
            JobFailedError: that has become the rule; in the server's words.
        """
        self.recent.append(error is not None)
        self.in_a_row = 0 if error is None else self.in_a_row + 1
        self.last_words = error or self.last_words
        if error is None:
            self.last_had_s = self.clock()
            return
        often = len(self.recent) == self.recent.maxlen and sum(self.recent) >= 0.1 * len(self.recent)
        silent = self.in_a_row >= 5 and self.clock() - self.last_had_s >= SILENT_S
        if self.in_a_row >= 20 or often or silent:
            raise JobFailedError(
                f"{sum(self.recent)} of the last {len(self.recent)} videos could not be had: {error}. "
                f"What was complete is in the store: run the same command again when that is mended"
            )


class Intake:
    """Takes batches, and commits whole videos as long as the store's lock is ours."""

    def __init__(self, folder: Folder, lock: StoreLock, writer: StoreWriter, progress: RunProgress, stop: Stop):
        self.folder, self.lock, self.writer = folder, lock, writer
        self.progress, self.stop = progress, stop
        self.assembler = VideoAssembler(writer.run_id)
        self.reachability = Reachability()
        self.retries = 0
        """Requests that workers sent again to object storage."""

    def take(
        self,
        batches: Iterable[pa.Table],
        *,
        watch: Callable[[bool], str | None] = lambda arrived: None,
        close: Callable[[], None] = lambda: None,
    ) -> str | None:
        """Take what the pipeline delivers until it ends or a signal comes; commit as it falls due.

        Args:
            batches: what the pipeline delivers.
            watch: asked at each turn, with whether a batch has come: why to leave this pipeline before its end.
            close: ends the pipeline then.

        Returns:
            what `watch` said, None where the pipeline came to its end or a signal was.

        Raises:
            JobFailedError: the store's lock is lost, the store cannot be written, or storage gives no videos.
        """
        try:
            with delivered(batches) as incoming:
                for batch in incoming:
                    if self.stop.signal:
                        say("stopping: what is complete is committed")
                        self.commit()  # at once: leaving the block waits for the pipeline to close
                        return None
                    if batch is not None:
                        self._add(batch)
                    if self.writer.due or self.lock.lost:
                        self.commit()
                    self.progress.tick()
                    if (reason := watch(batch is not None)) is not None:
                        close()
                        return reason
        finally:
            self.assembler.drop_incomplete()
        return None

    def _add(self, batch: pa.Table) -> None:
        self.retries += pc.sum(batch["retries"]).as_py() or 0
        self.progress.frames += pc.sum(batch["num_frames"]).as_py() or 0
        missed = pc.equal(batch["status"], UNREACHABLE)
        for video in self.assembler.add(batch.filter(pc.invert(missed)).drop_columns(["retries"])):
            self.reachability.saw(None)
            self.writer.add(video)
            self.progress.advance(failed=video_status(video) == s.FAILED)
        for words in batch.filter(missed)["error_message"].to_pylist():
            self.reachability.saw(words)

    def commit(self) -> None:
        """Write what is complete, if the store is still ours to write to.

        Raises:
            JobFailedError: it is not, or storage refuses. A file that landed after the lock was lost is taken back.
        """
        why = self.lock.trouble or "it was taken over by another run"
        lost = JobFailedError(f"the lock on {self.folder.display} is lost: {why}; nothing more is written")
        if self.lock.lost:
            raise lost
        try:
            written = self.writer.commit()
            if self.lock.lost:
                self.folder.delete(written)
                raise lost
        except StorageError as error:
            raise JobFailedError(
                f"the store cannot be written: {error}. What was committed before stands; run the same command again"
            ) from error
