"""The face crop: its geometry as data, and the two ways to cut it, by five points or by a box.

PAPER.md, "Face crops". The geometry is part of the weights: checkpoints and feature stores keep `CropGeometry.spec()`
and refuse another. Matrices map pixel centres (the centre of the first pixel is 0, 0), boxes are edges (the left edge
of the first pixel is 0), so a box has its first pixel's centre half a pixel inside.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, kw_only=True)
class CropGeometry:
    """Everything that decides which pixel of a frame ends up where in the crop."""

    size_px: int = 112
    """Height and width of the crop, px."""
    template_px: tuple[tuple[float, float], ...] = (
        (38.2946, 51.6963),
        (73.5318, 51.5014),
        (56.0252, 71.7366),
        (41.5493, 92.3655),
        (70.7299, 92.2041),
    )
    """Where the five points lie in the crop, (x, y) px: image-left eye, image-right eye, nose, image-left and
    image-right mouth corner, of an upright face."""
    box_scale: float = 1.2
    """Side of a square crop over the larger edge of the face's box, for detectors that give no points."""
    colour_order: str = "RGB"
    """Order of the crop's channels."""
    border: str = "black"
    """What stands where the crop leaves the frame. Black, as published face networks were trained on; a replicated
    edge would draw streaks that look like hair and brows."""
    shrink: str = "halved by area, then bilinear"
    """How large faces are made small without aliasing: halved, each time to the mean of four pixels, while the face
    is at least twice too large, the rest bilinear."""

    def spec(self) -> dict[str, Any]:
        """The geometry as plain JSON values; two crops are comparable if and only if these are equal."""
        spec = asdict(self)
        spec["template_px"] = [list(point) for point in self.template_px]
        return spec


GEOMETRY = CropGeometry()
"""The one geometry of this project (PAPER.md, "Face crops")."""


def similarity_transform(points: ArrayLike, geometry: CropGeometry = GEOMETRY) -> NDArray[np.float64]:
    """The least-squares similarity (turn, scale, shift; no reflection) from a face's points to the template.

    points: (5, 2) x, y in frame px, in the template's order. Returns float64 (2, 3): crop = M @ (x, y, 1).
    Umeyama (1991) in the plane: with points as complex numbers the best map is z -> a z + b with
    a = sum(conj(z) w) / sum(|z|^2) over centred points, and a complex factor can turn and scale but not mirror.
    Raises ValueError where the points coincide, are not finite, or explain under 1 % of the template's spread (as
    points near its mirror image do): a face that no turn brings upright has no aligned crop.
    """
    source = np.asarray(points, dtype=np.float64)
    if source.shape != (5, 2):
        raise ValueError(f"five points of x and y are needed, shape (5, 2), not {source.shape}")
    z, w = source @ _AS_COMPLEX, _template(geometry)
    z_mean, w_mean = complex(z.mean()), complex(w.mean())
    z, w = z - z_mean, w - w_mean
    z_spread, w_spread = float(np.vdot(z, z).real), float(np.vdot(w, w).real)
    if not np.isfinite(z_spread) or z_spread < 1e-6:
        raise ValueError("the five points coincide or are not finite, so they define no face crop")
    a = complex(np.vdot(z, w)) / z_spread
    if abs(a) ** 2 * z_spread < 0.01 * w_spread:  # the share of the template's spread that the map explains
        raise ValueError("the five points fit no turned and scaled template, so they define no face crop")
    b = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


_AS_COMPLEX = np.array([1, 1j])


@lru_cache
def _template(geometry: CropGeometry) -> NDArray[np.complex128]:
    return np.asarray(geometry.template_px) @ _AS_COMPLEX


def align(frame: NDArray[np.uint8], points: ArrayLike, geometry: CropGeometry = GEOMETRY) -> NDArray[np.uint8]:
    """The aligned crop of a face with five points: frame (H, W, 3) RGB, points (5, 2) px -> (112, 112, 3) RGB.

    Raises ValueError as `similarity_transform` does.
    """
    return _warp(frame, similarity_transform(points, geometry), geometry.size_px)


