"""A still image to its face crop: the detector and geometry of `extract`, and what a label set itself knows.

Where the detector finds no face, or only somebody else's, the set's five points or its box cut the crop, and the
caller counts which. Crops that a set hands out are only brought to size.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.faces.alignment import align, crop_face, square_crop
from mma.faces.detectors import Detection, Detector
from mma.faces.options import FaceOptions

How = Literal["detected", "points", "box", "given"]

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""What counts as an image, told by its first bytes; no other decoder is ever started on a stranger's file."""

MAX_PIXELS = 100_000_000
"""Images with more are refused before they are decoded: 300 MB, three times what cameras make."""

MIN_OVERLAP = 0.1
"""A detection that shares less than this (intersection over union) with the set's box is another person's."""


class ImageError(Exception):
    """An image that cannot be read: `error_type` is a short class, the message one line for a person."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(error_type, message)
        self.error_type, self.message = error_type, message

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}"


@dataclass(frozen=True, kw_only=True, eq=False)
class StillFace:
    """What one image gives."""

    crop: NDArray[np.uint8] | None
    """(112, 112, 3) RGB; None where nobody could say where the face is."""
    how: How | None
    """By the detector, by the set's points or box, or handed out as a crop; None without one."""
    box: NDArray[np.float32]
    """(4,) x, y, w, h in px of the upright image: of the detection, else the set's; NaN without either."""
    score: float
    """The detector's, else NaN."""


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """The bytes of an image file to uint8 (H, W, 3) RGB, upright by its EXIF tag.

    Grey becomes RGB, 16 bits become 8, transparency is left out. Raises ImageError.
    """
    from PIL import Image  # reads no more than the header here; the decode child does without it

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise ImageError("TooLarge", f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as error:  # Pillow's parsers let all kinds out on damaged headers
        raise ImageError("NotAnImage", f"no image of a known format ({', '.join(FORMATS)})") from error
    if width * height > MAX_PIXELS:
        raise ImageError("TooLarge", f"{width} x {height} px, more than {MAX_PIXELS:,} pixels")
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise ImageError("DamagedImage", f"the decoder refused it: {error.err or 'OpenCV gives no reason'}") from error
    if picture is None:
        raise ImageError("DamagedImage", "the image is cut short or damaged")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def crop_still(
    image: NDArray[np.uint8],
    detector: Detector,
    options: FaceOptions,
    *,
    given: bool = False,
    box: NDArray[np.floating] | None = None,
    points: NDArray[np.floating] | None = None,
) -> StillFace:
    """The crop of the face that an image is about.

    Args:
        image: uint8 (H, W, 3) RGB.
        detector: `make_detector(options)`.
        options: the settings that the detector was made with.
        given: the image is a crop already: its centred square is brought to size, as detector `none` does.
        box: (4,) x, y, w, h in px, the set's own; chooses among several detections, and cuts where there is none.
        points: (10,) the set's own five points in px; the same, and preferred to the box for cutting.

    Without box and points the largest detection is taken.
    """
    if given:
        height, width = image.shape[:2]
        side = min(height, width)
        own = np.array([(width - side) / 2, (height - side) / 2, side, side], dtype=np.float32)
        return StillFace(crop=square_crop(image, own, box_scale=1.0), how="given", box=own, score=float("nan"))
    found = _chosen(detector(image), box, points)
    if found is not None:
        scale = 1.0 if options.detector == "none" else None
        crop = crop_face(image, found.box, found.points, box_scale=scale)
        return StillFace(crop=crop, how="detected", box=found.box, score=found.score)
    own = np.full(4, np.nan, np.float32) if box is None else np.asarray(box, np.float32)
    for how, cut in (("points", _by_points), ("box", _by_box)):
        crop_or_none = cut(image, box, points)
        if crop_or_none is not None:
            return StillFace(crop=crop_or_none, how=how, box=own, score=float("nan"))  # type: ignore[arg-type]
    return StillFace(crop=None, how=None, box=own, score=float("nan"))


def _by_points(
    image: NDArray[np.uint8], _: NDArray[np.floating] | None, points: NDArray[np.floating] | None
) -> NDArray[np.uint8] | None:
    if points is None:
        return None
    try:
        return align(image, np.asarray(points).reshape(5, 2))
    except ValueError:  # points that no upright face has
        return None


def _by_box(
    image: NDArray[np.uint8], box: NDArray[np.floating] | None, _: NDArray[np.floating] | None
) -> NDArray[np.uint8] | None:
    if box is None or not _overlap(_edges([0, 0, image.shape[1], image.shape[0]]), _edges(box)) > 0:
        return None  # a box outside the image would cut a black square
    try:
        return square_crop(image, box)
    except ValueError:
        return None


def _chosen(
    detections: list[Detection], box: NDArray[np.floating] | None, points: NDArray[np.floating] | None
) -> Detection | None:
    """The detection of the person whom the set means; None where it is nobody detected."""
    if box is not None:
        wanted = _edges(box)
        overlaps = [_overlap(_edges(each.box), wanted) for each in detections]
        best = max(range(len(detections)), key=lambda i: overlaps[i], default=None)
        return detections[best] if best is not None and overlaps[best] >= MIN_OVERLAP else None
    if points is not None:
        x, y = np.asarray(points, np.float64).reshape(5, 2).mean(axis=0)
        detections = [each for each in detections if _holds(_edges(each.box), x, y)]
    return max(detections, key=lambda each: float(each.box[2]) * float(each.box[3]), default=None)


def _edges(box: NDArray[np.floating] | list[int]) -> tuple[float, float, float, float]:
    x, y, w, h = (float(each) for each in box)
    return x, y, x + w, y + h


def _holds(edges: tuple[float, float, float, float], x: float, y: float) -> bool:
    left, top, right, bottom = edges
    return left <= x <= right and top <= y <= bottom


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> float:
    """Intersection over union of two boxes given as left, top, right, bottom; 0 for a box without an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if not (width > 0 and height > 0):
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return width * height / (sum(areas) - width * height)
