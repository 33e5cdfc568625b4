"""Eyes and mouth, drawn anew for every frame: lids, iris and gaze, lips, teeth and what lies behind them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mma.drawing import canvas
from mma.drawing.canvas import F32, filled, paint, stroked, to_px
from mma.drawing.identity import Identity
from mma.drawing.motion import Eye, Mouth

_LASH = np.array([30.0, 22.0, 20.0], np.float32)


def draw_eye(albedo: F32, identity: Identity, eye: Eye) -> None:
    """Paint one eye into the canvas `albedo` (H, W, 3) in place."""
    cx, cy = eye.centre
    rows, columns, origin = canvas.window(cx - 0.36, cy - 0.30, cx + 0.36, cy + 0.22)
    picture = albedo[rows, columns]
    shape = (picture.shape[0], picture.shape[1])
    upper, lower = to_px(eye.upper, origin), to_px(eye.lower, origin)
    skin = np.array(identity.skin, np.float32)

    if identity.lid_crease > 0.03:
        crease = upper - np.stack([np.zeros(len(upper)), _arc(upper) * identity.lid_crease * canvas.PX_PER_UNIT], 1)
        paint(picture, stroked(shape, crease, 2, 0.9) * 0.42, skin * np.float32(0.55))
    if identity.make_up > 0.3:
        lid = np.vstack([upper, (upper - [0, 0.07 * canvas.PX_PER_UNIT])[::-1]])
        paint(picture, filled(shape, lid, 2.0) * 0.35 * identity.make_up, skin * np.array([0.6, 0.5, 0.55], np.float32))

    if eye.opening > 0.012:
        opening = filled(shape, np.vstack([upper, lower[::-1]]), 0.5)
        y_px = np.arange(shape[0], dtype=np.float32)[:, None]
        x_px = np.arange(shape[1], dtype=np.float32)[None]
        under_lid = y_px - np.interp(x_px[0], upper[:, 0], upper[:, 1]).astype(np.float32)[None]
        shade = 0.62 + 0.38 * np.clip(under_lid / (0.065 * canvas.PX_PER_UNIT), 0, 1)
        ball = np.empty((*shape, 3), np.float32)
        ball[:] = np.array([206.0, 198.0, 192.0], np.float32) * np.float32(1 - 0.34 * identity.tone)
        middle = to_px(np.array([eye.iris]), origin)[0]
        distance = np.hypot(x_px - np.float32(middle[0]), y_px - np.float32(middle[1])) / np.float32(canvas.PX_PER_UNIT)
        ball *= 1 - 0.16 * np.clip((distance - 0.11) / 0.14, 0, 1)[..., None]
        radius = 0.098
        ring = np.clip((radius - distance) * canvas.PX_PER_UNIT, 0, 1)
        inner = (
            np.array(identity.iris, np.float32) * (1.12 - 0.72 * np.clip((distance - 0.06) / 0.038, 0, 1))[..., None]
        )
        paint(ball, ring, inner)
        paint(ball, np.clip((0.042 - distance) * canvas.PX_PER_UNIT, 0, 1), np.array([14.0, 12.0, 12.0], np.float32))
        ball *= shade[..., None]
        paint(picture, opening, ball)
    width = 2 if identity.make_up < 0.4 else 3
    lower_lash = 0.30 + 0.25 * identity.make_up
    paint(picture, stroked(shape, lower, 1, 0.6) * lower_lash, skin * np.array([0.45, 0.34, 0.32], np.float32))
    paint(picture, stroked(shape, upper, width, 0.55) * np.float32(0.85), _LASH)


def eye_light(identity: Identity, eye: Eye, light_x: float) -> tuple[int, int, float]:
    """Where on the canvas (row, column) the eye mirrors the light, and how brightly; 0 where a lid covers it."""
    x, y = eye.iris[0] + 0.03 * float(np.sign(light_x) or 1.0), eye.iris[1] - 0.032
    top = float(np.interp(x, eye.upper[:, 0], eye.upper[:, 1]))
    column, row = to_px(np.array([[x, y]]))[0]
    strength = float(np.clip((y - top) / 0.02 + 0.5, 0, 1)) if eye.opening > 0.05 else 0.0
    return int(row), int(column), strength


def _arc(curve: np.ndarray) -> np.ndarray:
    t = np.linspace(-1, 1, len(curve))
    return np.asarray(0.35 + 0.65 * (1 - t**2))


def draw_mouth(albedo: F32, identity: Identity, mouth: Mouth, v: Mapping[str, float]) -> None:
    """Paint the mouth into the canvas `albedo` (H, W, 3) in place."""
    left, right = float(mouth.upper_outer[0, 0]), float(mouth.upper_outer[-1, 0])
    top, bottom = float(mouth.upper_outer[:, 1].min()), float(mouth.lower_outer[:, 1].max())
    rows, columns, origin = canvas.window(left - 0.12, top - 0.10, right + 0.12, bottom + 0.16)
    picture = albedo[rows, columns]
    shape = (picture.shape[0], picture.shape[1])
    uo, ui = to_px(mouth.upper_outer, origin), to_px(mouth.upper_inner, origin)
    li, lo = to_px(mouth.lower_inner, origin), to_px(mouth.lower_outer, origin)
    lips, skin = np.array(identity.lips, np.float32), np.array(identity.skin, np.float32)

    below = lo[6:-6] + [0, 0.055 * canvas.PX_PER_UNIT]
    paint(picture, stroked(shape, below, 4, 2.8) * 0.42, skin * np.array([0.62, 0.54, 0.52], np.float32))
    edge = 0.6 if identity.make_up > 0.4 else 1.1
    upper_lip = filled(shape, np.vstack([uo, ui[::-1]]), edge)
    lower_lip = filled(shape, np.vstack([li, lo[::-1]]), edge)
    paint(picture, upper_lip * 0.92, lips * np.array([0.84, 0.80, 0.80], np.float32))
    height_px = np.arange(shape[0], dtype=np.float32)[:, None]
    x_px = np.arange(shape[1], dtype=np.float32)
    start = np.interp(x_px, li[:, 0], li[:, 1]).astype(np.float32)[None]
    span = np.maximum(np.interp(x_px, lo[:, 0], lo[:, 1]).astype(np.float32)[None] - start, 1.0)
    across = np.clip((height_px - start) / span, 0, 1)
    gloss = 0.90 + 0.26 * np.exp(-(((across - 0.42) / 0.26) ** 2)) - 0.10 * across
    paint(picture, lower_lip * 0.92, lips * gloss[..., None])

    if mouth.gap > 0.010:
        _draw_inside(picture, ui, li, mouth.gap, v, start, height_px)
    seam = (ui + li) / 2 if mouth.gap <= 0.010 else ui
    paint(picture, stroked(shape, seam, 2, 0.7) * 0.78, lips * np.array([0.36, 0.26, 0.26], np.float32))
    for corner in (ui[0], ui[-1]):
        spot = filled(shape, corner + 0.022 * canvas.PX_PER_UNIT * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]), 1.2)
        paint(picture, spot * 0.75, lips * np.array([0.38, 0.28, 0.28], np.float32))


def _draw_inside(
    picture: F32, ui: np.ndarray, li: np.ndarray, gap: float, v: Mapping[str, float], floor_px: F32, height_px: F32
) -> None:
    """Teeth, tongue and the dark between the lips' inner edges."""
    shape = (picture.shape[0], picture.shape[1])
    unit = canvas.PX_PER_UNIT
    inside = filled(shape, np.vstack([ui, li[::-1]]), 0.5)
    x_px = np.arange(shape[1], dtype=np.float32)
    roof = np.interp(x_px, ui[:, 0], ui[:, 1]).astype(np.float32)[None]
    colour = np.empty((*shape, 3), np.float32)
    colour[:] = np.array([52.0, 22.0, 22.0], np.float32)
    middle, half = float((ui[0, 0] + ui[-1, 0]) / 2), float((ui[-1, 0] - ui[0, 0]) / 2)
    across = (x_px - np.float32(middle)) / np.float32(half)
    tongue = np.clip((height_px - (floor_px - 0.07 * unit * (1 - across**2)[None])) / (0.02 * unit), 0, 1)
    tongue = tongue * np.float32(0.75 * np.clip((gap - 0.07) / 0.05, 0, 1))
    paint(colour, tongue, np.array([150.0, 72.0, 74.0], np.float32))
    # The upper teeth hang where they are: the lip, raised by AU10, AU12 and AU25, uncovers them.
    shown = 0.018 + 0.055 * max(v["AU12"], v["AU10"], 0.55 * v["AU20"], 0.45 * v["AU25"])
    arch = np.clip(1 - np.abs(across) ** 3.5, 0, 1)[None]
    reach = np.clip((0.93 - np.abs(across)) * 8, 0, 1)[None]
    teeth = np.clip((roof + shown * unit * (0.45 + 0.55 * arch) - height_px) / 1.2, 0, 1) * reach
    enamel = np.array([226.0, 217.0, 202.0], np.float32) * (0.62 + 0.38 * arch[..., None])
    gaps = 1 - 0.13 * np.exp(-(((across * half / unit / 0.085 + 0.5) % 1.0 - 0.5) ** 2) / 0.006)
    dim = np.clip(0.72 + (height_px - roof) / (0.06 * unit), 0.72, 1)
    paint(colour, teeth, enamel * (gaps[None] * dim)[..., None])
    low = 0.03 * v["AU20"] + 0.02 * v["AU26"] * v["AU12"]
    if low > 0.008:
        reach = np.clip((0.75 - np.abs(across)) * 8, 0, 1)[None]
        row = np.clip((height_px - floor_px + low * unit) / 1.2, 0, 1) * reach
        paint(colour, row, enamel * 0.82)
    paint(picture, inside, canvas.blurred(colour, 0.6))
