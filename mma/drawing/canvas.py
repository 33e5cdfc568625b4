"""The face's own plane, on which everything is drawn before the head is posed: its units, its pixels, its pens.

One unit is the distance between the eyes; the origin lies midway between them, x to the image's right, y down.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

PX_PER_UNIT = 72.0
"""Canvas resolution; a face in a 320 x 240 picture has 36 to 56 px a unit, so this is 1.3 to 2 times supersampled."""
WIDTH_PX, HEIGHT_PX = 264, 312
ORIGIN_PX = (132.0, 154.0)
"""Where the point between the eyes lies."""
_SHIFT = 4


def grid(step: int = 1) -> tuple[F32, F32]:
    """Coordinates (x, y), in units, of the centres of blocks of `step` pixels; both (rows, columns)."""
    columns = (np.arange(WIDTH_PX // step, dtype=np.float32) + 0.5) * step - 0.5
    rows = (np.arange(HEIGHT_PX // step, dtype=np.float32) + 0.5) * step - 0.5
    x, y = np.meshgrid((columns - ORIGIN_PX[0]) / PX_PER_UNIT, (rows - ORIGIN_PX[1]) / PX_PER_UNIT)
    return x.astype(np.float32), y.astype(np.float32)


def to_px(points: NDArray[np.floating], origin_px: tuple[float, float] = (0.0, 0.0)) -> NDArray[np.float64]:
    """Points (N, 2) in units to canvas pixels, counted from `origin_px` of a cut-out."""
    return np.asarray(points, np.float64) * PX_PER_UNIT + (np.array(ORIGIN_PX) - np.array(origin_px))


def window(x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice, tuple[float, float]]:
    """Row and column slices of a rectangle given in units, and the pixel at which it starts."""
    (left, top), (right, bottom) = to_px(np.array([[x0, y0], [x1, y1]]))
    left, top = max(int(left), 0), max(int(top), 0)
    right, bottom = min(int(right) + 1, WIDTH_PX), min(int(bottom) + 1, HEIGHT_PX)
    return slice(top, bottom), slice(left, right), (float(left), float(top))


def filled(shape: tuple[int, int], points_px: NDArray[np.floating], softness_px: float = 0.0) -> F32:
    """Coverage in [0, 1] of a polygon (N, 2) in pixels, with smooth edges."""
    mask = np.zeros(shape, np.uint8)
    fixed = np.round(np.asarray(points_px) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(mask, [fixed.reshape(-1, 1, 2)], 255, cv2.LINE_AA, _SHIFT)
    return _soft(mask, softness_px)


def stroked(
    shape: tuple[int, int], points_px: NDArray[np.floating], thickness_px: int, softness_px: float = 0.0
) -> F32:
    """Coverage in [0, 1] of an open line through points (N, 2) in pixels."""
    mask = np.zeros(shape, np.uint8)
    fixed = np.round(np.asarray(points_px) * (1 << _SHIFT)).astype(np.int32)
    cv2.polylines(mask, [fixed.reshape(-1, 1, 2)], False, 255, thickness_px, cv2.LINE_AA, _SHIFT)
    return _soft(mask, softness_px)


def _soft(mask: NDArray[np.uint8], softness_px: float) -> F32:
    coverage = mask.astype(np.float32) * np.float32(1 / 255)
    return blurred(coverage, softness_px) if softness_px > 0 else coverage


def blurred(picture: NDArray, sigma_px: float, sigma_y_px: float = 0.0) -> F32:
    """A Gaussian blur of a float picture; `sigma_y_px` 0 means the same in both directions."""
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma_px, sigmaY=sigma_y_px), np.float32)


def resized(picture: NDArray, width_px: int, height_px: int, interpolation: int = cv2.INTER_LINEAR) -> F32:
    """A float picture at another size."""
    return np.asarray(cv2.resize(picture, (width_px, height_px), interpolation=interpolation), np.float32)


def paint(picture: F32, coverage: F32, colour: NDArray[np.floating] | F32) -> None:
    """Lay `colour`, (3,) or (h, w, 3), over `picture` (h, w, 3) in place, where `coverage` (h, w) says."""
    picture += (np.asarray(colour, np.float32) - picture) * coverage[..., None]


def blended(weights: NDArray[np.floating], modes: F32) -> F32:
    """The sum of `modes` (N, ...) times `weights` (N,).

    Not a matrix product: BLAS rounds by where arrays lie in memory, and equal seeds must draw equal pictures.
    """
    total = np.zeros(modes.shape[1:], np.float32)
    for weight, mode in zip(weights, modes, strict=True):
        if weight:
            total += np.float32(weight) * mode
    return total


def bump(x: F32, y: F32, at: tuple[float, float], sigma: tuple[float, float], angle_deg: float = 0.0) -> F32:
    """A Gaussian hill of height 1 at `at`, in units."""
    dx, dy = x - np.float32(at[0]), y - np.float32(at[1])
    if angle_deg:
        c, s = np.float32(np.cos(np.deg2rad(angle_deg))), np.float32(np.sin(np.deg2rad(angle_deg)))
        dx, dy = dx * c + dy * s, dy * c - dx * s
    return np.exp(-0.5 * ((dx / np.float32(sigma[0])) ** 2 + (dy / np.float32(sigma[1])) ** 2))


def smooth_curve(points: NDArray[np.floating], samples: int = 8, closed: bool = False) -> NDArray[np.float64]:
    """A Catmull-Rom curve through points (N, 2), `samples` a segment."""
    p = np.asarray(points, np.float64)
    padded = np.vstack([p[-1:], p, p[:2]]) if closed else np.vstack([2 * p[0] - p[1], p, 2 * p[-1] - p[-2]])
    t = np.linspace(0, 1, samples, endpoint=False)[:, None]
    pieces = []
    for a, b, c, d in zip(padded[:-3], padded[1:-2], padded[2:-1], padded[3:], strict=True):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.vstack(pieces) if closed else np.vstack([*pieces, p[-1:]])


def texture(rng: np.random.Generator, shape: tuple[int, int], sigma_px: tuple[float, float]) -> F32:
    """Noise of mean 0 and deviation 1, smoothed by `sigma_px` (x, y)."""
    noise = rng.standard_normal(shape).astype(np.float32)
    noise = blurred(noise, *sigma_px)
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)
