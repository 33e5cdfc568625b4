"""Rows of a store without videos: what the decode tasks and the network would have made."""

import numpy as np
import pyarrow as pa

from mma.descriptors import MMA26
from mma.store import schema as s
from mma.store.rows import chunk_row, with_descriptors


def frames(first: int, count: int, faces: np.ndarray) -> dict[str, np.ndarray]:
    """Detection columns of `count` frames from `first` on; `faces` (count,) bool says which show one."""
    box = np.where(faces[:, None], [[10.0, 20.0, 30.0, 40.0]], np.nan).astype(np.float32)
    return {
        "frame_index": np.arange(first, first + count),
        "time_s": np.arange(first, first + count) / 25.0,
        "face_found": faces,
        "face_score": np.where(faces, 0.9, np.nan).astype(np.float32),
        "face_box": box,
        "face_points": np.full((count, 10), np.nan, np.float32),
        "num_faces": faces.astype(np.int16),
    }


def row(
    video_id: str,
    index: int = 0,
    total: int | None = 1,
    *,
    attempt: str = "a",
    count: int = 4,
    status: str = s.OK,
    face: bool = True,
    value: float = 0.5,
) -> pa.Table:
    """One chunk of a video; `total` is None for all but the last, as on the way from a worker."""
    video = {
        "work_id": f"{video_id}#{index}",
        "video_id": video_id,
        "uri": f"/corpus/{video_id}.mp4",
        "attempt": attempt,
        "source_version": "1",
        "source_bytes": 1000,
        "chunk_index": index,
        "num_chunks": total,
        "status": status,
        "num_frames": 0,
    }
    if status == s.FAILED:
        told = {"error_stage": "decode", "error_type": "DecoderCrashed", "error_message": "a\nb" + "x" * 600}
        return chunk_row(MMA26, {**video, **told})
    faces = np.full(count, face)
    video |= {"num_frames": count, "first_frame": index * count, "decoder": "decord", "width_px": 64, "height_px": 48}
    made = chunk_row(MMA26, video, frames(index * count, count, faces))
    return with_descriptors(made, MMA26, [np.full((int(faces.sum()), len(MMA26)), value, np.float32)])
