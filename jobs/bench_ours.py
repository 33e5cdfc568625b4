"""This project's sides of the bench: its own commands, with a note of when each batch came to the driver.

Each function is called by `jobs.bench_process.run_side` in a process of its own.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import extract, pipeline
from jobs.bench_inputs import CLIP_PX
from jobs.cli import parse_options
from jobs.extraction import Extraction
from mma.descriptors import MMA26
from mma.store import schema as s
from mma.store.rows import ATTEMPT, chunk_row, with_descriptors

IDLE_FRAMES = 48
"""Frames a video where the stages do nothing."""


class Noting:
    """A data set that notes when its batches come."""

    def __init__(self, dataset: Any, came: list[tuple[float, int, int]]):
        self.dataset, self.came = dataset, came

    def iter_batches(self, **settings: Any) -> Iterator[pa.Table]:
        """As of the data set."""
        for batch in self.dataset.iter_batches(**settings):
            videos = batch.num_rows - batch["num_chunks"].null_count
            self.came.append((time.monotonic(), videos, pc.sum(batch["num_frames"]).as_py() or 0))
            yield batch


class NotingExtraction(Extraction):
    """`extract` itself, with that note."""

    def __init__(self, options: extract.Options):
        super().__init__(options)
        self.came: list[tuple[float, int, int]] = []

    def _take(self, intake: Any, dataset: Any, capacity: Any) -> Any:
        return super()._take(intake, Noting(dataset, self.came), capacity)


def extraction(words: list[str], idle: bool = False) -> dict[str, Any]:
    """`extract` with these options; its summary, and (seconds, videos, frames) as they came.

    idle: its stages make up their rows and do nothing else, which leaves the engine and the writer.
    """
    options = parse_options(extract.Options, "extract", words)
    with ExitStack() as held:
        if idle:
            held.enter_context(mock.patch.object(pipeline, "read_and_describe", idle_faces))
        run = NotingExtraction(options)
        outcome = run.run()
    return {"exit_code": outcome.exit_code, "summary": outcome.summary, "came": run.came}


def idle_faces(plan: pa.Table, *, network: pipeline.Network, **settings: Any) -> Iterator[pa.Table]:
    """In the place of `read_and_describe`: itself, less all that it does with a video and its faces."""
    with mock.patch.object(pipeline, "_rows", _idle_rows):  # in the worker, where this runs
        for rows in pipeline.read_faces(plan, **settings):
            yield rows.drop_columns([pipeline.FACES])


def _idle_rows(video: dict[str, Any], reading: Any, descriptors: Any) -> Iterator[tuple[pa.Table, None]]:
    """A row that stood ready, alike for all videos but for its id and URI."""
    row = _idle_row()
    for name, value in {"video_id": video["video_id"], "uri": video["uri"], ATTEMPT: video["video_id"]}.items():
        row = row.set_column(row.schema.get_field_index(name), name, pa.array([value], pa.string()))
    yield row, None


@functools.cache
def _idle_row() -> pa.Table:
    count = IDLE_FRAMES
    video = {
        "work_id": "video#0",
        "video_id": "video",
        "status": s.OK,
        "decoder": "decord",
        "chunk_index": 0,
        "num_chunks": 1,
        "num_frames": count,
        "width_px": CLIP_PX[0],
        "height_px": CLIP_PX[1],
    }
    frames = {
        "frame_index": np.arange(count),
        "time_s": np.arange(count) / 12,
        "face_found": np.ones(count, bool),
        "face_score": np.ones(count, np.float32),
        "face_box": np.ones((count, 4), np.float32),
        "face_points": np.full((count, 10), np.nan, np.float32),
        "num_faces": np.ones(count, np.int16),
    }
    values = np.random.default_rng(0).random((count, len(MMA26)), np.float32)
    return with_descriptors(chunk_row(MMA26, video, frames), MMA26, [values])


def decoding(paths: list[str], faces: dict[str, Any]) -> dict[str, Any]:
    """Decoding, detecting and cropping alone, with the decoder's process on the same one core."""
    import os
    from pathlib import Path

    from jobs.bench_bare import told
    from mma.allocation import keep_memory
    from mma.faces.options import FaceOptions
    from mma.video.options import DecodeOptions
    from mma.video.slot import DecodeSlot

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    keep_memory()  # as a worker does
    came = []
    with DecodeSlot(DecodeOptions(faces=FaceOptions(**faces))) as slot:
        for path in paths:
            for chunk in slot.chunks(path):
                came.append((Path(path).stem, time.monotonic(), len(chunk.frame_index)))
    return told(came)


def training(folders: dict[str, str], baton: str, workers: int, cpus: int, out: str) -> None:
    """Workers of Ray Train that stand ready to train in turns (`jobs.bench_baton.turns_worker`)."""
    from cluster.capacity import Workers
    from cluster.session import ray_session, stop_signals
    from cluster.storage import Folder
    from cluster.training import run_training
    from jobs.bench_baton import turns_worker

    told = {"folders": folders, "baton": baton}
    with stop_signals() as stop, ray_session("local", num_cpus=workers * cpus, stop=stop):
        stop.soft = True
        run_training(
            turns_worker,
            {"worker": told, "gpus": 0.0},
            workers=Workers(count=workers, cpus=float(cpus)),
            folder=Folder(out),
            name="bench",
            max_failures=0,
            on_entry=lambda entry: None,
            stop=stop,
        )
