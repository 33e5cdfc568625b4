"""Reading a feature store: which videos it has, under which spec, and its rows as one line a frame.

Any Parquet reader can do the same without this project: `<store>/*.parquet` is the whole data set.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mma.store import schema as s
from mma.store.writer import FolderLike, parquet_bytes

INDEX_COLUMNS = ["video_id", "chunk_index", "status", "source_version", "source_bytes", "uri"]

READERS = 8
"""Files of a store that are read side by side."""

FAILED_PREFIX = "failed-"
"""Files with the videos that are worth another try."""


class ReadableFolder(FolderLike, Protocol):
    """What reading needs beyond writing."""

    def delete(self, names: Iterable[str]) -> None:
        """Remove files; missing ones are no error."""

    def list(self, prefix: str = "", suffix: str = "") -> Sequence[Any]:
        """The files of the folder, each with a `name`."""


def store_files(folder: ReadableFolder) -> list[str]:
    """Names of the store's data files, sorted: parts and failed ones, nothing hidden."""
    return sorted(entry.name for entry in folder.list(suffix=".parquet") if not entry.name.startswith(("_", ".")))


def read_spec(folder: ReadableFolder) -> dict[str, Any]:
    """The spec of a store.

    Raises:
        ValueError: the folder is no feature store.
    """
    if not folder.exists(s.SPEC_FILE):
        raise ValueError(
            f"{folder.display} is no feature store: it has no {s.SPEC_FILE}; give the folder that extract wrote"
        )
    return json.loads(folder.read(s.SPEC_FILE))


def read_file(folder: ReadableFolder, name: str, columns: list[str] | None = None) -> pa.Table:
    """One data file of a store as a table; with `columns`, only their bytes are read.

    Raises:
        ValueError: the file is no whole Parquet file.
    """
    filesystem, root = folder.filesystem()
    try:
        with filesystem.open_input_file(f"{root}/{name}") as file:
            return pq.ParquetFile(file, pre_buffer=True).read(columns=columns)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{folder.display}/{name} cannot be read ({error}); this project never leaves a half-written file: "
            f"restore it, or delete it and run extract again"
        ) from error


def read_index(folder: ReadableFolder) -> pa.Table:
    """One row a chunk with its key, status, source and the file it is in, lists left out.

    Returns:
        columns `INDEX_COLUMNS` and `file` (string).

    Raises:
        ValueError: a file is damaged, or a chunk stands in the store twice.
    """

    def one(name: str) -> pa.Table:
        rows = read_file(folder, name, INDEX_COLUMNS).select(INDEX_COLUMNS).replace_schema_metadata(None)
        return rows.append_column("file", pa.array([name] * rows.num_rows, pa.string()))

    with ThreadPoolExecutor(READERS) as pool:
        tables = list(pool.map(one, store_files(folder)))
    fields = [pa.field(name, s.VIDEO_COLUMNS[name]) for name in INDEX_COLUMNS]
    index = pa.concat_tables([pa.schema([*fields, pa.field("file", pa.string())]).empty_table(), *tables])
    counts = index.group_by(["video_id", "chunk_index"]).aggregate(
        [("file", "count"), ("file", "min"), ("file", "max")]
    )
    twice = counts.filter(pc.greater(counts["file_count"], 1)).slice(0, 1).to_pylist()
    if twice:
        raise ValueError(
            f"{folder.display} holds the video {twice[0]['video_id']!r} twice, in {twice[0]['file_min']} and "
            f"{twice[0]['file_max']}: two stores were copied into one? Take one of the files out"
        )
    return index


def count_statuses(index: pa.Table) -> dict[str, int]:
    """Videos of a store by status; a video with a readable chunk counts as what that chunk says."""
    best: dict[str, str] = {}
    for video_id, status in zip(index["video_id"].to_pylist(), index["status"].to_pylist()):
        if status != s.FAILED or video_id not in best:
            best[video_id] = status
    counts = Counter(best.values())
    return {status: counts[status] for status in s.STATUSES}


