"""Face detectors behind one call: a frame in, the faces in it out. Nothing here touches the network.

OpenCV's thread count is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.faces.options import FaceOptions


def no_points() -> NDArray[np.float32]:
    """Ten NaN: what stands for the points of a face whose detector gives none."""
    return np.full(10, np.nan, dtype=np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """One face in one frame."""

    box: NDArray[np.float32]
    """(4,) x, y, w, h in frame px."""
    score: float
    """The detector's own measure, NaN where it has none; comparable within a detector alone."""
    points: NDArray[np.float32] = field(default_factory=no_points)
    """(10,) x, y of the five points of PAPER.md in its order, frame px; NaN where the detector gives none."""


Detector = Callable[[NDArray[np.uint8]], list[Detection]]
"""A frame uint8 (H, W, 3) RGB to its faces, in no particular order."""


def make_detector(options: FaceOptions) -> Detector:
    """The detector that the options name; may be used for any number of videos, by one thread at a time.

    Raises FileNotFoundError where YuNet's weights are absent, ValueError where OpenCV cannot read them.
    """
    if options.detector == "none":
        return _whole_frame
    return (_YuNet if options.detector == "yunet" else _Haar)(options.resolved())


def _shrink(frame: NDArray[np.uint8], longer_side_px: int) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The frame at no more than this size, its aspect kept, and the factors (x, y) from its px to the frame's."""
    height, width = frame.shape[:2]
    scale = min(1.0, longer_side_px / max(height, width))
    if scale == 1.0:
        return frame, np.ones(2)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8), np.array([width / size[0], height / size[1]])


class _Haar:
    """OpenCV's bundled frontal-face cascade: boxes, and the last stage's weight as score."""

    _WINDOW_PX = 24  # the cascade was trained on 24 x 24 px: no smaller face can be found

    def __init__(self, options: FaceOptions) -> None:
        self._options = options
        path = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_default.xml"
        self._cascade = cv2.CascadeClassifier(str(path))
        if self._cascade.empty():
            raise ValueError(
                f"OpenCV {cv2.__version__} comes without its Haar cascades: install opencv-python-headless>=4.10,<5"
            )

    def __call__(self, frame: NDArray[np.uint8]) -> list[Detection]:
        small, factors = _shrink(frame, self._options.detect_size_px or 0)
        if min(small.shape[:2]) < self._WINDOW_PX:
            return []
        # A box is the mean of like ones, so smaller ones than asked for are looked for too, and dropped below.
        least_px = max(self._WINDOW_PX, int(0.6 * self._options.min_face_px / factors.max()))
        boxes, _, weights = self._cascade.detectMultiScale3(
            cv2.cvtColor(small, cv2.COLOR_RGB2GRAY),
            scaleFactor=1.1,
            minNeighbors=5,
            minSize=(least_px, least_px),
            outputRejectLevels=True,
        )
        found = []
        for box, weight in zip(np.asarray(boxes).reshape(-1, 4), np.ravel(weights)):
            box_px = (box * np.tile(factors, 2)).astype(np.float32)
            if weight >= (self._options.min_score or 0) and box_px[2:].max() >= self._options.min_face_px:
                found.append(Detection(box=box_px, score=float(weight)))
        return found


class _YuNet:
    """OpenCV's YuNet: boxes, five points and a confidence in [0, 1]."""

    _LEAST_PX = 10  # smaller faces it does not see; in strips of 3 px it once saw one a hundred thousand px high

    def __init__(self, options: FaceOptions) -> None:
        self._options = options
        path = options.weights_file()
        try:
            self._network = cv2.FaceDetectorYN.create(str(path), "", (32, 32), options.min_score or 0.0, 0.3, 5000)
        except cv2.error as error:
            raise ValueError(f"--detector-weights {path}: OpenCV cannot read it as YuNet's ONNX file") from error

    def __call__(self, frame: NDArray[np.uint8]) -> list[Detection]:
        small, factors = _shrink(frame, self._options.detect_size_px or 0)
        if min(small.shape[:2]) < self._LEAST_PX:
            return []
        self._network.setInputSize((small.shape[1], small.shape[0]))
        _, rows = self._network.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        found = []
        for row in np.empty((0, 15)) if rows is None else rows:
            # A row is x, y, w, h, five points, score. The points start with the person's right eye, which is the
            # image's left one on an upright face: already PAPER.md's order. They are not sorted by x, which would
            # break faces turned upside down.
            scaled = (row[:14] * np.tile(factors, 7)).astype(np.float32)
            if np.isfinite(scaled).all() and scaled[2:4].max() >= self._options.min_face_px:
                found.append(Detection(box=scaled[:4], points=scaled[4:], score=float(row[14])))
        return found


def _whole_frame(frame: NDArray[np.uint8]) -> list[Detection]:
    """No detector: the centred square of the shorter side is the face."""
    height, width = frame.shape[:2]
    side = min(height, width)
    box = np.array([(width - side) / 2, (height - side) / 2, side, side], dtype=np.float32)
    return [Detection(box=box, score=float("nan"))]