def square_crop(
    frame: NDArray[np.uint8], box: ArrayLike, geometry: CropGeometry = GEOMETRY, *, box_scale: float | None = None
) -> NDArray[np.uint8]:
    """The square around a box's centre, side `box_scale` x its larger edge: (H, W, 3) RGB -> (112, 112, 3) RGB.

    box: (4,) x, y, w, h in px. box_scale: None for the geometry's; 1 cuts the box itself, for clips that are crops.
    Raises ValueError for a box without an area.
    """
    x, y, w, h = (float(edge) for edge in np.asarray(box, dtype=np.float64))
    side = max(w, h) * (geometry.box_scale if box_scale is None else box_scale)
    if not side > 0 or not np.isfinite(x + y + side):
        raise ValueError(f"a box with an area is needed, not x={x}, y={y}, w={w}, h={h}")
    scale = geometry.size_px / side
    # Edges to pixel centres: crop + .5 = scale (frame + .5 - corner).
    shift_x = scale * (0.5 - (x + w / 2 - side / 2)) - 0.5
    shift_y = scale * (0.5 - (y + h / 2 - side / 2)) - 0.5
    return _warp(frame, np.array([[scale, 0.0, shift_x], [0.0, scale, shift_y]]), geometry.size_px)


def crop_face(
    frame: NDArray[np.uint8],
    box: NDArray[np.float32],
    points: NDArray[np.float32],
    geometry: CropGeometry = GEOMETRY,
    *,
    box_scale: float | None = None,
) -> NDArray[np.uint8]:
    """The crop of a detected face: aligned where its points (10,) allow it, else the square of its box (4,)."""
    if not np.isnan(points[0]):
        with contextlib.suppress(ValueError):
            return align(frame, points.reshape(5, 2), geometry)
    return square_crop(frame, box, geometry, box_scale=box_scale)


def _warp(frame: NDArray[np.uint8], matrix: NDArray[np.float64], size_px: int) -> NDArray[np.uint8]:
    """Warp by a similarity; what shrinks by 2 or more is halved first, since bilinear sampling alone would alias."""
    shrink = 1 / np.hypot(matrix[0, 0], matrix[1, 0])
    if shrink >= 2:
        # No more halvings than bring the frame's longer side near one pixel.
        num_halvings = min(int(np.log2(shrink)), max(frame.shape[:2]).bit_length())
        frame, matrix = _halved_region(frame, matrix, size_px, num_halvings)
    warped = cv2.warpAffine(frame, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return np.asarray(warped, dtype=np.uint8)


def _halved_region(
    frame: NDArray[np.uint8], matrix: NDArray[np.float64], size_px: int, num_halvings: int
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The part of the frame under the crop at 1 / 2^num_halvings of its size, and the matrix from there to the crop."""
    block = 2**num_halvings
    height, width = frame.shape[:2]
    # The crop's centre and half its extent in the frame, wider by a block for bilinear sampling at the edge.
    linear = matrix[:, :2]
    centre_x, centre_y = (linear.T @ ((size_px - 1) / 2 - matrix[:, 2]) / (linear[0] @ linear[0])).tolist()
    reach = (size_px + 1) / 2 * float(np.abs(linear[0]).sum() / (linear[0] @ linear[0])) + block
    left, top = int(min(max(centre_x - reach, 0), width - 1)), int(min(max(centre_y - reach, 0), height - 1))
    right, bottom = min(max(centre_x + reach, left), width), min(max(centre_y + reach, top), height)
    blocks_x, blocks_y = (max(1, math.ceil(each / block)) for each in (right - left, bottom - top))
    region = frame[top : top + blocks_y * block, left : left + blocks_x * block]
    below, beside = blocks_y * block - region.shape[0], blocks_x * block - region.shape[1]
    if below or beside:
        region = np.asarray(cv2.copyMakeBorder(region, 0, below, 0, beside, cv2.BORDER_CONSTANT), dtype=np.uint8)
    for _ in range(num_halvings):
        size = region.shape[1] // 2, region.shape[0] // 2
        region = np.asarray(cv2.resize(region, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    # The centre of block i lies at first + block i + (block - 1) / 2.
    first = np.array([left, top], dtype=np.float64) + (block - 1) / 2
    return region, np.column_stack([linear * block, linear @ first + matrix[:, 2]])
