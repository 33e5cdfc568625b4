"""The videos of feature stores as one flat file a node: a Ray Data epoch would cost more than an epoch's arithmetic.

26 numbers a frame are small. The store is read once a node and grid; every worker and every trial maps the same file,
with all descriptors in it, so that trials that choose some, or fill and scale otherwise, share it too.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from mma.store.flatfile import built_once, digest, mapped
from mma.store.reader import ReadableFolder, read_file, read_spec, store_files
from mma.store.schema import spec_differences
from rnn.grid import VIDEO_FACTS, GridVideos, common_interval, frame_intervals, to_grid

READERS = 4
"""Files of a store that are read side by side; a file takes a hundred MB or two meanwhile."""

_ROW_COLUMNS = [
    *("video_id", "uri", "chunk_index", "status", "error_type", "duration_s", "source_fps", "width_px", "height_px"),
    *("frame_index", "time_s", "face_found", "face_box"),
]
_TRAILER_BYTES = 16
GRID_VERSION = 2
"""Rises when the same rows make other steps, so that no file of an older version is mapped for them."""


def stores_spec(folders: Sequence[ReadableFolder]) -> dict[str, Any]:
    """The spec that the stores share. Raises ValueError where one is no store, and where two differ, with the field."""
    first, *others = folders
    spec = read_spec(first)
    for other in others:
        if differences := spec_differences(spec, read_spec(other)):
            raise ValueError(
                f"{first.display} and {other.display} were made under different specs ({'; '.join(differences)}): "
                "extract one of them again"
            )
    return spec


def stores_step(folders: Sequence[ReadableFolder]) -> float:
    """The grid step of a training store, seconds (`rnn.grid.common_interval`)."""
    ids: list[str] = []
    intervals: list[np.ndarray] = []
    for folder in folders:
        for name in store_files(folder):
            some, of_some = frame_intervals(read_file(folder, name, ["video_id", "chunk_index", "time_s"]))
            ids += some
            intervals.append(of_some)
    return common_interval(np.concatenate([*intervals, np.empty(0)]), ids)


def flat_videos(
    folders: Sequence[ReadableFolder], spec: Mapping[str, Any], step_s: float, scratch: Path, *, keep_s: float = 0.0
) -> GridVideos:
    """All videos of the stores on a grid of `step_s`, their values a read-only map shared by the node's processes.

    Args:
        folders: the stores, of one spec.
        spec: that spec; its descriptors are the columns.
        step_s: seconds between steps.
        scratch: a folder of this node, on a disk with room for 104 bytes a step; made if absent.
        keep_s: how long other grids stay there that nobody maps, seconds.

    Raises ValueError where a video stands in two files, OSError where storage or the disk fails.
    """
    names = tuple(spec["descriptors"])
    files = [
        (folder, entry.name, entry.bytes)
        for folder in folders
        for entry in sorted(folder.list(suffix=".parquet"), key=lambda entry: entry.name)
        if entry.name[0] not in "_."
    ]
    told = [(folder.display, name, size) for folder, name, size in files]
    key = digest(GRID_VERSION, told, sorted(spec.items(), key=repr), step_s)

    def build(path: Path) -> None:
        _build(path, [(folder, name) for folder, name, _ in files], names, step_s)

    values, facts = built_once(scratch, "grid", key, build, lambda path: read_flat(path, len(names)), keep_s=keep_s)
    offsets = np.concatenate([[0], np.cumsum(facts["steps"].to_numpy())]).astype(np.int64)
    facts = facts.select(list(VIDEO_FACTS))
    return GridVideos(names=names, step_s=step_s, values=values, offsets=offsets, facts=facts, key=key)


def read_flat(path: Path, columns: int) -> tuple[npt.NDArray[np.float32], pa.Table]:
    """What `end_flat` completed: a map of float32 (S, columns), and the table that goes with it."""
    with open(path, "rb") as file:
        file.seek(-_TRAILER_BYTES, io.SEEK_END)
        steps, table_bytes = np.frombuffer(file.read(_TRAILER_BYTES), np.int64)
        file.seek(-_TRAILER_BYTES - int(table_bytes), io.SEEK_END)
        table = pq.read_table(io.BytesIO(file.read(int(table_bytes))))
    return mapped(path, np.float32, (int(steps), columns)), table


def end_flat(target: BinaryIO, steps: int, table: pa.Table) -> None:
    """Put a table behind the values that were written, and how much of both there is."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    target.write(buffer.getvalue())
    target.write(np.array([steps, buffer.tell()], np.int64).tobytes())


def _build(path: Path, files: Sequence[tuple[ReadableFolder, str]], names: Sequence[str], step_s: float) -> None:
    def one(file: tuple[ReadableFolder, str]) -> GridVideos:
        folder, name = file
        try:
            return to_grid(read_file(folder, name, [*_ROW_COLUMNS, *names]), names, step_s)
        except ValueError as error:
            named = f"{folder.display}/{name}" in str(error)
            raise ValueError(str(error) if named else f"{folder.display}/{name}: {error}") from error

    where: dict[str, str] = {}
    facts, steps = [pa.schema([*VIDEO_FACTS.items(), ("steps", pa.int64())]).empty_table()], 0
    with open(path, "xb") as target, ThreadPoolExecutor(READERS) as pool:
        for (folder, name), grid in zip(files, pool.map(one, files)):
            for video_id in grid.video_ids:
                if video_id in where:
                    raise ValueError(
                        f"the video {video_id!r} stands both in {where[video_id]} and in {folder.display}/{name}: two "
                        "stores of one corpus, or two copied into one? Take one of them out"
                    )
                where[video_id] = f"{folder.display}/{name}"
            target.write(np.ascontiguousarray(grid.values).tobytes())
            steps += len(grid.values)
            facts.append(grid.facts.append_column("steps", pa.array(np.diff(grid.offsets), pa.int64())))
        end_flat(target, steps, pa.concat_tables(facts))
