"""What grows on a head or is worn on it: hair or scarf, beard, glasses; and the head's outline, which they follow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mma.drawing import canvas
from mma.drawing.canvas import F32, bump, filled, smooth_curve, stroked, texture, to_px
from mma.drawing.identity import Identity

_SHAPE = (canvas.HEIGHT_PX, canvas.WIDTH_PX)


def outline(identity: Identity, grow: float = 0.0) -> NDArray[np.float64]:
    """The head's outline (N, 2), closed, `grow` units wider."""
    wide, jaw, chin = identity.face_width, identity.jaw_width, identity.chin_y
    half = np.array(
        [
            [0.0, -1.74],
            [0.52 * wide, -1.64],
            [0.92 * wide, -1.28],
            [1.12 * wide, -0.72],
            [1.16 * wide, -0.15],
            [1.12 * wide, 0.40],
            [1.02 * (wide + jaw) / 2, 0.88],
            [0.84 * jaw, 0.70 * chin],
            [0.56 * jaw, 0.895 * chin],
            [0.28 * jaw, 0.985 * chin],
            [0.0, chin],
        ]
    )
    points = np.vstack([half, half[-2:0:-1] * [-1, 1]])
    if grow:
        centre = np.array([0.0, -0.2])
        direction = points - centre
        points = points + grow * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return smooth_curve(points, closed=True)


def _hairline(identity: Identity, x: F32) -> F32:
    receding = (
        0.16 * identity.age * np.exp(-(((np.abs(x) - 0.5) / 0.2) ** 2)) if identity.hair_style == "short" else 0.0
    )
    line = identity.hairline_y + 1.20 * (np.abs(x) / (1.08 * identity.face_width)) ** 4.5 - receding
    if identity.hair_style == "fringe":
        line = np.maximum(line, identity.brow_y - 0.17 + 0.9 * (np.abs(x) / 1.1) ** 6 - 0.08 * np.cos(7 * x))
    return np.asarray(line, np.float32)


def draw_hair(identity: Identity, rng: np.random.Generator) -> tuple[F32, F32]:
    """Colour (H, W, 3) and cover (H, W) of hair or scarf."""
    x, y = canvas.grid()
    style, volume = identity.hair_style, identity.hair_volume
    colour = np.array(identity.hair, np.float32)
    if style == "bald":
        return np.ones((*_SHAPE, 3), np.float32) * colour, np.zeros(_SHAPE, np.float32)
    grow = {"scarf": 0.10, "bun": 0.07, "curly": volume + 0.10}.get(style, volume)
    shape = filled(_SHAPE, to_px(outline(identity, grow)))
    ragged = {"scarf": 0.0, "curly": 0.045}.get(style, 0.022) * texture(rng, _SHAPE, (2.0, 3.0))
    line = _hairline(identity, x) + ragged
    cover = shape / (1 + np.exp(np.clip((y - line) / (0.012 if style == "scarf" else 0.03), -30, 30)))
    if style in ("short", "fringe", "bun", "curly"):
        # Sideburns end before the ears' middle.
        end = 0.35 if style == "curly" and volume > 0.18 else 0.02
        cover = cover / (1 + np.exp(np.clip((y - end + 2 * ragged) / 0.035, -30, 30)))
    if style in ("long", "scarf"):
        # Curtains beside the cheeks.
        inner = 1.03 * identity.face_width - 0.05 * np.clip(y, 0, 2) + ragged
        beside = 1 / (1 + np.exp(np.clip((inner - np.abs(x)) / 0.02, -30, 30)))
        # From the temples down, to where the hair behind takes over.
        curtain = beside / (
            1 + np.exp(np.clip((-0.75 - y) / 0.06, -30, 30)) + np.exp(np.clip((y - 1.7) / 0.08, -30, 30))
        )
        reach = outline(identity, grow)
        low = np.array([[1.02, -0.9], [1.17, -0.2], [1.28, 0.6], [1.36, 1.3], [1.26, 2.3]])
        low = smooth_curve(np.vstack([low, low[::-1] * [-1, 1]]) * [identity.face_width + 0.3 * volume, 1], closed=True)
        cover = np.maximum(cover, curtain * np.maximum(filled(_SHAPE, to_px(reach)), filled(_SHAPE, to_px(low))))
    if style == "scarf":
        grain = 0.05 * texture(rng, _SHAPE, (9, 3)) + 0.05 * np.sin(9 * x + 5 * y)
    elif style == "curly":
        grain = 0.22 * texture(rng, _SHAPE, (1.6, 1.6))
    else:
        grain = 0.16 * texture(rng, _SHAPE, (0.8, 7.0)) + 0.06 * texture(rng, _SHAPE, (5, 9))
    return colour * (1 + grain)[..., None], cover.astype(np.float32)


