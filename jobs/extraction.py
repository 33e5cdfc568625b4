"""One run of `extract` on the driver: what is left to do, the rounds that do it, and the summary."""

from __future__ import annotations

import json
import secrets
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.capacity import Capacity, CapacityError, Node, plan_capacity, told_nodes
from cluster.lock import LockHeld, StoreLock
from cluster.s3 import retry_count
from cluster.session import LOCAL, SessionError, Stop, local_node, ray_session, stop_signals, target_address
from cluster.storage import Folder, stat
from cluster.uri import StorageError
from jobs.detector import face_settings
from jobs.extract import Options
from jobs.intake import Intake
from jobs.models import load_weights
from jobs.outcome import DONE, FAILED, TOO_MANY_FAILURES, InputError, JobFailedError, Outcome, input_errors
from jobs.pipeline import Reading, build, shown_uri
from jobs.plan import find_videos, shard
from jobs.progress import RunProgress, say
from mma.store import schema as s
from mma.store.reader import FAILED_PREFIX, count_statuses, drop_videos, read_index, read_spec
from mma.store.tombstones import forgotten
from mma.store.writer import StoreWriter, settle_spec
from mma.video.options import DecodeOptions

ROUNDS = 3
"""A video that did not arrive is planned again at most twice."""

STORE_ERRORS = (ValueError, OSError, StorageError, LockHeld)


@dataclass(frozen=True, kw_only=True)
class ToDo:
    """What a run has to do, beside what the store has."""

    videos: pa.Table
    """Rows of the plan that the store lacks."""
    planned: pa.Table
    """The whole plan, less who was forgotten."""
    index: pa.Table
    """The store as it is (`mma.store.reader.read_index`), less what is done again."""
    again: set[str]
    """Videos whose rows go before they are done again: `--retry-failed`, `--redo-changed`."""
    skipped: int
    changed: int
    forgotten: int
    """Videos of the plan that a tombstone keeps out."""


