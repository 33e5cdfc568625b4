"""The messages between the decoding child and its parent: a length, a JSON header, and packed arrays.

Each message is `<u4 header bytes> <u4 payload bytes> header payload`. Kinds, by the header's "kind":

    ready   the child has imported its decoders and waits for a request
    taken   the child has read the request: from here on what happens is the video's doing
    open    a video is open: "info" (VideoInfo's fields) and "decoder"
    frames  a few frames: the payload is "count" rows of `ROW`, then the crops of those with a face
    tick    frames are being decoded, none is due yet; "frame" is the last one handed to the follower
    end     the video's end: "decoder" and "damage"
    error   "stage", "type", "message"
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mma.video.chunk import CROP_PX

LENGTHS = struct.Struct("<II")
CROP_SHAPE = (CROP_PX, CROP_PX, 3)

ROW = np.dtype(
    [
        ("frame_index", "<i4"),
        ("time_s", "<f8"),
        ("face_found", "?"),
        ("face_score", "<f4"),
        ("face_box", "<f4", (4,)),
        ("face_points", "<f4", (10,)),
        ("num_faces", "<i2"),
    ]
)
"""One frame on the wire, packed."""


def send(descriptor: int, header: dict[str, Any], *payload: memoryview) -> None:
    """Write one message, its payload as flat bytes; blocks while the reader is behind.

    Raises BrokenPipeError when it is gone.
    """
    text = json.dumps(header).encode()
    lengths = LENGTHS.pack(len(text), sum(map(len, payload)))
    parts = [memoryview(lengths), memoryview(text), *payload]
    while parts:
        written = os.writev(descriptor, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if written:
            parts[0] = parts[0][written:]


def receive(read_exactly: Callable[[int], bytearray]) -> tuple[dict[str, Any], bytearray]:
    """Read one message; `read_exactly(n)` gives n bytes or raises."""
    header_bytes, payload_bytes = LENGTHS.unpack(read_exactly(LENGTHS.size))
    header = json.loads(read_exactly(header_bytes))
    return header, read_exactly(payload_bytes)


def pack_faces(faces: Sequence[Any]) -> tuple[int, memoryview, list[memoryview]]:
    """`mma.faces.FrameFace`s as (count, packed rows, the crop of each of those found)."""
    rows = np.zeros(len(faces), dtype=ROW)
    for row, face in zip(rows, faces):
        row["frame_index"], row["time_s"] = face.frame_index, face.time_s
        row["face_found"], row["face_score"] = face.found, face.score
        row["face_box"], row["face_points"] = face.box, face.points
        row["num_faces"] = min(face.num_faces, np.iinfo(np.int16).max)
    crops = [np.ascontiguousarray(face.crop, dtype=np.uint8) for face in faces if face.found]
    if any(crop.shape != CROP_SHAPE for crop in crops):
        raise ValueError(f"a crop is not {CROP_SHAPE}")
    return len(faces), rows.view(np.uint8).data, [crop.reshape(-1).data for crop in crops]


def unpack_faces(count: int, payload: bytearray) -> tuple[NDArray[np.void], NDArray[np.uint8]]:
    """(rows of `ROW`, uint8 (K, 112, 112, 3)), views of `payload`."""
    rows = np.frombuffer(payload, dtype=ROW, count=count)
    crops = np.frombuffer(payload, dtype=np.uint8, offset=count * ROW.itemsize)
    return rows, crops.reshape(-1, *CROP_SHAPE)
