"""One run of `extract` on the driver: what is left to do, the loop that counts and commits, and the summary."""

from __future__ import annotations

import collections
import json
import os
import secrets
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.capacity import Capacity, CapacityError, Node, plan_capacity
from cluster.lock import LockHeld, StoreLock
from cluster.s3 import retry_count
from cluster.session import LOCAL, Stop, local_node, ray_session, stop_signals
from cluster.storage import Folder, read
from cluster.uri import StorageError
from jobs.delivery import delivered
from jobs.extract import Options
from jobs.models import load_weights
from jobs.outcome import DONE, FAILED, TOO_MANY_FAILURES, JobFailedError, Outcome, input_errors
from jobs.pipeline import UNREACHABLE, Reading, build
from jobs.plan import find_videos, shard
from jobs.progress import RunProgress, say
from mma.faces.options import FaceOptions
from mma.store import schema as s
from mma.store.reader import count_statuses, delete_failed, drop_videos, read_index
from mma.store.rows import VideoAssembler, video_status
from mma.store.writer import StoreWriter, settle_spec
from mma.video.options import DecodeOptions

ROUNDS = 3
"""A video that did not arrive is planned again at most twice."""


@dataclass
class Reachability:
    """When storage that answers with errors ends the run: 20 videos in a row, or 10 % of the last 200.

    A failing server must not turn good videos into failed ones, nor keep a run busy for a night.
    """

    in_a_row: int = 0
    recent: collections.deque[bool] = field(default_factory=lambda: collections.deque(maxlen=200))
    last_words: str = ""

    def saw(self, error: str | None) -> None:
        """A video was read (None) or storage gave an error for it.

        Raises:
            JobFailedError: that has become the rule; in the server's words.
        """
        self.recent.append(error is not None)
        self.in_a_row = 0 if error is None else self.in_a_row + 1
        self.last_words = error or self.last_words
        if error is not None and (self.in_a_row >= 20 or sum(self.recent) >= 20):
            raise JobFailedError(
                f"storage did not give {sum(self.recent)} of the last {len(self.recent)} videos; its words: {error}. "
                f"What was complete is in the store: run the same command again when storage answers"
            )


