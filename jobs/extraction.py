"""One run of `extract` on the driver: what is left to do, the rounds that do it, and the summary."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.exceptions import RayError, RayTaskError

from cluster import metrics
from cluster.capacity import Capacity, CapacityError, Node, plan_capacity, told_nodes
from cluster.lock import STORE_ERRORS
from cluster.session import LOCAL, SessionError, Stop, live_nodes, local_node, ray_session, stop_signals, target_address
from cluster.storage import Folder
from jobs.detector import face_settings
from jobs.extract import Options
from jobs.intake import Intake
from jobs.models import load_weights
from jobs.outcome import JobFailedError, Outcome, input_errors
from jobs.pipeline import Reading, build, close_pipelines
from jobs.plan import find_videos, shard
from jobs.progress import RunProgress, say
from jobs.replanning import Watch
from jobs.store_run import StoreRun
from jobs.todo import ToDo
from mma.store import schema as s
from mma.store.reader import drop_videos, read_spec
from mma.store.writer import StoreWriter, settle_spec
from mma.video.options import DecodeOptions

ROUNDS = 3
"""A video that did not arrive is planned again at most twice, pipelines apart that the cluster's changes ended."""
NODES_S = 600.0
"""How long a run waits for nodes when those that are left do not hold one worker of each kind."""
POLL_S = 2.0


