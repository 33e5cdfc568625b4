"""Lines, furrows and bulges that action units press into the skin, as heights: how they look is left to the light.

The same folds lie in many faces at rest (`Identity.folds`), so that a line alone does not give an action unit away.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from mma.drawing import canvas
from mma.drawing.canvas import F32, bump, smooth_curve, stroked, to_px
from mma.drawing.head import head
from mma.drawing.identity import Identity
from mma.drawing.motion import AUS

STEP = 2
"""Canvas pixels a sample of the height map."""


def _tapered(shape: tuple[int, int], points_px: np.ndarray, softness_px: float) -> F32:
    """A line that fades in and out along its way, highest at 1."""
    line = np.zeros(shape, np.float32)
    strength = np.sin(np.pi * np.clip(np.linspace(0.06, 0.94, len(points_px) - 1), 0, 1)) ** 0.6
    for first, second, share in zip(points_px[:-1], points_px[1:], strength, strict=True):
        line = np.maximum(line, share * stroked(shape, np.stack([first, second]), 1))
    return canvas.blurred(line, softness_px)


@lru_cache(maxsize=4)
def _modes(identity: Identity) -> F32:
    """The height each action unit adds at full intensity, (17, h, w), in half-pixels of the canvas."""
    x, y = canvas.grid(STEP)
    shape = (int(x.shape[0]), int(x.shape[1]))
    modes = {au: np.zeros(shape, np.float32) for au in AUS}
    rng = np.random.default_rng(identity.texture_seed + 1)
    brow, mouth, half, chin = identity.brow_y, identity.mouth_y, identity.mouth_half_width, identity.chin_y
    nose, wing = identity.nose_y, 0.27 * identity.nose_width

    def crease(au: str, depth: float, *points: Sequence[float], wide: float = 0.9, both: bool = True) -> None:
        for side in (-1, 1) if both else (1,):
            wobble = rng.normal(0, 0.008, (len(points), 2))
            curve = smooth_curve((np.array(points) + wobble) * [side, 1])
            line = _tapered(shape, to_px(curve) / STEP, wide)
            modes[au] -= np.float32(depth) * line / max(float(line.max()), 1e-6)

    def bulge(au: str, height: float, at: tuple[float, float], sigma: tuple[float, float], angle: float = 0.0) -> None:
        modes[au] += np.float32(height) * (bump(x, y, at, sigma, angle) + bump(x, y, (-at[0], at[1]), sigma, -angle))

    lines = brow - 0.22 - 0.13 * np.arange(3) + rng.normal(0, 0.015, 3)
    for level in lines:
        crease("AU01", 0.62, (0.0, level + 0.02), (0.15, level), (0.30, level + 0.01), (0.42, level + 0.06))
        crease("AU02", 0.55, (0.42, level + 0.04), (0.62, level), (0.82, level + 0.05), (0.95, level + 0.12))
    bulge("AU02", 0.5, (0.75, brow - 0.12), (0.20, 0.05))
    bulge("AU01", 0.4, (0.25, brow - 0.13), (0.15, 0.05))
    lean = rng.uniform(0.0, 0.04)
    crease("AU04", 1.15, (0.085, brow - 0.10), (0.075 + lean / 2, brow), (0.095 + lean, brow + 0.12))
    bulge("AU04", 1.0, (0.17, brow + 0.02), (0.07, 0.10))
    crease("AU04", 0.5, (0.0, brow + 0.20), (0.08, brow + 0.19), (0.14, brow + 0.22))
    bulge("AU05", 0.25, (0.5, -0.17), (0.2, 0.03))
    for k, angle in enumerate((-24, 2, 28)):
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        start = (0.80, 0.03 + 0.03 * k)
        crease(
            "AU06", 0.75, start, (start[0] + 0.10 * c, start[1] + 0.10 * s), (start[0] + 0.20 * c, start[1] + 0.21 * s)
        )
    crease("AU06", 0.75, (0.28, 0.20), (0.40, 0.26), (0.56, 0.26), (0.74, 0.20))
    bulge("AU06", 3.0, (0.62, 0.42), (0.22, 0.11), -12)
    crease("AU07", 0.65, (0.30, 0.135), (0.42, 0.165), (0.56, 0.165), (0.70, 0.125), wide=0.8)
    bulge("AU07", 0.9, (0.5, 0.115), (0.17, 0.025))
    for k in range(3):
        crease("AU09", 0.85, (0.0, 0.14 + 0.085 * k), (0.08, 0.11 + 0.085 * k), (0.17, 0.03 + 0.09 * k))
    crease("AU09", 0.9, (wing - 0.05, nose - 0.11), (wing + 0.05, nose - 0.02), (wing + 0.08, nose + 0.10))
    bulge("AU09", 0.9, (0.27, nose - 0.18), (0.09, 0.13), 25)
    crease("AU10", 1.2, (wing + 0.02, nose - 0.06), (wing + 0.13, nose + 0.08), (wing + 0.21, nose + 0.24), wide=1.2)
    bulge("AU10", 1.5, (wing + 0.27, nose + 0.06), (0.11, 0.15), -25)
    bulge("AU10", 0.9, (0.22, mouth - 0.23), (0.12, 0.05))
    fold = [
        (wing + 0.05, nose + 0.03),
        (wing + 0.16, nose + 0.17),
        (half + 0.13, mouth - 0.17),
        (half + 0.20, mouth - 0.02),
    ]
    crease("AU12", 1.35, *fold, wide=1.3)
    bulge("AU12", 3.4, (0.63, 0.70), (0.19, 0.17), -20)
    bulge("AU12", -0.7, (half + 0.08, mouth + 0.12), (0.06, 0.08))
    bulge("AU14", -2.3, (half + 0.055, mouth + 0.005), (0.035, 0.065))
    crease("AU14", 1.1, (half + 0.09, mouth - 0.11), (half + 0.115, mouth), (half + 0.08, mouth + 0.11))
    bulge("AU14", 1.5, (half + 0.20, mouth), (0.07, 0.13))
    crease("AU15", 1.2, (half + 0.00, mouth + 0.05), (half + 0.05, mouth + 0.14), (half + 0.035, mouth + 0.27))
    bulge("AU15", 1.4, (half + 0.00, mouth + 0.19), (0.07, 0.08))
    bulge("AU15", -0.8, (half - 0.12, mouth + 0.25), (0.10, 0.05))
    pebbles = canvas.texture(rng, shape, (1.6, 1.6)) * bump(x, y, (0.0, chin - 0.28), (0.21, 0.12))
    modes["AU17"] += np.float32(0.85) * pebbles
    modes["AU17"] += np.float32(2.0) * bump(x, y, (0.0, chin - 0.32), (0.22, 0.10))
    crease("AU17", 1.1, (0.0, mouth + 0.20), (0.14, mouth + 0.215), (0.27, mouth + 0.26), wide=1.3)
    for k in range(2):
        crease(
            "AU20",
            0.9,
            (half + 0.16 + 0.10 * k, mouth - 0.14),
            (half + 0.20 + 0.11 * k, mouth + 0.03),
            (half + 0.15 + 0.10 * k, mouth + 0.22),
        )
    bulge("AU20", -1.1, (0.22, chin - 0.30), (0.20, 0.07))
    for k in range(5):
        place = (k - 2) * 0.10
        crease("AU23", 0.45, (place, mouth - 0.20), (place * 0.92, mouth - 0.11), wide=0.7, both=False)
        crease("AU23", 0.40, (place * 0.92, mouth + 0.11), (place, mouth + 0.18), wide=0.7, both=False)
    bulge("AU23", 0.7, (half + 0.03, mouth), (0.05, 0.08))
    bulge("AU24", 1.0, (0.16, mouth - 0.165), (0.20, 0.045))
    bulge("AU24", 1.0, (0.14, mouth + 0.175), (0.18, 0.045))
    crease("AU24", 0.8, (half + 0.02, mouth - 0.05), (half + 0.05, mouth + 0.03), (half + 0.02, mouth + 0.09))
    bulge("AU25", -0.5, (0.12, mouth + 0.25), (0.2, 0.05))
    crease("AU26", 0.7, (half + 0.16, mouth - 0.10), (half + 0.20, mouth + 0.15), (half + 0.10, mouth + 0.42), wide=1.6)
    bulge("AU26", -1.3, (0.68, 0.95), (0.12, 0.22))
    bare = canvas.resized(head(identity).bare, shape[1], shape[0], cv2.INTER_AREA)
    return np.stack([modes[au] * bare for au in AUS])


@lru_cache(maxsize=4)
def _rest(identity: Identity) -> F32:
    return canvas.blended(0.75 * np.array(identity.folds), _modes(identity))


def relief(identity: Identity, intensities: np.ndarray) -> F32:
    """Height of all folds (h, w), at STEP, for the action units' intensities (17,) in [0, 1]."""
    # Folds deepen late: skin creases only once it has been pushed together some way.
    weights = identity.fold_gain * np.asarray(intensities) ** 1.15
    return _rest(identity) + canvas.blended(weights, _modes(identity))
