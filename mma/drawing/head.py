"""The parts of a head that do not change within a clip: skin and brows, with all that is worn; depth and normals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.drawing import canvas
from mma.drawing.body import draw_body
from mma.drawing.canvas import F32, bump, filled, paint, smooth_curve, texture, to_px
from mma.drawing.identity import Identity
from mma.drawing.wear import draw_beard, draw_glasses, draw_hair, outline

_SHAPE = (canvas.HEIGHT_PX, canvas.WIDTH_PX)


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """One subject's static layers on the canvas."""

    albedo: NDArray[np.uint8]
    """(H, W, 4): colour of skin, brows, hair and beard under white light, and cover."""
    normals: F32
    """(3, H, W): surface normals."""
    occlusion: F32
    """(H, W): share of light that hollows let in."""
    bare: F32
    """(H, W): 1 where bare skin shows, 0 under hair: folds and shine are seen there alone."""
    glasses: F32 | None
    """(H, W, 4): colour and cover."""
    body: NDArray[np.uint8]
    """(h, w, 4), on its own plane: neck, clothes, and hair that falls behind; colour times cover, and cover."""


def brow_line(identity: Identity, side: int) -> NDArray[np.float64]:
    """The brow's middle line at rest (9, 2), from its inner to its outer end."""
    s = np.linspace(0, 1, 9)
    x = side * (0.235 + 0.60 * s)
    y = identity.brow_y + side * identity.asymmetry[0] + identity.brow_tilt * (s - 0.5)
    y = y - identity.brow_arch * np.sin(np.pi * np.clip(s, 0, 1) ** 1.25) + 0.055 * s**3
    return np.stack([x, y], 1)


def _depth(identity: Identity) -> F32:
    x, y = canvas.grid()
    wide = 1.25 * identity.face_width
    # An ellipsoid that goes on straight near its rim, so that the skin there keeps turning away from the viewer.
    inside = 1 - (x / wide) ** 2 - ((y + 0.05) / 2.1) ** 2
    z = 1.25 * np.where(inside > 0.12, np.sqrt(np.clip(inside, 0.12, 1)), 0.346 + (inside - 0.12) * 1.443)
    tip = identity.nose_y
    ramp = np.clip((y + 0.12) / (tip + 0.12), 0, 1) ** 1.3
    after = 1 / (1 + np.exp((y - tip - 0.06) / 0.028))
    ridge_width = (0.085 + 0.085 * ramp) * identity.nose_width
    z = z + 0.36 * identity.nose_height * ramp * after * np.exp(-0.5 * (x / ridge_width) ** 2)
    for side in (-1, 1):
        z = z + 0.12 * bump(x, y, (side * 0.19 * identity.nose_width, tip + 0.05), (0.07, 0.06))
        z = z - 0.11 * bump(x, y, (side * 0.46, -0.04), (0.25, 0.15))
        z = z + 0.06 * bump(x, y, (side * 0.50, -0.30), (0.32, 0.10))
        z = z + 0.06 * bump(x, y, (side * 0.70, 0.42), (0.26, 0.22))
        z = z + 0.035 * bump(x, y, (side * 0.5, 0.02), (0.17, 0.10))
    z = z + 0.07 * bump(x, y, (0.0, identity.mouth_y), (0.36, 0.17))
    z = z - 0.045 * bump(x, y, (0.0, identity.mouth_y + 0.245), (0.26, 0.06))
    z = z + 0.08 * bump(x, y, (0.0, identity.chin_y - 0.26), (0.22, 0.14))
    return z.astype(np.float32)


@lru_cache(maxsize=4)
def coarse_depth(identity: Identity) -> F32:
    """Distance of the canvas (H, W) towards the viewer, in units, smoothed for turning the head."""
    return cv2.GaussianBlur(np.clip(_depth(identity), 0.30, None), (0, 0), 4)  # type: ignore[return-value]


def _skin(identity: Identity, rng: np.random.Generator) -> F32:
    """Colour of bare skin (H, W, 3)."""
    x, y = canvas.grid()
    skin = np.array(identity.skin, np.float32)
    picture = np.ones((*_SHAPE, 3), np.float32) * skin
    warm = np.array([1.04, 0.90, 0.88], np.float32)
    redness = 0.18 * texture(rng, _SHAPE, (14, 14)) + 0.08 * texture(rng, _SHAPE, (3, 3)) * (0.6 + identity.age)
    for side in (-1, 1):
        redness = redness + (0.55 + 0.7 * identity.make_up) * bump(x, y, (side * 0.66, 0.58), (0.24, 0.17))
        redness = redness - (0.25 + 0.3 * identity.age) * bump(x, y, (side * 0.46, 0.23), (0.19, 0.08))
        hollow = (0.07 + 0.09 * identity.age) * bump(x, y, (side * 0.42, 0.20), (0.18, 0.06))
        # Sockets are darker than cheeks and nose in every skin; face detectors live on it.
        socket = bump(x, y, (side * 0.47, -0.03), (0.26, 0.13)) - 0.55 * bump(x, y, (side * 0.55, 0.45), (0.30, 0.18))
        picture *= 1 - hollow[..., None] - (0.25 + 0.20 * identity.tone) * socket[..., None]
    bridge = bump(x, y, (0.0, 0.12), (0.07, 0.32))
    picture *= 1 + (0.06 + 0.08 * identity.tone) * bridge[..., None]
    redness = redness + 0.6 * bump(x, y, (0.0, identity.nose_y), (0.17, 0.12))
    picture *= 1 + redness[..., None] * (warm - 1)
    pores = texture(rng, _SHAPE, (0.8, 0.8)) * (0.010 + 0.010 * identity.age)
    picture *= 1 + pores[..., None]
    spots = np.zeros(_SHAPE, np.uint8)
    for _ in range(int(60 * identity.freckles) + int(rng.integers(0, 5))):
        at = (
            np.round(to_px(np.array([[rng.uniform(-0.95, 0.95), rng.uniform(-0.3, 1.3)]]))[0] * 16).astype(int).tolist()
        )
        cv2.circle(spots, at, int(16 * rng.uniform(0.6, 1.4)), int(rng.uniform(60, 170)), -1, cv2.LINE_AA, 4)
    cover = cv2.GaussianBlur(spots, (0, 0), 0.7).astype(np.float32) / np.float32(255)
    paint(picture, cover, skin * np.array([0.62, 0.5, 0.45], np.float32))
    return picture