def drop_videos(folder: ReadableFolder, video_ids: set[str]) -> int:
    """Remove all rows of these videos; each file that holds some is replaced, whole or not at all.

    Returns:
        how many rows are gone.
    """
    gone = 0
    unwanted = pa.array(sorted(video_ids), pa.string())
    for name in store_files(folder) if video_ids else []:
        held = pc.is_in(read_file(folder, name, ["video_id"])["video_id"], value_set=unwanted)
        if not pc.any(held).as_py():
            continue
        rows = read_file(folder, name)
        kept = rows.filter(pc.invert(held))
        gone += rows.num_rows - kept.num_rows
        if kept.num_rows:
            folder.write(name, parquet_bytes(kept))
        else:
            folder.delete([name])
    return gone


def frames_of(rows: pa.Table) -> pa.Table:
    """One row a frame from rows of a store: `video_id`, `chunk_index`, `status`, then every per-frame column.

    `face_box` becomes `face_x`, `face_y`, `face_w`, `face_h` (px) and `face_points` `point_0_x` ... `point_4_y`,
    so that csv readers and R take it.
    """
    lists = [field.name for field in rows.schema if pa.types.is_list(field.type)]
    parents = pc.list_parent_indices(rows[lists[0]].combine_chunks())
    columns: dict[str, Any] = {name: rows[name].take(parents) for name in ("video_id", "chunk_index", "status")}
    for name in lists:
        values = pc.list_flatten(rows[name].combine_chunks())
        if not pa.types.is_fixed_size_list(values.type):
            columns[name] = values
            continue
        flat = values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), values.type.list_size)
        labels = [f"face_{axis}" for axis in "xywh"]
        if name == "face_points":
            labels = [f"point_{point}_{axis}" for point in range(5) for axis in "xy"]
        columns.update({label: flat[:, position] for position, label in enumerate(labels)})
    return pa.table(columns)


class SeenFace(NamedTuple):
    """Where a video's face is in one of its frames."""

    frame_index: int
    box: npt.NDArray[np.float32]
    """x, y, w, h in px of the upright frame; NaN where the store has none."""
    num_faces: int
    """Faces that the detector saw there."""
    source_version: str | None
    """Of the file that it was seen in; None where the store does not know."""


def middle_faces(folders: Iterable[ReadableFolder], video_ids: Iterable[str]) -> dict[str, SeenFace]:
    """Of each of these videos the frame with its face that lies nearest the middle; without any, it is left out."""
    asked = pa.array(sorted(set(video_ids)), pa.string())
    columns = ["video_id", "chunk_index", "status", "frame_index", "face_found", "face_box", "num_faces"]
    tables = []
    versions: dict[str, str | None] = {}
    for folder in folders:
        for name in store_files(folder):
            if pc.any(pc.is_in(read_file(folder, name, ["video_id"])["video_id"], value_set=asked)).as_py():
                rows = read_file(folder, name, [*columns, "source_version"]).replace_schema_metadata(None)
                rows = rows.filter(pc.is_in(rows["video_id"], value_set=asked))
                versions.update(zip(rows["video_id"].to_pylist(), rows["source_version"].to_pylist()))
                tables.append(rows.select(columns))
    if not tables:
        return {}
    frames = frames_of(pa.concat_tables(tables).sort_by([("video_id", "ascending"), ("chunk_index", "ascending")]))
    found = {}
    for video_id in pc.unique(frames["video_id"]).to_pylist():
        own = frames.filter(pc.equal(frames["video_id"], video_id))
        shown = np.flatnonzero(own["face_found"].to_numpy())
        if len(shown):
            row = int(shown[np.abs(shown - (own.num_rows - 1) / 2).argmin()])
            box = np.array([own[f"face_{axis}"][row].as_py() for axis in "xywh"], np.float32)
            index, faces = (own[name][row].as_py() for name in ("frame_index", "num_faces"))
            found[video_id] = SeenFace(index, box, faces, versions[video_id])
    return found


def iterate_files(folder: ReadableFolder) -> Iterator[pa.Table]:
    """The rows of the whole store, one data file at a time, ordered by video and chunk inside each."""
    for name in store_files(folder):
        rows = read_file(folder, name).replace_schema_metadata(None)
        yield rows.sort_by([("video_id", "ascending"), ("chunk_index", "ascending")])
