"""Neck, clothes, and hair that falls behind: on a plane of their own, under the head."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mma.drawing.canvas import F32, filled, paint, smooth_curve, texture
from mma.drawing.identity import Identity

BODY_PX_PER_UNIT = 36.0
BODY_ORIGIN_PX = (190.0, 84.0)
BODY_SIZE_PX = (380, 300)


def draw_body(identity: Identity, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The body's plane under white light (h, w, 4), uint8: colour times cover, and cover."""
    width, height = BODY_SIZE_PX
    x, y = np.meshgrid(
        (np.arange(width, dtype=np.float32) - BODY_ORIGIN_PX[0]) / BODY_PX_PER_UNIT,
        (np.arange(height, dtype=np.float32) - BODY_ORIGIN_PX[1]) / BODY_PX_PER_UNIT,
    )

    def area(points: NDArray | list[list[float]], softness: float = 0.6) -> F32:
        return filled((height, width), np.asarray(points) * BODY_PX_PER_UNIT + np.array(BODY_ORIGIN_PX), softness)

    wide, skin = identity.face_width, np.array(identity.skin, np.float32)
    picture, cover = np.zeros((height, width, 3), np.float32), np.zeros((height, width), np.float32)

    def lay(mask: F32, colour: F32) -> None:
        nonlocal cover
        paint(picture, mask, colour)
        cover = np.maximum(cover, mask)

    strands = (3.0, 9.0) if identity.hair_style == "scarf" else (0.8, 6.0)
    hair = np.array(identity.hair, np.float32) * (0.72 + 0.08 * texture(rng, (height, width), strands))[..., None]
    if identity.hair_style in ("long", "scarf"):
        fall = np.array([[0.9, -1.0], [1.22, 0.0], [1.36, 1.2], [1.30, 2.2], [0.9, 2.75]])
        fall = np.vstack([fall, fall[::-1] * [-1, 1]]) * [wide + 0.3 * identity.hair_volume, 1]
        lay(area(smooth_curve(fall, closed=True)), hair)
    if identity.hair_style == "bun":
        angle = np.linspace(0, 2 * np.pi, 24)
        lay(area(np.stack([0.42 * np.cos(angle), -2.0 + 0.36 * np.sin(angle)], 1)), hair)
    chin, jaw = identity.chin_y, 0.70 * identity.jaw_width
    neck = [
        [-jaw, 0.8],
        [jaw, 0.8],
        [jaw * 0.98, chin + 0.45],
        [jaw + 0.5, chin + 0.75],
        [-jaw - 0.5, chin + 0.75],
        [-jaw * 0.98, chin + 0.45],
    ]
    under = 0.55 + 0.35 / (1 + np.exp(-(y - chin - 0.32) / 0.10))
    round_off = 0.72 + 0.28 * np.sqrt(np.clip(1 - (x / (jaw * 1.15)) ** 2, 0, 1))
    lay(area(neck), skin * (under * round_off)[..., None])
    side = [[0.62, chin + 0.36], [0.95, chin + 0.62], [2.2, chin + 0.95], [2.75, chin + 1.5], [2.95, chin + 4]]
    collar = smooth_curve(
        np.array(
            [[0.62, chin + 0.36], [0.35, chin + 0.72], [0, chin + 0.84], [-0.35, chin + 0.72], [-0.62, chin + 0.36]]
        )
    )
    clothes = np.vstack([side, [[-p, q] for p, q in side[::-1]], collar[::-1]])
    fabric = (
        np.array(identity.cloth, np.float32)
        * (0.9 - 0.05 * np.abs(x) + 0.04 * texture(rng, (height, width), (3, 8)))[..., None]
    )
    lay(area(clothes), fabric)
    if identity.hair_style == "scarf":
        drape = [
            [-1.2, 0.6],
            [1.2, 0.6],
            [1.32, chin],
            [1.5, chin + 0.75],
            [0, chin + 1.2],
            [-1.5, chin + 0.75],
            [-1.32, chin],
        ]
        shadow = 0.95 + 0.40 / (1 + np.exp(-(y - chin - 0.12) / 0.08))
        lay(area(smooth_curve(np.array(drape), closed=True), 1.0), hair * shadow[..., None])
    layer = np.dstack([np.clip(picture, 0, 255) * cover[..., None], 255 * cover])
    return np.clip(layer, 0, 255).astype(np.uint8)