def _brows(identity: Identity, picture: F32, rng: np.random.Generator) -> None:
    colour = np.array(identity.brow_colour, np.float32)
    for side in (-1, 1):
        line = brow_line(identity, side)
        s = np.linspace(0, 1, len(line))
        half = 0.5 * identity.brow_thickness * (np.clip(1.05 - 0.75 * s**1.6, 0, 1)) * np.clip((s + 0.12) / 0.2, 0, 1)
        edge = np.vstack([line - np.stack([0 * s, half], 1), (line + np.stack([0 * s, half], 1))[::-1]])
        cover = filled(_SHAPE, to_px(smooth_curve(edge, 4, closed=True)), 1.3) * 0.62 * identity.brow_density
        paint(picture, cover, colour)
        hairs = np.zeros(_SHAPE, np.uint8)
        for _ in range(int(90 * identity.brow_density)):
            place = float(rng.uniform(0, 1)) ** 0.9
            at = np.array([np.interp(place, s, line[:, 0]), np.interp(place, s, line[:, 1])])
            at[1] += np.interp(place, s, half) * rng.uniform(-0.9, 0.9)
            lean = np.deg2rad(80 - 75 * place + rng.normal(0, 10))
            tip = at + rng.uniform(0.04, 0.075) * np.array([side * np.cos(lean), -np.sin(lean) * 0.8])
            ends = np.round(to_px(np.stack([at, tip])) * 16).astype(int).tolist()
            cv2.line(hairs, ends[0], ends[1], 255, 1, cv2.LINE_AA, 4)
        paint(picture, hairs.astype(np.float32) * np.float32(0.7 * identity.brow_density / 255), colour * 0.85)


@lru_cache(maxsize=4)
def head(identity: Identity) -> Head:
    """All static layers of a subject; the last few stay in memory (about 4 MB each)."""
    rng = np.random.default_rng(identity.texture_seed)
    x, y = canvas.grid()
    picture = _skin(identity, rng)
    face = filled(_SHAPE, to_px(outline(identity)), 0.6)
    ears = np.zeros(_SHAPE, np.float32)
    for side in (-1, 1):
        angle = np.linspace(0, 2 * np.pi, 25)
        ear = np.stack([side * 1.17 * identity.face_width + 0.12 * np.cos(angle), 0.18 + 0.31 * np.sin(angle)], 1)
        ears = np.maximum(ears, filled(_SHAPE, to_px(ear), 0.8))
        nostril = bump(
            x, y, (side * 0.115 * identity.nose_width, identity.nose_y + 0.105), (0.050, 0.022), side * -12.0
        )
        paint(picture, 0.85 * nostril, np.array(identity.skin, np.float32) * np.array([0.30, 0.22, 0.20], np.float32))
    picture *= 1 - 0.30 * (ears * (1 - face))[..., None]
    _brows(identity, picture, rng)
    beard = draw_beard(identity, rng)
    paint(picture, beard, np.array(identity.brow_colour, np.float32) * 0.9)
    hair_colour, hair_cover = draw_hair(identity, rng)
    picture += (hair_colour - picture) * hair_cover[..., None]
    cover = np.maximum(np.maximum(face, ears), hair_cover)
    depth = _depth(identity)
    soft = cv2.GaussianBlur(depth, (0, 0), 1.2)
    dzdx = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=canvas.PX_PER_UNIT / 8)
    dzdy = cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=canvas.PX_PER_UNIT / 8)
    normals = np.stack([-dzdx, -dzdy, np.ones_like(dzdx)])
    normals = normals / np.linalg.norm(normals, axis=0, keepdims=True)
    hollows = np.clip(cv2.GaussianBlur(depth, (0, 0), 9) - soft, 0, 0.2)
    return Head(
        albedo=np.dstack([np.clip(picture, 0, 255), 255 * cover]).astype(np.uint8),
        normals=normals.astype(np.float32),
        occlusion=(1 - 4.5 * hollows).astype(np.float32),
        bare=np.asarray(face * (1 - hair_cover) * (1 - 0.8 * np.clip(beard * 1.2, 0, 1)), np.float32),
        glasses=draw_glasses(identity),
        body=draw_body(identity, rng),
    )