class Extraction:
    """State of one run. `run` is the whole of it."""

    def __init__(self, options: Options):
        self.options = options
        self.started_s = time.monotonic()
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        self.weights = load_weights(options.mma)
        faces, self.detector_spec, self.detector_bytes = _faces(options)
        with input_errors(ValueError):
            self.decode = DecodeOptions(
                fps=options.fps,
                chunk_frames=options.chunk_frames,
                decoder=options.decoder,
                memory_bytes=options.decode_memory,
                timeout_s=options.decode_timeout_s,
                faces=faces,
            )
            self.folder = Folder(options.store)
        self.retries = 0
        self.skipped = self.changed = self.lacking = self.repeated_rows = 0
        self.interrupted = False

    def run(self) -> Outcome:
        """Find, subtract, run, commit, sum up."""
        options = self.options
        plan = find_videos(options.videos, video_id=options.video_id)
        self.videos = plan.videos if options.shard is None else shard(plan.videos, options.shard)
        self.videos = self.videos.slice(0, options.limit)
        ignored = f" ({plan.ignored_files} files of other kinds left aside)" if plan.ignored_files else ""
        say(f"plan: {self.videos.num_rows} videos{ignored}, {_megabytes(self.videos)} -> {self.folder.display}")
        if self.weights.random:
            say("the network's weights are random: the descriptors of this store mean nothing, and its spec says so")
        if options.dry_run:
            return self._dry_run()
        with ExitStack() as stack:
            with input_errors(StorageError, LockHeld, option="--store"):
                self.folder.check_writable()
                self.lock = stack.enter_context(StoreLock(self.folder, self._holder()))
            return self._locked_run()

    def _holder(self) -> str:
        return f"run {self.run_id}, process {os.getpid()} on {socket.gethostname()}"

    def _locked_run(self) -> Outcome:
        # The lock is ours, so whoever wrote temporaries here has ended.
        self.folder.sweep_temporaries(older_than_s=0)
        spec = self._settled_spec()
        if self.options.retry_failed:
            freed = delete_failed(self.folder)
            say(f"--retry-failed: {freed} failed videos are planned again")
        todo = self._todo(redo=self.options.redo_changed)
        self.writer = StoreWriter(self.folder, self.weights.descriptors, spec, self.run_id)
        error: JobFailedError | None = None
        stop = Stop()
        if todo.num_rows:
            with input_errors(CapacityError):
                if (self.options.address or os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL:
                    self._capacity([local_node(self.options.num_cpus)])  # an impossible request fails before Ray starts
            self._record("running")
            with ray_session(self.options.address, num_cpus=self.options.num_cpus) as nodes, stop_signals() as stop:
                with input_errors(CapacityError):
                    capacity = self._capacity(nodes)
                say(f"run {self.run_id}: {capacity.told()}")
                try:
                    self._rounds(todo, capacity, stop)
                except JobFailedError as failed:
                    error = failed
                finally:
                    self._commit()
        return self._sum_up(error, stop)

    def _capacity(self, nodes: list[Node]) -> Capacity:
        options = self.options
        return plan_capacity(
            nodes,
            extractors=options.extractors,
            extractor_gpus=options.extractor_gpus,
            decoders=options.decoders,
            decode_cpus=options.decode_cpus,
        )

    def _settled_spec(self) -> dict[str, Any]:
        """The store's spec: written if the store is new, checked if it is not."""
        self.precision = self.options.precision
        if self.precision == "auto":
            if self.folder.exists(s.SPEC_FILE):  # a store keeps the precision it was begun with
                self.precision = json.loads(self.folder.read(s.SPEC_FILE))["precision"]
            else:
                on_gpus = self.options.extractor_gpus != 0 and local_node(None).gpus > 0
                self.precision = "bfloat16" if on_gpus or self.options.extractor_gpus else "float32"
        spec = s.make_spec(
            descriptors=self.weights.descriptors,
            weights=self.weights.spec,
            crop=self.weights.crop,
            detector=self.detector_spec,
            sampling={"fps": self.options.fps},
            precision=self.precision,
        )
        with input_errors(ValueError, StorageError, option="--store"):
            settle_spec(self.folder, spec)
        return spec

    def _todo(self, *, redo: bool) -> pa.Table:
        """What the store does not have yet; videos whose bytes changed since are told, and freed where `redo`."""
        with input_errors(ValueError, StorageError, option="--store"):
            index = read_index(self.folder)
        changed = self._changed(index)
        self.changed = len(changed)
        if changed and redo:
            drop_videos(self.folder, changed)
            index = index.filter(pc.invert(pc.is_in(index["video_id"], value_set=pa.array(sorted(changed)))))
        elif changed:
            say(
                f"{len(changed)} videos have changed since they were extracted, such as {min(changed)!r}; "
                f"--redo-changed extracts them again"
            )
        done = pc.is_in(self.videos["video_id"], value_set=pc.unique(index["video_id"]))
        todo = self.videos.filter(pc.invert(done))
        self.skipped = self.videos.num_rows - todo.num_rows
        if self.skipped:
            say(f"{self.skipped} videos are in the store already, {todo.num_rows} are left")
        return todo

    def _changed(self, index: pa.Table) -> set[str]:
        """Ids of stored videos whose listing shows another version than the store's; a table lists no versions."""
        stored = (
            index.select(["video_id", "source_version"]).group_by("video_id").aggregate([("source_version", "max")])
        )
        joined = self.videos.select(["video_id", "version"]).join(stored, "video_id", join_type="inner")
        differs = pc.fill_null(pc.not_equal(joined["version"], joined["source_version_max"]), False)
        return set(joined.filter(differs)["video_id"].to_pylist())

    def _rounds(self, todo: pa.Table, capacity: Capacity, stop: Stop) -> None:
        """Run the pipeline over `todo`, and again over what did not arrive."""
        reading = Reading(
            decode=self.decode,
            descriptor_set=self.weights.descriptors.name,
            detector_weights=self.detector_bytes,
            scratch_root=self.options.scratch,
            scratch_bytes=self.options.scratch_bytes,
        )
        micro_batch = self.options.micro_batch or (256 if capacity.extractor_gpus else 16)
        extractor = {"micro_batch": micro_batch, "precision": self.precision}
        assembler, reachability = VideoAssembler(self.run_id), Reachability()
        with RunProgress(todo.num_rows) as progress:
            for count in range(ROUNDS):
                if count:
                    say(f"{todo.num_rows} videos did not arrive whole; planned again ({count} of {ROUNDS - 1} times)")
                dataset = build(todo, reading, self.weights.data, extractor, capacity)
                batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
                self._consume(batches, assembler, reachability, progress, stop)
                self.repeated_rows = assembler.repeated_rows
                if stop.signal:
                    self.interrupted = True
                    break
                arrived = pc.is_in(todo["video_id"], value_set=pa.array(sorted(assembler.done), pa.string()))
                todo = todo.filter(pc.invert(arrived))
                assembler.drop_incomplete()
                if not todo.num_rows:
                    break
        self.lacking = todo.num_rows
        self.last_words = reachability.last_words

    def _consume(
        self,
        batches: Any,
        assembler: VideoAssembler,
        reachability: Reachability,
        progress: RunProgress,
        stop: Stop,
    ) -> None:
        """Take what the pipeline delivers until it ends or a signal comes; commit as it falls due."""
        with delivered(batches) as incoming:
            for batch in incoming:
                if stop.signal:
                    say("stopping: what is complete is committed")
                    return
                if self.lock.lost:
                    raise JobFailedError(f"the lock on {self.folder.display} was taken over by another run")
                if batch is not None:
                    self.retries += pc.sum(batch["retries"]).as_py() or 0
                    missed = pc.equal(batch["status"], UNREACHABLE)
                    for words in batch.filter(missed)["error_message"].to_pylist():
                        reachability.saw(words)
                    for video in assembler.add(batch.filter(pc.invert(missed)).drop_columns(["retries"])):
                        reachability.saw(None)
                        self.writer.add(video)
                        progress.advance(failed=video_status(video) == s.FAILED)
                    progress.frames += pc.sum(batch["num_frames"]).as_py() or 0
                if self.writer.due:
                    self._commit()
                progress.tick()

    def _commit(self) -> None:
        try:
            self.writer.commit()
        except StorageError as error:
            raise JobFailedError(
                f"the store cannot be written: {error}. What was committed before stands; run the same command again"
            ) from error

    def _dry_run(self) -> Outcome:
        with input_errors(ValueError, StorageError, option="--store"):
            index = read_index(self.folder)
        done = pc.sum(pc.is_in(self.videos["video_id"], value_set=pc.unique(index["video_id"]))).as_py() or 0
        summary = {
            "job": "extract",
            "dry_run": True,
            "videos": self.videos.num_rows,
            "bytes": pc.sum(self.videos["bytes"]).as_py(),
            "skipped": done,
            "to_do": self.videos.num_rows - done,
            "store": self.folder.display,
        }
        say(f"dry run: {summary['to_do']} videos to do, {done} in the store already; nothing was written")
        return Outcome(summary=summary)

    def _record(self, state: str, summary: dict[str, Any] | None = None) -> None:
        """The run's own file in the store: what was asked, and how it ended."""
        record = {"run_id": self.run_id, "state": state, "options": vars(self.options), "summary": summary}
        data = json.dumps(record, indent=1, default=str).encode()
        with input_errors(StorageError, option="--store"):
            self.folder.child(s.RUNS_FOLDER).write(f"{self.run_id}.json", data)

    def _sum_up(self, error: JobFailedError | None, stop: Stop) -> Outcome:
        counts = count_statuses(read_index(self.folder))
        seconds = time.monotonic() - self.started_s
        summary: dict[str, Any] = {
            "job": "extract",
            "run_id": self.run_id,
            "seconds": round(seconds, 3),
            "videos": self.videos.num_rows,
            "units": self.writer.rows,
            **self.writer.videos,
            "skipped": self.skipped,
            "frames": self.writer.frames,
            "frames_per_s": round(self.writer.frames / seconds, 2),
            "changed": self.changed,
            "missing": self.lacking,
            "retries": self.retries + retry_count(),
            "repeated_rows": self.repeated_rows,
            "store": self.folder.display,
            "store_videos": counts,
            "random_weights": self.weights.random,
        }
        state, code = self._verdict(counts, error, stop)
        if self.writer.files:
            self.folder.write(s.SUMMARY_FILE, json.dumps(summary, indent=1).encode())
        if self.writer.files or code != DONE:
            self._record(state, summary)
        return Outcome(summary=summary, exit_code=code)

    def _verdict(self, counts: dict[str, int], error: JobFailedError | None, stop: Stop) -> tuple[str, int]:
        if self.interrupted:
            return "interrupted", stop.exit_code
        if error is not None:
            say(f"mma-mrnnet extract failed: {error}")
            return "failed", FAILED
        if self.lacking:
            say(
                f"{self.lacking} videos did not arrive in {ROUNDS} tries ({self.last_words or 'their tasks were lost'})"
            )
            return "incomplete", FAILED
        failed, total = counts[s.FAILED], sum(counts.values())
        if total and failed / total > self.options.max_failed_fraction:
            say(
                f"{failed} of {total} videos failed, more than --max-failed-fraction {self.options.max_failed_fraction}"
            )
            return "done with failures", TOO_MANY_FAILURES
        return "done", DONE


def _faces(options: Options) -> tuple[FaceOptions, dict[str, Any], bytes | None]:
    """The detector's settings, its part of the spec, and the bytes of its weights for the workers."""
    with input_errors(ValueError, OSError, StorageError, option="--detector"), tempfile.TemporaryDirectory() as local:
        faces = FaceOptions(
            detector=options.detector,
            detector_weights=options.detector_weights,
            detect_every=options.detect_every,
            detect_size_px=options.detect_size_px,
        )
        if faces.detector_weights is None:
            return faces, faces.spec(), None
        data = read(faces.detector_weights)
        (Path(local) / "detector").write_bytes(data)
        return faces, replace(faces, detector_weights=f"{local}/detector").spec(), data


def _megabytes(videos: pa.Table) -> str:
    total = pc.sum(videos["bytes"]).as_py()
    return "sizes unknown" if total is None else f"{total / 1e6:,.1f} MB"