class Extraction(StoreRun):
    """One run; `run` is the whole of it."""

    job = "extract"

    def __init__(self, options: Options, outputs: tuple[Folder, ...] = ()):
        """`outputs`: folders beside the store that must be found writable before the first video is decoded."""
        self.weights = load_weights(options.mma, check=False)
        self.outputs = outputs
        self.extractor_gpus = options.extractor_gpus
        """Of one MMA actor; what the first plan says holds for all, so that a store's rows are of one precision."""
        self.pipelines = 0
        self.asked: set[str] = set()
        """Ids of the videos that the run was to see to, once it has found them."""
        super().__init__(options)
        with input_errors():
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

    def run(self) -> Outcome:
        """Find, subtract, run, commit, sum up."""
        options = self.options
        plan = find_videos(options.videos, video_id=options.video_id)
        videos = plan.videos if options.shard is None else shard(plan.videos, options.shard)
        videos = videos.slice(0, options.limit)
        self.asked = set(videos["video_id"].to_pylist())
        ignored = f" ({plan.ignored_files} files of other kinds left aside)" if plan.ignored_files else ""
        say(f"plan: {videos.num_rows} videos{ignored}, {_megabytes(videos)} -> {self.folder.display}")
        if self.weights.random:
            say("the network's weights are random: the descriptors of this store mean nothing, and its spec says so")
        if options.dry_run:
            return self._dry_run(videos)
        with input_errors(CapacityError):
            if target_address(options.address) == LOCAL:  # an impossible request fails before anything is written
                self._capacity([local_node(options.num_cpus)])
        with stop_signals() as stop, ExitStack() as held:
            with input_errors(*STORE_ERRORS, option="--out"):
                for folder in self.outputs:
                    folder.check_writable()
            with input_errors(*STORE_ERRORS, option="--store"):
                self.take_store(held)
                todo = self.left_of(videos)
                if todo.index.num_rows:
                    self._settle_spec(read_spec(self.folder)["precision"], has_data=True)
                drop_videos(self.folder, todo.again)
            if todo.videos.num_rows:
                self._extract(todo, stop)
            repeated = self.intake.assembler.repeated_rows if self.intake else 0
            more = {"repeated_rows": repeated, "pipelines": self.pipelines, "random_weights": self.weights.random}
            return self.sum_up(todo, stop, **more)

    def _capacity(self, nodes: Sequence[Node]) -> Capacity:
        options = self.options
        return plan_capacity(
            nodes,
            extractors=options.extractors,
            extractor_gpus=self.extractor_gpus,
            decoders=options.decoders,
            decode_cpus=options.decode_cpus,
            decode_resource=options.decode_resource,
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

    def _extract(self, todo: ToDo, stop: Stop) -> None:
        """Start Ray and run the pipeline over `todo`; whatever ends it, what is complete is committed."""
        with ExitStack() as held:
            nodes = held.enter_context(self._session(stop))
            with input_errors(CapacityError):
                capacity = self._capacity(nodes)
            self.extractor_gpus = capacity.extractor_gpus
            with input_errors(*STORE_ERRORS, option="--store"):
                default = "bfloat16" if capacity.extractor_gpus else "float32"
                precision = read_spec(self.folder)["precision"] if todo.index.num_rows else default
                spec = self._settle_spec(precision, has_data=bool(todo.index.num_rows))
                self.record("running")
            say(f"run {self.run_id}: {capacity.told()}, on {told_nodes(nodes)}")
            writer = StoreWriter(self.folder, self.weights.descriptors, spec, self.run_id)
            with RunProgress(todo.videos.num_rows) as progress:
                intake = Intake(self.folder, self.lock, writer, progress, stop)
                self.fill(intake, stop, lambda: self._rounds(intake, todo.videos, capacity, stop))

    @contextmanager
    def _session(self, stop: Stop) -> Iterator[list[Node]]:
        """Ray, for the block; the network is checked while it starts, since torch's import takes as long."""
        with ExitStack() as held:
            with ThreadPoolExecutor(1) as aside:
                checked = aside.submit(self.weights.check)
                with input_errors(SessionError):
                    session = ray_session(self.options.address, num_cpus=self.options.num_cpus, stop=stop)
                    nodes = held.enter_context(session)
            checked.result()
            yield nodes

    def _rounds(self, intake: Intake, todo: pa.Table, capacity: Capacity, stop: Stop) -> None:
        """Run the pipeline over `todo`, again over what did not arrive, and anew when the cluster has changed."""
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
        done, rounds = intake.assembler.done, 0
        while True:
            before = len(done)
            dataset = build(todo, reading, descriptors, self.weights.data, extractor, capacity)
            self.pipelines += 1
            change = self._take(intake, dataset, capacity)
            todo = todo.filter(pc.invert(pc.is_in(todo["video_id"], value_set=pa.array(sorted(done), pa.string()))))
            if stop.signal or not todo.num_rows:
                return
            rounds += change is None or len(done) == before
            if rounds == ROUNDS:
                if isinstance(change, RayError):
                    raise change
                return
            if change is None:
                say(f"{todo.num_rows} videos did not arrive whole; planned again ({rounds} of {ROUNDS - 1} times)")
            if self._on_cluster:
                fitting = self._plan_anew(stop)
                if fitting is None:
                    return
                capacity = fitting
            if change is not None:
                said = f"workers were lost ({first_words(change)})" if isinstance(change, RayError) else change
                say(f"{said}; {todo.num_rows} videos are planned anew: {capacity.told()}")

    @property
    def _on_cluster(self) -> bool:
        """Whether nodes may come and go."""
        return target_address(self.options.address) != LOCAL

    def _take(self, intake: Intake, dataset: Any, capacity: Capacity) -> RayError | str | None:
        """Take what a pipeline delivers; what has ended it early, None where it came to its end.

        The loss of an MMA actor comes out as an error of Ray; decode tasks it runs again, as far as it knows of them.
        """
        watch = Watch(capacity, live_nodes, self._capacity) if self._on_cluster else lambda arrived: None
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        try:
            return intake.take(_failures_counted(batches), watch=watch, close=close_pipelines)
        except RayTaskError:  # raised by the code of a task: a defect
            raise
        except RayError as error:
            return error

    def _plan_anew(self, stop: Stop) -> Capacity | None:
        """A plan for the nodes that are there now; waits where they do not hold it. None where a signal came.

        Raises:
            JobFailedError: they still do not after `NODES_S`.
        """
        until_s = time.monotonic() + NODES_S
        told = False
        while not stop.signal:
            try:
                return self._capacity(live_nodes())
            except CapacityError as error:
                if time.monotonic() > until_s:
                    raise JobFailedError(f"nodes were lost: {error}; run the same command again") from error
                if not told:
                    say(f"nodes were lost, waiting up to {NODES_S:.0f} s for others: {error}")
                told = True
                time.sleep(POLL_S)
        return None

    def _dry_run(self, videos: pa.Table) -> Outcome:
        self.weights.check()
        with input_errors(*STORE_ERRORS, option="--store"):
            todo = self.left_of(videos)
        summary = {
            "job": "extract",
            "dry_run": True,
            "videos": todo.planned.num_rows,
            "bytes": pc.sum(todo.planned["bytes"]).as_py(),
            "skipped": todo.skipped,
            "forgotten": todo.forgotten,
            "changed": todo.changed,
            "to_do": todo.videos.num_rows,
            "store": self.folder.display,
        }
        say(f"dry run: {todo.videos.num_rows} videos to do, {todo.skipped} in the store already; nothing was written")
        return Outcome(summary=summary)

    def lacking_words(self, count: int) -> str:
        """In the words of the server that withheld them, where one did."""
        why = (self.intake and self.intake.reachability.last_words) or "their tasks were lost"
        return f"{count} videos did not arrive in {ROUNDS} tries: {why}"


def _failures_counted(batches: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The batches, and Ray's metrics told what in them could not be read; only a video's last row says so."""
    for batch in batches:
        for stage in batch["error_stage"].drop_null().to_pylist():
            metrics.count(metrics.FAILURES, stage=stage)
        yield batch


def first_words(error: Exception) -> str:
    """The first line of an error of Ray that says something, with its kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _megabytes(videos: pa.Table) -> str:
    total = pc.sum(videos["bytes"]).as_py()
    return "sizes unknown" if total is None else f"{total / 1e6:,.1f} MB"
