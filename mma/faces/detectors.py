"""Face detectors behind one call: a frame in, the faces in it out. Nothing here touches the network.

OpenCV's thread count is the caller's matter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.faces.options import YUNET_FILE, FaceOptions


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

    Raises FileNotFoundError where YuNet's weights are absent, ValueError where they are not YuNet's.
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
    """YuNet: boxes, five points and a confidence in [0, 1], by onnxruntime: the same faces as by OpenCV's own
    `FaceDetectorYN`, in two fifths of its time."""

    _LEAST_PX = 10  # smaller faces it does not see; in strips of 3 px it once saw one a hundred thousand px high
    _OUTPUTS = tuple(f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in (8, 16, 32))
    _OVERLAP = 0.3  # of two boxes that overlap by more, the surer one stays
    _MOST = 5000  # boxes that are compared, the surest
    _FIXED, _FREE = b"\n\x03\x08\x80\x05\n\x03\x08\x80\x05", b"\n\x03\x12\x01h\n\x03\x12\x01w"
    """The input's height and width as ONNX has them: 640 and 640 in the file, and two free sizes of any names. The
    network is made of convolutions alone."""

    def __init__(self, options: FaceOptions) -> None:
        import onnxruntime

        self._options = options
        self._pixels = np.empty((1, 3, 0, 0), np.float32)
        path = options.weights_file()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        settings.log_severity_level = 3  # errors: its outputs have other sizes than the file tells
        data = path.read_bytes()
        try:
            self._network = onnxruntime.InferenceSession(
                data.replace(self._FIXED, self._FREE), settings, providers=["CPUExecutionProvider"]
            )
            names = {each.name for each in self._network.get_outputs()}
        except MemoryError:
            raise
        except Exception as error:  # a class of its own for each kind of damage
            words = " ".join(str(error).split())
            raise ValueError(f"--detector-weights {path}: onnxruntime cannot read it: {words}") from error
        if data.count(self._FIXED) != 1 or names != set(self._OUTPUTS):
            raise ValueError(f"--detector-weights {path}: this is not {YUNET_FILE} of the OpenCV model zoo")

    def __call__(self, frame: NDArray[np.uint8]) -> list[Detection]:
        small, factors = _shrink(frame, self._options.detect_size_px or 0)
        if min(small.shape[:2]) < self._LEAST_PX:
            return []
        found = []
        for row in self._rows(small):
            # The points start with the person's right eye, which is the image's left one on an upright face: already
            # PAPER.md's order. They are not sorted by x, which would break faces turned upside down.
            scaled = (row[:14] * np.tile(factors, 7)).astype(np.float32)
            if np.isfinite(scaled).all() and scaled[2:4].max() >= self._options.min_face_px:
                found.append(Detection(box=scaled[:4], points=scaled[4:], score=float(row[14])))
        return found

    def _rows(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, 15): x, y, w, h, five points, score, in the picture's px, the surest first."""
        below, beside = (-side % 32 for side in picture.shape[:2])
        padded = cv2.copyMakeBorder(picture, 0, below, 0, beside, cv2.BORDER_CONSTANT)
        if self._pixels.shape[2:] != padded.shape[:2]:
            self._pixels = np.empty((1, 3, *padded.shape[:2]), np.float32)
        for plane, channel in zip(self._pixels[0, ::-1], cv2.split(padded)):  # BGR, as it was trained
            plane[:] = channel
        found = self._network.run(self._OUTPUTS, {"input": self._pixels})
        sure, there, box, points = (np.concatenate(found[k : k + 3], axis=1)[0] for k in range(0, 12, 3))
        score = np.sqrt(np.clip(sure, 0, 1) * np.clip(there, 0, 1))
        (cells,) = np.nonzero(score[:, 0] >= (self._options.min_score or 0.0))
        corner, stride = (each[cells] for each in _grid(*padded.shape[:2]))
        centre, size = (corner + box[cells, :2]) * stride, np.exp(box[cells, 2:]) * stride
        landmarks = (np.tile(corner, 5) + points[cells]) * stride
        rows = np.hstack([centre - size / 2, size, landmarks, score[cells]]).astype(np.float32)
        whole = rows[:, :4].astype(np.int32)  # as OpenCV compares boxes
        least = self._options.min_score or 0.0
        kept = cv2.dnn.NMSBoxes(whole.tolist(), rows[:, 14].tolist(), least, self._OVERLAP, 1.0, self._MOST)
        return rows[np.asarray(kept, dtype=np.int64).reshape(-1)]


@lru_cache(maxsize=8)
def _grid(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of YuNet's cells, stride by stride and row by row: column and row (N, 2), and px of a cell's side (N, 1)."""
    corners, strides = [], []
    for stride in (8, 16, 32):
        rows, columns = np.mgrid[: height // stride, : width // stride]
        corners.append(np.stack([columns.ravel(), rows.ravel()], axis=1))
        strides.append(np.full((rows.size, 1), stride))
    return np.concatenate(corners).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _whole_frame(frame: NDArray[np.uint8]) -> list[Detection]:
    """No detector: the centred square of the shorter side is the face."""
    height, width = frame.shape[:2]
    side = min(height, width)
    box = np.array([(width - side) / 2, (height - side) / 2, side, side], dtype=np.float32)
    return [Detection(box=box, score=float("nan"))]
