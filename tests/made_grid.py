"""Rows of a store whose descriptors count their frames, for tests of grids and sequences."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from mma.descriptors import MMA26
from mma.store import schema as s
from mma.store.rows import chunk_row, settle_video, with_descriptors


def video(video_id: str, times_s, values=None, *, faces=None, chunk: int = 0, status: str = s.OK, **facts) -> pa.Table:
    """One chunk whose `valence` counts its frames (or is `values`), every other descriptor too."""
    count = len(times_s)
    faces = np.ones(count, bool) if faces is None else np.asarray(faces)
    frames = {
        "frame_index": np.arange(count),
        "time_s": np.asarray(times_s, float),
        "face_found": faces,
        "face_score": np.ones(count, np.float32),
        "face_box": np.tile(np.float32([0, 0, 30, 40]), (count, 1)),
        "face_points": np.full((count, 10), np.nan, np.float32),
        "num_faces": faces.astype(np.int16),
    }
    told = {"work_id": f"{video_id}#{chunk}", "video_id": video_id, "uri": f"{video_id}.mp4", "chunk_index": chunk}
    made = chunk_row(MMA26, {**told, "status": status, "num_frames": count, **facts}, frames)
    values = np.arange(count) if values is None else np.asarray(values)
    return with_descriptors(made, MMA26, [np.tile(values[faces, None], (1, 26)).astype(np.float32)])


def settled(*chunks: pa.Table) -> pa.Table:
    return settle_video(pa.concat_tables(chunks), "r")


def failed(video_id: str, chunk: int = 0) -> pa.Table:
    told = {"work_id": f"{video_id}#{chunk}", "video_id": video_id, "chunk_index": chunk, "status": s.FAILED}
    return chunk_row(MMA26, {**told, "error_stage": "decode", "error_type": "DamagedStream", "error_message": "x"})
