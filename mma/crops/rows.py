"""What the crop store's rows look like, and how images and chunks of a video become such rows.

A row is one face that labels ask for: its crop as raw pixels, or why there is none. Pixels are kept without loss on
purpose: a network is to be trained on exactly what `extract` will show it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mma.faces.alignment import GEOMETRY
from mma.video.chunk import FaceChunk

SCHEMA_VERSION = 1
CROP_SHAPE = (GEOMETRY.size_px, GEOMETRY.size_px, 3)
CROP_BYTES = int(np.prod(CROP_SHAPE))
MESSAGE_CHARACTERS = 500

OK, NO_FACE, FAILED = "ok", "no_face", "failed"
UNREACHABLE = "unreachable"
"""Status of a row on its way that says storage or a node failed, not the source: never stored, planned again."""

DETECTED, BY_POINTS, BY_BOX, AS_GIVEN = "detected", "points", "box", "given"
OUTCOMES = (DETECTED, BY_POINTS, BY_BOX, AS_GIVEN, NO_FACE, FAILED)
"""What can become of a wanted face; the store's index counts in these."""
WITH_FACE = OUTCOMES.index(AS_GIVEN) + 1
"""Outcomes below this have a crop."""
NO_ROW = -1
"""Stands for an outcome where the store has no row."""

WHOLE_IMAGE = -1
"""`frame` of an image, where label tables have null."""

CROP_SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # URI of the image or the video
        ("frame", pa.int32()),  # frame of the video, counted from 0 in presentation order; WHOLE_IMAGE for an image
        ("crop", pa.string()),  # CUT or GIVEN, as the labels say
        ("source_version", pa.string()),  # etag or mtime; null where storage had no such file
        ("status", pa.string()),  # OK, NO_FACE or FAILED
        ("how", pa.string()),  # the first four of OUTCOMES, null without a face
        ("error_type", pa.string()),  # null unless failed
        ("error_message", pa.string()),  # at most 500 characters
        ("face", pa.large_binary()),  # CROP_SHAPE uint8 RGB, row by row; null without a face
    ]
)
"""Columns of the store's files; (`source`, `frame`, `crop`) is the key."""

ROW_SCHEMA = pa.schema([*CROP_SCHEMA, ("key", pa.int64())])
"""On the way to the writer: `key` is the number by which the driver knows the row."""

Cause = tuple[str, str, str]
"""Why a row is no row with a face: its status (`FAILED` or `UNREACHABLE`), a short class, one line for a person."""


def crop_spec(faces: Mapping[str, Any]) -> dict[str, Any]:
    """The spec that all files of one crop store share; `faces` is `FaceOptions.spec()`, the crop geometry with it."""
    return {"schema_version": SCHEMA_VERSION, "faces": dict(faces)}


def crop_rows(
    *,
    sources: Sequence[str],
    versions: Sequence[str | None],
    crops: Sequence[str],
    frames: Sequence[int] | NDArray[np.integer],
    keys: Sequence[int] | NDArray[np.integer],
    how: Sequence[str | None],
    faces: Sequence[NDArray[np.uint8]] | NDArray[np.uint8] = (),
    causes: Sequence[Cause | None] | None = None,
) -> pa.Table:
    """N rows of `ROW_SCHEMA`.

    Row i has a face where `how[i]` says so, the next of `faces` (each (112, 112, 3) uint8); else the status that
    `causes[i]` says, where there is one; else it shows no face.
    """
    causes = causes or [None] * len(how)
    shown = np.array([each is not None for each in how], bool)
    pixels = np.ascontiguousarray(faces, np.uint8).reshape(-1)
    if len(pixels) != shown.sum() * CROP_BYTES:
        raise ValueError(f"{len(pixels)} bytes of faces for {shown.sum()} rows with one")
    status = [OK if way else cause[0] if cause else NO_FACE for way, cause in zip(how, causes)]
    columns = {
        "source": sources,
        "frame": np.asarray(frames, np.int32),
        "crop": crops,
        "source_version": versions,
        "status": status,
        "how": how,
        "error_type": [cause and cause[1] for cause in causes],
        "error_message": [cause and " ".join(cause[2].split())[:MESSAGE_CHARACTERS] for cause in causes],
        "face": _binary(pixels, shown),
        "key": np.asarray(keys, np.int64),
    }
    arrays = [columns[field.name] for field in ROW_SCHEMA]
    arrays = [each if isinstance(each, pa.Array) else pa.array(each, f.type) for each, f in zip(arrays, ROW_SCHEMA)]
    return pa.table(arrays, schema=ROW_SCHEMA)


def chunk_crops(
    chunk: FaceChunk, wanted: NDArray[np.int32]
) -> tuple[NDArray[np.intp], NDArray[np.bool_], NDArray[np.uint8]]:
    """What a chunk shows of the wanted frames ((W,) ascending, no frame twice).

    Returns the positions (M,) in `wanted` of those frames that the chunk has, whether a face was found on each (M,),
    and the crops (K, 112, 112, 3) of those found.
    """
    at = np.searchsorted(wanted, chunk.frame_index)
    hit = wanted[np.minimum(at, len(wanted) - 1)] == chunk.frame_index
    crop_number = np.cumsum(chunk.face_found) - 1
    return at[hit], chunk.face_found[hit], chunk.faces[crop_number[hit & chunk.face_found]]


def faces_of(column: pa.ChunkedArray | pa.Array) -> NDArray[np.uint8]:
    """The faces of a `face` column, nulls left out, as (K, 112, 112, 3): a view where the column is one piece."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    array = array.drop_null()
    if not len(array):
        return np.empty((0, *CROP_SHAPE), np.uint8)
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    if (np.diff(offsets) != CROP_BYTES).any():
        raise ValueError(f"a face of another size than {CROP_SHAPE}")
    pixels = np.frombuffer(array.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    return pixels.reshape(-1, *CROP_SHAPE)


def _binary(pixels: NDArray[np.uint8], shown: NDArray[np.bool_]) -> pa.Array:
    """Crops as large binaries over their own memory, null where none is shown."""
    offsets = np.concatenate([[0], np.cumsum(shown * CROP_BYTES)]).astype(np.int64)
    valid = pa.array(shown).buffers()[1]
    buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(pixels)]
    return pa.Array.from_buffers(pa.large_binary(), len(shown), buffers, null_count=int((~shown).sum()))
