"""Drawn faces as pictures and label tables: what tests of crops need, and no real person."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa

from mma.drawing import draw_empty_frame, draw_frame, sample_identity, sample_scene
from mma.labels.table import CUT, LABEL_SCHEMA


@lru_cache
def face_picture(seed: int = 0, number: int = 0) -> np.ndarray:
    """A frame (H, W, 3) RGB with one face that Haar finds; `number` moves its features a little."""
    scene = sample_scene(np.random.default_rng(seed))
    scene = replace(scene, yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0, drift_px=0.0, noise=0.01)
    return draw_frame(
        sample_identity(np.random.default_rng(seed)), scene, {"AU12": number % 5 / 5}, time_s=0.0, seed=number
    )


@lru_cache
def empty_picture(seed: int = 0) -> np.ndarray:
    """A background without a person."""
    return draw_empty_frame(sample_scene(np.random.default_rng(seed)))


def encoded(picture: np.ndarray, suffix: str = ".png") -> bytes:
    """A picture (H, W, 3) RGB as an image file's bytes."""
    return cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()


def save(path: Path, picture: np.ndarray) -> str:
    """Write a picture; its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture, path.suffix))
    return str(path)


def labels(*rows: tuple) -> pa.Table:
    """A label table of rows (source, frame or None, crop, box or None, points or None); the last three may be left out."""
    full = [(*row, *(CUT, None, None)[len(row) - 2 :]) for row in rows]
    names = ("source", "frame", "crop", "box", "points")
    return pa.Table.from_pylist([dict(zip(names, row)) | {"valence": 0.0} for row in full], schema=LABEL_SCHEMA)
