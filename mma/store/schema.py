"""What a feature store's rows look like: columns, types, statuses, and the spec that all its files share.

The contract (DESIGN.md, "The feature store"): one row a chunk, keyed by (`video_id`, `chunk_index`); all
lists of a row have one value a sampled frame, so the same length; NaN, never null, inside lists. A row that
failed has empty lists and its cause.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from mma.descriptors import DescriptorSet

SCHEMA_VERSION = 1

OK, PARTIAL, NO_FACE, FAILED = "ok", "partial", "no_face", "failed"
STATUSES = (OK, PARTIAL, NO_FACE, FAILED)
"""`partial`: a damaged file's good part. `no_face`: readable, but no frame of the video shows a face."""

MESSAGE_CHARACTERS = 500
"""Longer error messages are cut here."""

SPEC_FILE, SUMMARY_FILE, RUNS_FOLDER = "_spec.json", "_summary.json", "_runs"
SPEC_METADATA_KEY = b"mma_mrnnet.spec"

VIDEO_COLUMNS: dict[str, pa.DataType] = {
    "work_id": pa.string(),
    "video_id": pa.string(),
    "uri": pa.string(),
    "decoder": pa.string(),
    "run_id": pa.string(),
    "source_version": pa.string(),
    "chunk_index": pa.int32(),
    "num_chunks": pa.int32(),
    "source_bytes": pa.int64(),
    "status": pa.string(),
    "error_stage": pa.string(),
    "error_type": pa.string(),
    "error_message": pa.string(),
    "first_frame": pa.int32(),
    "num_frames": pa.int32(),
    "width_px": pa.int32(),
    "height_px": pa.int32(),
    "source_fps": pa.float64(),
    "duration_s": pa.float64(),
}
"""One value a row."""

FRAME_COLUMNS: dict[str, pa.DataType] = {
    "frame_index": pa.int32(),
    "time_s": pa.float64(),
    "face_found": pa.bool_(),
    "face_score": pa.float32(),
    "face_box": pa.list_(pa.float32(), 4),
    "face_points": pa.list_(pa.float32(), 10),
    "num_faces": pa.int16(),
}
"""One value a frame: stored as a list of this type. `face_box` is x, y, w, h in px of the upright frame;
`face_points` five (x, y) pairs in the order of `mma.faces.alignment`."""


def frame_columns(descriptors: DescriptorSet) -> dict[str, pa.DataType]:
    """Every per-frame column in order: detection first, then the descriptors by name (float32)."""
    return {**FRAME_COLUMNS, **{name: pa.float32() for name in descriptors.names}}


def store_schema(descriptors: DescriptorSet, spec: Mapping[str, Any] | None = None) -> pa.Schema:
    """The Arrow schema of a store's files; `spec`, where given, travels as JSON in the schema's metadata."""
    fields = [pa.field(name, kind) for name, kind in VIDEO_COLUMNS.items()]
    fields += [pa.field(name, pa.list_(kind)) for name, kind in frame_columns(descriptors).items()]
    metadata = None if spec is None else {SPEC_METADATA_KEY: json.dumps(spec, sort_keys=True).encode()}
    return pa.schema(fields, metadata=metadata)


def list_column(values: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    """One row's list: `values` of shape (F,) or (F, n) as a list array with a single element.

    Args:
        values: (F,) for a scalar kind, (F, n) for a fixed-size list of n.
        kind: the type of one frame's value.
    """
    if pa.types.is_fixed_size_list(kind):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), kind.value_type)
        items: pa.Array = pa.FixedSizeListArray.from_arrays(flat, kind.list_size)
    else:
        items = pa.array(np.ascontiguousarray(values), kind)
    return pa.ListArray.from_arrays(pa.array([0, len(items)], pa.int32()), items)


def empty_list_column(kind: pa.DataType) -> pa.ListArray:
    """One row's list with no frame in it."""
    return pa.ListArray.from_arrays(pa.array([0, 0], pa.int32()), pa.array([], kind))


def make_spec(
    *,
    descriptors: DescriptorSet,
    weights: Mapping[str, Any],
    crop: Mapping[str, Any],
    detector: Mapping[str, Any],
    sampling: Mapping[str, Any],
    precision: str,
) -> dict[str, Any]:
    """The spec all files of one store share; two runs whose specs differ may not write to the same store."""
    return {
        "schema_version": SCHEMA_VERSION,
        "descriptor_set": descriptors.name,
        "descriptors": list(descriptors.names),
        "weights": dict(weights),
        "crop": dict(crop),
        "detector": dict(detector),
        "sampling": dict(sampling),
        "precision": precision,
    }


def spec_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two specs differ, each as `dotted.name: ours / theirs`."""
    differences = []
    for key in sorted({*ours, *theirs}):
        left, right = ours.get(key), theirs.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            differences += spec_differences(left, right, f"{prefix}{key}.")
        elif json.dumps(left) != json.dumps(right):
            differences.append(f"{prefix}{key}: {_short(left)} / {_short(right)}")
    return differences


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