def draw_beard(identity: Identity, rng: np.random.Generator) -> F32:
    """Cover (H, W) of the beard."""
    x, y = canvas.grid()
    mouth = identity.mouth_y
    cheek_line = 0.58 + 0.52 * np.clip(1 - np.abs(x) / 1.0, 0, 1) ** 0.6
    full = 1 / (1 + np.exp(np.clip((cheek_line - y) / 0.07, -30, 30)))
    bare = bump(x, y, (0.0, identity.nose_y + 0.05), (0.24, 0.10))
    lip = np.exp(-(((y - (mouth - 0.19)) / 0.055) ** 4)) * np.exp(-((x / 0.40) ** 6))
    hairs = np.clip(0.85 + 0.24 * texture(rng, _SHAPE, (0.7, 1.3)), 0.2, 1.2)
    if identity.beard == "full":
        return np.asarray(np.clip(np.maximum(full * (1 - 0.9 * bare), 0.9 * lip) * 0.58 * hairs, 0, 0.95), np.float32)
    if identity.beard == "stubble":
        return np.asarray(np.clip(full * (1 - bare) * 0.26 * hairs, 0, 1), np.float32)
    if identity.beard == "moustache":
        return np.asarray(np.clip(lip * 0.8 * hairs, 0, 0.9), np.float32)
    return np.zeros(_SHAPE, np.float32)


def draw_glasses(identity: Identity) -> F32 | None:
    """Frame and lenses on the canvas (H, W, 4): colour and cover; None where none are worn."""
    if identity.glasses == "none":
        return None
    layer = np.zeros((*_SHAPE, 4), np.float32)
    layer[..., :3] = np.array(identity.glasses_colour, np.float32)
    cover = np.zeros(_SHAPE, np.float32)
    angle = np.linspace(0, 2 * np.pi, 33)
    # Long hair and scarves cover the temples.
    ends = 0.98 if identity.hair_style in ("long", "scarf") else 1.2 * identity.face_width
    power = 0.95 if identity.glasses == "round" else 0.55
    for side in (-1, 1):
        ring = np.stack(
            [
                np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power * 0.37,
                np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power * 0.27,
            ],
            1,
        )
        ring += [side * 0.51, 0.06]
        lens = filled(_SHAPE, to_px(ring))
        layer[..., :3] += (np.float32(50) - layer[..., :3]) * lens[..., None]
        cover = np.maximum(cover, 0.10 * lens)
        rim = stroked(_SHAPE, to_px(ring), 2, 0.5)
        temple = stroked(_SHAPE, to_px(np.array([[side * 0.88, 0.0], [side * ends, -0.04]])), 2, 0.5)
        for part in (rim, temple):
            layer[..., :3] += (np.array(identity.glasses_colour, np.float32) - layer[..., :3]) * part[..., None]
            cover = np.maximum(cover, part * 0.8)
    bridge = stroked(_SHAPE, to_px(smooth_curve(np.array([[-0.145, 0.03], [0.0, -0.02], [0.145, 0.03]]))), 2, 0.5)
    layer[..., :3] += (np.array(identity.glasses_colour, np.float32) - layer[..., :3]) * bridge[..., None]
    layer[..., 3] = np.maximum(cover, bridge * 0.8)
    return layer
