"""Csv files as OpenFace 2 writes them: leading blanks in header and cells, columns that nobody asked for between."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mma.descriptors import OPENFACE

COLUMNS = (
    *("frame", "face_id", "timestamp", "confidence", "success", "gaze_0_x", "gaze_angle_x", "gaze_angle_y"),
    *("pose_Tx", "pose_Rx", "pose_Ry", "pose_Rz", "x_0", "X_0", "p_rx"),
    *(name for name in OPENFACE.names if name.startswith("AU")),
)
FPS = 30.0


def row(frame: int, /, **cells: object) -> dict[str, object]:
    """A frame, counted from 1, in which every descriptor is the frame's number / 100; `cells` over it."""
    values: dict[str, object] = dict.fromkeys(COLUMNS, -7.0)
    values |= {name: frame / 100 for name in OPENFACE.names}
    values |= {"frame": frame, "face_id": 0, "timestamp": f"{(frame - 1) / FPS:.3f}", "confidence": 0.98, "success": 1}
    return values | cells


def lost(frame: int, /, **cells: object) -> dict[str, object]:
    """A frame in which OpenFace found no face: zeros."""
    return row(frame, **{**dict.fromkeys(OPENFACE.names, 0), "confidence": 0.02, "success": 0, **cells})


def text(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = COLUMNS) -> bytes:
    lines = [", ".join(columns), *(", ".join(str(each[name]) for name in columns) for each in rows)]
    return ("\n".join(lines) + "\n").encode()


def write(path: Path, rows: Sequence[Mapping[str, object]] | None = None) -> Path:
    """A file of these rows; by default of five frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text([row(frame) for frame in range(1, 6)] if rows is None else rows))
    return path
