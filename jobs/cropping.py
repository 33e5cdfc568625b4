"""Crops for training and scoring stage 1, made once by the detector, geometry and code of `extract`.

`ensure_crops` sees what the crop store lacks of some label tables, cuts the rest on Ray, and counts what became of
every row, by set. The store is the checkpoint: kill a run whenever you like and run it again.
"""

from __future__ import annotations

import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.capacity import CapacityError, Node, plan_capacity, told_nodes
from cluster.lock import STORE_ERRORS, StoreLock
from cluster.scratch import CAP_BYTES
from cluster.session import SessionError, Stop, live_nodes
from cluster.storage import Folder
from cluster.uri import StorageError
from jobs.crop_intake import CropIntake
from jobs.crop_sources import plan_sources, source_versions
from jobs.crop_tasks import build_crops
from jobs.outcome import JobFailedError, input_errors
from jobs.pipeline import Reading, close_pipelines
from jobs.progress import RunProgress, say
from jobs.replanning import Watch
from mma.crops import rows as r
from mma.crops import store
from mma.crops.keys import KEY_COLUMNS, Keys
from mma.faces.options import FaceOptions
from mma.labels.table import LABEL_SCHEMA
from mma.store.writer import new_run_id
from mma.video.options import DecodeOptions

ROUNDS = 3
"""A face that did not arrive is planned again at most twice."""

CHUNK_FRAMES = 256
"""Frames of a video whose crops a worker holds at a time; changes no pixel."""


Session = Callable[[], AbstractContextManager[Sequence[Node]]]
"""Enters a Ray session and gives its nodes: `partial(ray_session, address, num_cpus=..., stop=...)`."""


@dataclass(frozen=True, kw_only=True)
class SetCrops:
    """What became of one label set's rows."""

    rows: int
    cut: int
    """Faces that the detector found."""
    given: int
    """Crops that the set hands out."""
    by_points: int
    """Faces that the detector did not find, cut by the set's own points."""
    by_box: int
    """The same, by the set's own box."""
    no_face: int
    """Left out: no face was found, and the set does not say where it is."""
    failed: int
    """Left out: the image or the frame could not be read."""
    missing: int = 0
    """Not done, since a signal ended the run."""

    def told(self) -> str:
        """The counts as a person reads them, zeros left out."""
        names = {"cut": "cut", "given": "given as crops", "by_points": "by the set's points", "by_box": "by its box"}
        names |= {"no_face": "without a face", "failed": "unreadable", "missing": "not done"}
        return ", ".join(f"{count:,} {names[name]}" for name, count in asdict(self).items() if name in names and count)


