"""Rows on their way into a store: built one chunk at a time by the workers, settled one video at a time by the writer.

On the way a row has one column more than the store, `attempt`: which decoding of the video it is from. Ray may
execute a task again, with other blocks; rows of two attempts are never mixed into one video.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mma.descriptors import DescriptorSet
from mma.store import schema as s

ATTEMPT = "attempt"


def chunk_row(
    descriptors: DescriptorSet, video: Mapping[str, Any], frames: Mapping[str, np.ndarray] | None = None
) -> pa.Table:
    """One row of the store, without its descriptors, as a table.

    Args:
        descriptors: names of the descriptor columns, which stand empty (null) until `with_descriptors`.
        video: values of `schema.VIDEO_COLUMNS` and `attempt`; what is missing is null.
        frames: (F, ...) arrays for `schema.FRAME_COLUMNS`; None for a row without frames.
    """
    message = video.get("error_message")
    known = {**video, "error_message": None if message is None else clean_message(message)}
    columns: dict[str, pa.Array] = {name: pa.array([known.get(name)], kind) for name, kind in s.VIDEO_COLUMNS.items()}
    for name, kind in s.FRAME_COLUMNS.items():
        columns[name] = s.empty_list_column(kind) if frames is None else s.list_column(frames[name], kind)
    empty = s.empty_list_column(pa.float32())
    columns.update(dict.fromkeys(descriptors.names, empty))
    columns[ATTEMPT] = pa.array([video.get(ATTEMPT, "")], pa.string())
    return pa.table(columns)


def clean_message(message: str) -> str:
    """An error message as the store keeps it: one line of at most 500 characters."""
    return " ".join(message.split())[: s.MESSAGE_CHARACTERS]


def with_descriptors(rows: pa.Table, descriptors: DescriptorSet, values: list[np.ndarray]) -> pa.Table:
    """Fill in the descriptor columns.

    Args:
        rows: R rows made by `chunk_row`.
        descriptors: the names of the D columns of `values`, in their order.
        values: for each row the float32 (K, D) descriptors of its K frames with a face, in order.

    Returns:
        the same rows, with one value a frame and NaN where no face was found.
    """
    found = rows["face_found"].combine_chunks()
    mask = found.flatten().to_numpy(zero_copy_only=False).astype(bool)
    flat = np.full((len(mask), len(descriptors)), np.nan, np.float32)
    if len(values):
        flat[mask] = np.concatenate(values)
    starts = found.offsets.to_numpy()
    offsets = pa.array(starts - starts[0], pa.int32())
    for position, name in enumerate(descriptors.names):
        column = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(flat[:, position])))
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows


def settle_video(rows: pa.Table, run_id: str) -> pa.Table:
    """The final rows of a complete video: `num_chunks`, `run_id` and the status that all its chunks together give.

    A chunk that was read says `partial` where another chunk of the video failed or the file was damaged, and
    `no_face` where no frame of the whole video shows a face.
    """
    count = rows.num_rows
    statuses = rows["status"].to_pylist()
    last = rows.slice(count - 1).select(["error_stage", "error_type", "error_message"]).to_pylist()[0]
    faces = bool(pc.any(pc.list_flatten(rows["face_found"])).as_py())
    readable = s.OK
    if s.PARTIAL in statuses or s.FAILED in statuses:
        readable = s.PARTIAL
    elif not faces:
        readable = s.NO_FACE
    settled = [each if each == s.FAILED else readable for each in statuses]
    replaced: dict[str, pa.Array] = {
        "status": pa.array(settled, pa.string()),
        "num_chunks": pa.array([count] * count, pa.int32()),
        "run_id": pa.array([run_id] * count, pa.string()),
    }
    if readable == s.PARTIAL:
        for name, value in last.items():
            replaced[name] = pa.array([value] * count, pa.string())
    for name, column in replaced.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows.drop_columns([ATTEMPT])


def video_status(rows: pa.Table) -> str:
    """What a settled video counts as: `failed` where no chunk could be read, else what its readable chunks say."""
    statuses = rows["status"].to_pylist()
    return next((each for each in statuses if each != s.FAILED), s.FAILED)


class VideoAssembler:
    """Chunks in, in any order and any number of times; whole videos out, each exactly once.

    This is the one place that makes an extraction exact: it counts. A video is complete when one attempt has
    delivered its chunks 0 to n-1, n being told by its last chunk (`num_chunks`, null in the others).
    """

    def __init__(self, run_id: str):
        self.run_id = run_id
        self.done: set[str] = set()
        """Videos that came out."""
        self.repeated_rows = 0
        """Rows that Ray delivered once too often, dropped here."""
        self._pieces: dict[tuple[str, str], dict[int, pa.Table]] = {}
        self._expected: dict[tuple[str, str], int] = {}

    def add(self, rows: pa.Table) -> list[pa.Table]:
        """Take delivered rows; return the settled rows of each video that they completed."""
        complete = []
        ids, attempts = rows["video_id"].to_pylist(), rows[ATTEMPT].to_pylist()
        indices, totals = rows["chunk_index"].to_pylist(), rows["num_chunks"].to_pylist()
        for position, (video_id, attempt, index, total) in enumerate(zip(ids, attempts, indices, totals)):
            key = (video_id, attempt)
            pieces = self._pieces.setdefault(key, {})
            if video_id in self.done or index in pieces:
                self.repeated_rows += 1
            else:
                pieces[index] = rows.slice(position, 1)
                if total is not None:
                    self._expected[key] = total
            if video_id in self.done:
                del self._pieces[key]
            elif len(pieces) == self._expected.get(key):
                ordered = [pieces[each] for each in sorted(pieces)]
                complete.append(settle_video(pa.concat_tables(ordered), self.run_id))
                self.done.add(video_id)
                self._forget(video_id)
        return complete

    def drop_incomplete(self) -> int:
        """Forget the chunks of videos that never completed (the pipeline has ended); returns how many rows."""
        dropped = sum(len(pieces) for pieces in self._pieces.values())
        self._pieces.clear()
        self._expected.clear()
        return dropped

    def _forget(self, video_id: str) -> None:
        for key in [each for each in self._pieces if each[0] == video_id]:
            self._pieces.pop(key)
            self._expected.pop(key, None)