class Extraction:
    """One run; `run` is the whole of it."""

    def __init__(self, options: Options):
        self.options = options
        self.started_s = time.monotonic()
        self.run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        self.weights = load_weights(options.mma)
        with input_errors():
            self.folder = Folder(options.store)
            faces, self.detector_spec, self.detector_bytes = face_settings(options)
            self.decode = DecodeOptions(
                fps=options.fps,
                chunk_frames=options.chunk_frames,
                decoder=options.decoder,
                memory_bytes=options.decode_memory,
                timeout_s=options.decode_timeout_s,
                faces=faces,
            )
        trained_with = self.weights.record.get("detector")
        if trained_with and (differences := s.spec_differences(self.detector_spec, trained_with)):
            say(f"the network was trained on faces found otherwise (now / then): {'; '.join(differences)}")
        self.retries_before = retry_count()
        self.intake: Intake | None = None
        self.error: JobFailedError | None = None
        self.forgotten = 0
        """Videos of the plan that a tombstone keeps out."""

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
        with input_errors(CapacityError):
            if target_address(options.address) == LOCAL:  # an impossible request fails before anything is written
                self._capacity([local_node(options.num_cpus)])
        with stop_signals() as stop, ExitStack() as held:
            with input_errors(*STORE_ERRORS, option="--store"):
                self.folder.check_writable()
                holder = f"run {self.run_id} on {socket.gethostname()}"
                self.lock = held.enter_context(StoreLock(self.folder, holder, on_wait=say))
                for folder in (self.folder, self.folder.child(s.RUNS_FOLDER)):
                    folder.sweep_temporaries(older_than_s=0)  # the lock is ours, so their writers have ended
                todo = self._todo()
                if todo.index.num_rows:
                    self._settle_spec(read_spec(self.folder)["precision"], has_data=True)
                drop_videos(self.folder, todo.again)
            if todo.videos.num_rows:
                self._extract(todo, stop)
            return self._sum_up(todo, stop)

    def _capacity(self, nodes: list[Node]) -> Capacity:
        options = self.options
        return plan_capacity(
            nodes,
            extractors=options.extractors,
            extractor_gpus=options.extractor_gpus,
            decoders=options.decoders,
            decode_cpus=options.decode_cpus,
        )

    def _settle_spec(self, precision: str, *, has_data: bool) -> dict[str, Any]:
        """The store's spec: written if the store is new, checked if it is not. `auto` is what the store has."""
        self.precision = precision if self.options.precision == "auto" else self.options.precision
        spec = s.make_spec(
            descriptors=self.weights.descriptors,
            weights=self.weights.spec,
            crop=self.weights.crop,
            detector=self.detector_spec,
            sampling={"fps": self.options.fps},
            precision=self.precision,
        )
        settle_spec(self.folder, spec, has_data=has_data)
        return spec

    def _todo(self) -> ToDo:
        """What is left to do; the plan loses who was forgotten."""
        options = self.options
        todo = left_to_do(
            self.folder, self.videos, retry_failed=options.retry_failed, redo_changed=options.redo_changed
        )
        self.videos, self.forgotten = todo.planned, todo.forgotten
        return todo

    def _extract(self, todo: ToDo, stop: Stop) -> None:
        """Start Ray and run the pipeline over `todo`; whatever ends it, what is complete is committed."""
        with ExitStack() as held:
            with input_errors(SessionError):
                session = ray_session(self.options.address, num_cpus=self.options.num_cpus, stop=stop)
                nodes = held.enter_context(session)
            with input_errors(CapacityError):
                capacity = self._capacity(nodes)
            with input_errors(*STORE_ERRORS, option="--store"):
                default = "bfloat16" if capacity.extractor_gpus else "float32"
                precision = read_spec(self.folder)["precision"] if todo.index.num_rows else default
                spec = self._settle_spec(precision, has_data=bool(todo.index.num_rows))
                self._record("running")
            say(f"run {self.run_id}: {capacity.told()}, on {told_nodes(nodes)}")
            writer = StoreWriter(self.folder, self.weights.descriptors, spec, self.run_id)
            with RunProgress(todo.videos.num_rows) as progress:
                self.intake = Intake(self.folder, self.lock, writer, progress, stop)
                stop.soft = True
                try:
                    self._rounds(todo.videos, capacity, stop)
                except JobFailedError as error:
                    self.error = error
                except Exception as error:  # of Ray or of its tasks: told whole, and then the run ends as any other
                    traceback.print_exc()
                    first = str(error).strip().splitlines()[:1] or [type(error).__name__]
                    self.error = JobFailedError(f"the pipeline ended with {type(error).__name__}: {first[0]}")
                try:
                    self.intake.commit()
                except JobFailedError as error:
                    self.error = self.error or error

    def _rounds(self, todo: pa.Table, capacity: Capacity, stop: Stop) -> None:
        """Run the pipeline over `todo`, and again over what did not arrive."""
        assert self.intake is not None
        reading = Reading(
            decode=self.decode,
            detector_weights=self.detector_bytes,
            scratch_root=self.options.scratch,
            scratch_bytes=self.options.scratch_bytes,
        )
        micro_batch = self.options.micro_batch or (256 if capacity.extractor_gpus else 16)
        device = "cuda" if capacity.extractor_gpus else "cpu"
        descriptors = self.weights.descriptors.name
        extractor = {"micro_batch": micro_batch, "precision": self.precision, "device": device}
        for count in range(ROUNDS):
            if count:
                say(f"{todo.num_rows} videos did not arrive whole; planned again ({count} of {ROUNDS - 1} times)")
            dataset = build(todo, reading, descriptors, self.weights.data, extractor, capacity)
            self.intake.take(dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
            arrived = pa.array(sorted(self.intake.assembler.done), pa.string())
            todo = todo.filter(pc.invert(pc.is_in(todo["video_id"], value_set=arrived)))
            if stop.signal or not todo.num_rows:
                return

    def _dry_run(self) -> Outcome:
        with input_errors(*STORE_ERRORS, option="--store"):
            todo = self._todo()
        summary = {
            "job": "extract",
            "dry_run": True,
            "videos": self.videos.num_rows,
            "bytes": pc.sum(self.videos["bytes"]).as_py(),
            "skipped": todo.skipped,
            "forgotten": self.forgotten,
            "changed": todo.changed,
            "to_do": todo.videos.num_rows,
            "store": self.folder.display,
        }
        say(f"dry run: {todo.videos.num_rows} videos to do, {todo.skipped} in the store already; nothing was written")
        return Outcome(summary=summary)

    def _record(self, state: str, summary: dict[str, Any] | None = None) -> None:
        """The run's own file in the store: what was asked, and how it ended."""
        record = {"run_id": self.run_id, "state": state, "options": vars(self.options), "summary": summary}
        self.folder.child(s.RUNS_FOLDER).write(
            f"{self.run_id}.json", json.dumps(record, indent=1, default=str).encode()
        )

    def _sum_up(self, todo: ToDo, stop: Stop) -> Outcome:
        writer = self.intake.writer if self.intake else None
        mine = dict(writer.videos) if writer else dict.fromkeys(s.STATUSES, 0)
        store = count_statuses(todo.index)
        store = {status: store[status] + mine[status] for status in s.STATUSES}
        lacking = todo.videos.num_rows - sum(mine.values())
        state, code = self._verdict(store, lacking, stop)
        seconds = time.monotonic() - self.started_s
        frames = writer.frames if writer else 0
        summary: dict[str, Any] = {
            "job": "extract",
            "run_id": self.run_id,
            "seconds": round(seconds, 3),
            "videos": self.videos.num_rows,
            "units": writer.rows if writer else 0,
            **mine,
            "skipped": todo.skipped,
            "forgotten": self.forgotten,
            "frames": frames,
            "frames_per_s": round(frames / seconds, 2),
            "changed": todo.changed,
            "missing": lacking,
            "retries": retry_count() - self.retries_before + (self.intake.retries if self.intake else 0),
            "repeated_rows": self.intake.assembler.repeated_rows if self.intake else 0,
            "store": self.folder.display,
            "store_videos": store,
            "random_weights": self.weights.random,
        }
        if self.intake and not self.lock.lost:
            try:
                self.folder.write(s.SUMMARY_FILE, json.dumps(summary, indent=1).encode())
                self._record(state, summary)
            except StorageError as error:
                say(f"the summary cannot be written into the store: {error}")
                code = code or FAILED
        return Outcome(summary=summary, exit_code=code)

    def _verdict(self, store: dict[str, int], lacking: int, stop: Stop) -> tuple[str, int]:
        if self.error is not None:
            say(f"mma-mrnnet extract failed: {self.error}")
            return "failed", FAILED
        if stop.signal:
            return "interrupted", stop.exit_code
        if lacking:
            why = (self.intake and self.intake.reachability.last_words) or "their tasks were lost"
            say(f"{lacking} videos did not arrive in {ROUNDS} tries: {why}")
            return "incomplete", FAILED
        failed, total = store[s.FAILED], sum(store.values())
        if total and failed / total > self.options.max_failed_fraction:
            say(
                f"{failed} of {total} videos failed, more than --max-failed-fraction {self.options.max_failed_fraction}"
            )
            return "done with failures", TOO_MANY_FAILURES
        return "done", DONE


def left_to_do(folder: Folder, videos: pa.Table, *, retry_failed: bool, redo_changed: bool) -> ToDo:
    """What a store does not have yet of a plan (rows of `jobs.plan.PLAN_SCHEMA`), and what is to be done again.

    Raises ValueError or StorageError where the store cannot be read, InputError as `_changed` does.
    """
    gone = forgotten(folder, videos["video_id"].to_pylist())
    if gone:
        say(f"{len(gone)} videos were forgotten on their people's demand (forget) and are left out")
        videos = videos.filter(pc.invert(pc.is_in(videos["video_id"], value_set=pa.array(sorted(gone)))))
    index = read_index(folder)
    changed = _changed(videos, index, ask_storage=redo_changed)
    again = set(changed) if redo_changed else set()
    if changed and not redo_changed:
        say(f"{len(changed)} videos have changed since, such as {min(changed)!r}: --redo-changed does them again")
    if retry_failed:
        failed = index.filter(pc.starts_with(index["file"], FAILED_PREFIX))["video_id"]
        again |= set(pc.unique(failed).to_pylist()) & set(videos["video_id"].to_pylist())
    kept = index.filter(pc.invert(pc.is_in(index["video_id"], value_set=pa.array(sorted(again), pa.string()))))
    todo = videos.filter(pc.invert(pc.is_in(videos["video_id"], value_set=pc.unique(kept["video_id"]))))
    skipped = videos.num_rows - todo.num_rows
    if skipped or again:
        say(f"{skipped} videos are in the store already, {todo.num_rows} are left ({len(again)} of them done again)")
    return ToDo(
        videos=todo,
        planned=videos,
        index=kept,
        again=again,
        skipped=skipped,
        changed=len(changed),
        forgotten=len(gone),
    )


def _changed(videos: pa.Table, index: pa.Table, *, ask_storage: bool) -> set[str]:
    """Ids of planned videos whose bytes are no longer those the store was made from.

    A listing tells their version; of a table's videos storage is asked, where `ask_storage`.

    Raises:
        InputError: an id of the plan stands in the store for another video.
    """
    stored = index.group_by("video_id").aggregate([("source_version", "max"), ("source_bytes", "max"), ("uri", "min")])
    both = videos.join(stored, "video_id", join_type="inner")
    same = pc.equal(both["uri"], both["uri_min"])
    moved = 0
    for video in both.filter(pc.invert(same)).to_pylist():
        if shown_uri(video["uri"]) == video["uri_min"]:
            continue
        if video["bytes"] not in (None, video["source_bytes_max"]):
            raise InputError(
                f"--videos: the id {video['video_id']!r} stands for {shown_uri(video['uri'])} here and for "
                f"{video['uri_min']} in the store: give --video-id path, or name another --store"
            )
        moved += 1
    if moved:
        say(f"{moved} videos stand in the store under another URI and are taken for the same, moved")
    both = both.filter(same)
    differs = pc.fill_null(pc.not_equal(both["version"], both["source_version_max"]), False)
    changed = set(both.filter(differs)["video_id"].to_pylist())
    if ask_storage:
        unknown = both.filter(pc.is_null(both["version"])).to_pylist()
        with ThreadPoolExecutor(16) as pool:
            now = pool.map(_version, [video["uri"] for video in unknown])
            changed |= {v["video_id"] for v, new in zip(unknown, now) if new not in (None, v["source_version_max"])}
    return changed


def _version(uri: str) -> str | None:
    try:
        return stat(uri).version
    except (StorageError, ValueError):  # not to be had now: what the store has of it stays
        return None


def _megabytes(videos: pa.Table) -> str:
    total = pc.sum(videos["bytes"]).as_py()
    return "sizes unknown" if total is None else f"{total / 1e6:,.1f} MB"