@dataclass(frozen=True, kw_only=True)
class CropReport:
    """What `ensure_crops` did."""

    sets: dict[str, SetCrops]
    """By the set's name, in the order given."""
    made: int
    """Rows that this run added; the rest was in the store."""
    seconds: float
    frames_per_s: float
    """Rows made a second."""
    retries: int = 0
    """Requests that workers sent again to object storage."""
    repeated: int = 0
    """Rows that came a second time and were dropped."""

    def summary(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def ensure_crops(
    label_tables: Mapping[str, pa.Table],
    folder: Folder,
    faces: FaceOptions,
    detector_bytes: bytes | None = None,
    *,
    session: Session,
    stop: Stop | None = None,
    decoders: int | None = None,
    decode_cpus: float | None = None,
    scratch: str | None = None,
    scratch_bytes: int = CAP_BYTES,
    retry_failed: bool = False,
    option: str = "--crops",
) -> CropReport:
    """Fill the crop store with what it lacks of these labels.

    Args:
        label_tables: set name -> rows of `LABEL_SCHEMA`. A face that two sets name is cut once, by the first's box.
        folder: the store; made if absent.
        faces: as `extract` uses them; `detector_weights` is not read where `detector_bytes` are given.
        detector_bytes: content of the detector's weights.
        session: entered only if something is to be cut.
        stop: the run's signals; a first one commits what is there and returns a report with `missing` rows.
        decoders, decode_cpus: as of `plan_capacity`.
        scratch, scratch_bytes: node-local room for remote videos, as of `cluster.scratch.Scratch`.
        retry_failed: cut rows again that failed before.
        option: what the command line calls the store, for errors.

    Raises:
        InputError: the store was made under another spec, is in use, or cannot be written; no Ray, or too small a one.
        JobFailedError: storage fails, or faces did not arrive in `ROUNDS` tries; what arrived is in the store.
    """
    started_s = time.monotonic()
    run = _Cropping(label_tables, folder, _spec(faces, detector_bytes), retry_failed=retry_failed)
    with input_errors(*STORE_ERRORS, option=option):
        store.check_spec(folder, run.spec)
        run.look()
    if run.to_do:
        # Without a lock until here: two runs may train from one store that has everything.
        with ExitStack() as held:
            with input_errors(*STORE_ERRORS, option=option):
                folder.check_writable()
                run.lock = held.enter_context(StoreLock(folder, f"{run.run_id} on {socket.gethostname()}", on_wait=say))
                folder.sweep_temporaries(older_than_s=0)  # the lock is ours, so their writers have ended
                store.settle_spec(folder, run.spec)
                run.look(drop_stale=True)
            reading = Reading(
                decode=DecodeOptions(chunk_frames=CHUNK_FRAMES, faces=faces),
                detector_weights=detector_bytes,
                scratch_root=scratch,
                scratch_bytes=scratch_bytes,
            )
            with input_errors(SessionError):
                nodes = held.enter_context(session())
            with input_errors(CapacityError):
                capacity = plan_capacity(
                    nodes, extractors=1, extractor_gpus=0, decoders=decoders, decode_cpus=decode_cpus
                )
            say(
                f"cutting {run.to_do:,} faces into {folder.display}: {capacity.decoders} slots of "
                f"{capacity.decode_cpus:g} CPU, on {told_nodes(nodes)}"
            )
            run.cut(
                lambda sources: build_crops(sources, reading, capacity),
                stop or Stop(),
                watch=lambda: Watch(capacity, live_nodes, lambda nodes: capacity),
            )
    report = run.report(time.monotonic() - started_s)
    for name, counts in report.sets.items():
        say(f"crops of {name}: {counts.rows:,} rows, {counts.told()}")
    return report


class _Cropping:
    """One call of `ensure_crops`: the wanted faces by number, and what became of each so far."""

    def __init__(
        self, label_tables: Mapping[str, pa.Table], folder: Folder, spec: dict[str, Any], *, retry_failed: bool
    ) -> None:
        self.folder, self.spec, self.retry_failed = folder, spec, retry_failed
        self.run_id = new_run_id()
        self.sizes = {name: table.num_rows for name, table in label_tables.items()}
        columns = [*KEY_COLUMNS, "box", "points"]
        tables = [LABEL_SCHEMA.empty_table(), *label_tables.values()]
        self.rows = pa.concat_tables([table.select(columns) for table in tables])
        self.keys = Keys(self.rows)
        with input_errors(StorageError, option="--labels"):
            self.versions, self.bytes = source_versions(self.keys.sources)
        self.outcome = np.full(len(self.keys), r.NO_ROW, np.int8)
        self.lock: StoreLock | None = None
        self.intake: CropIntake | None = None

    @property
    def to_do(self) -> int:
        """Faces that the store lacks."""
        return int((self.outcome == r.NO_ROW).sum())

    def look(self, *, drop_stale: bool = False) -> None:
        """Take from the store what became of each face; rows of changed sources do not count, and go if asked."""
        self.outcome[:] = r.NO_ROW
        unwanted = []
        for file in store.index_files(self.folder, self.keys):
            stale = self._stale(file)
            good = ~stale & (file.face >= 0)
            self.outcome[file.face[good]] = file.outcome[good]
            if stale.any():
                unwanted.append((file.name, stale))
        if drop_stale and unwanted:
            gone = store.drop_rows(self.folder, unwanted)
            say(f"{gone:,} crops of {self.folder.display} are cut again: their sources have changed, or they failed")

    def _stale(self, file: store.FileIndex) -> NDArray[np.bool_]:
        """(M,) rows of a source that has another version now. One that is gone keeps its rows: they are a cache."""
        now = self.versions.take(pa.array(file.source, mask=file.source < 0))
        differs = pc.or_(pc.fill_null(pc.not_equal(file.source_version, now), False), pc.is_null(file.source_version))
        stale = pc.and_(differs, pc.is_valid(now)).to_numpy(zero_copy_only=False)
        if self.retry_failed:
            stale = stale | ((file.face >= 0) & (file.outcome == r.OUTCOMES.index(r.FAILED)))
        return stale

    def cut(
        self,
        build: Callable[[pa.Table], Any],
        stop: Stop,
        watch: Callable[[], Callable[[bool], str | None]] = lambda: lambda arrived: None,
    ) -> None:
        """Run the pipeline over what is lacking, and again over what did not arrive; commit whatever arrived.

        `watch` makes what looks at one pipeline (`Intake.take`): a lost node is a reason to plan again.

        Raises:
            JobFailedError: see `ensure_crops`.
        """
        assert self.lock is not None
        writer = store.CropWriter(self.folder, self.spec, self.run_id)
        failure: JobFailedError | None = None
        with RunProgress(self.to_do, unit="crops") as progress:
            self.intake = CropIntake(self.folder, self.lock, writer, self.outcome, progress, stop)
            before, stop.soft = stop.soft, True
            try:
                self._rounds(build, stop, watch)
            except JobFailedError as error:
                failure = error
            except Exception as error:  # of Ray or of its tasks: told whole, and what arrived is kept
                traceback.print_exc()
                first = str(error).strip().splitlines()[:1] or [type(error).__name__]
                failure = JobFailedError(f"the pipeline ended with {type(error).__name__}: {first[0]}")
            try:
                self.intake.commit()
            except JobFailedError as error:
                failure = failure or error
            finally:
                stop.soft = before
        if failure is not None:
            raise failure
        if self.to_do and not stop.signal:
            why = self.intake.reachability.last_words or "their tasks were lost"
            raise JobFailedError(f"{self.to_do:,} crops did not arrive in {ROUNDS} tries: {why}")

    def _rounds(
        self, build: Callable[[pa.Table], Any], stop: Stop, watch: Callable[[], Callable[[bool], str | None]]
    ) -> None:
        assert self.intake is not None
        for count in range(ROUNDS):
            if count:
                say(f"{self.to_do:,} crops did not arrive; planned again ({count} of {ROUNDS - 1} times)")
            todo = self.outcome == r.NO_ROW
            sources = plan_sources(self.rows, self.keys, todo, self.versions, self.bytes)
            batches = build(sources).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
            if (reason := self.intake.take(batches, watch=watch(), close=close_pipelines)) is not None:
                say(reason)
            if stop.signal or not self.to_do:
                return

    def report(self, seconds: float) -> CropReport:
        """The counts as they stand."""
        by_row = self.outcome[self.keys.inverse]
        sets, start = {}, 0
        for name, size in self.sizes.items():
            counts = np.bincount(by_row[start : start + size] + 1, minlength=len(r.OUTCOMES) + 1).tolist()
            start += size
            told = dict(zip(("missing", *r.OUTCOMES), counts))
            sets[name] = SetCrops(
                rows=size,
                cut=told[r.DETECTED],
                given=told[r.AS_GIVEN],
                by_points=told[r.BY_POINTS],
                by_box=told[r.BY_BOX],
                no_face=told[r.NO_FACE],
                failed=told[r.FAILED],
                missing=told["missing"],
            )
        intake = self.intake
        made = intake.writer.rows if intake else 0
        return CropReport(
            sets=sets,
            made=made,
            seconds=round(seconds, 3),
            frames_per_s=round(made / max(seconds, 1e-9), 2),
            retries=intake.retries if intake else 0,
            repeated=intake.repeated if intake else 0,
        )


def _spec(faces: FaceOptions, detector_bytes: bytes | None) -> dict[str, Any]:
    if detector_bytes is None:
        return r.crop_spec(faces.spec())
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / "detector"
        path.write_bytes(detector_bytes)
        return r.crop_spec(replace(faces, detector_weights=str(path)).spec())
