"""The parts of a person that do not change within a clip: skin, brows, hair, beard, glasses, neck and clothes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.drawing import canvas
from mma.drawing.canvas import F32, bump, filled, paint, smooth_curve, stroked, texture, to_px
from mma.drawing.identity import Identity

BODY_PX_PER_UNIT = 36.0
BODY_ORIGIN_PX = (190.0, 84.0)
BODY_SIZE_PX = (380, 300)
_SHAPE = (canvas.HEIGHT_PX, canvas.WIDTH_PX)


@dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """One subject's static layers on the canvas."""

    albedo: NDArray[np.uint8]
    """(H, W, 4): colour of skin, brows, hair and beard under white light, and cover."""
    depth: F32
    """(H, W): distance towards the viewer in units, fine enough for light."""
    coarse_depth: F32
    """(H, W): the same, smoothed for turning the head."""
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
    z = 1.25 * np.sqrt(np.clip(1 - (x / wide) ** 2 - ((y + 0.05) / 2.1) ** 2, 0.03, 1))
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
        picture *= 1 - hollow[..., None]
    redness = redness + 0.6 * bump(x, y, (0.0, identity.nose_y), (0.17, 0.12))
    picture *= 1 + redness[..., None] * (warm - 1)
    pores = texture(rng, _SHAPE, (0.8, 0.8)) * (0.010 + 0.010 * identity.age)
    picture *= 1 + pores[..., None]
    for _ in range(int(60 * identity.freckles) + int(rng.integers(0, 5))):
        at = to_px(np.array([[rng.uniform(-0.95, 0.95), rng.uniform(-0.3, 1.3)]]))
        spot = filled(_SHAPE, at + rng.uniform(0.6, 1.6) * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]), 0.7)
        paint(picture, spot * float(rng.uniform(0.2, 0.6)), skin * np.array([0.62, 0.5, 0.45], np.float32))
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
        for _ in range(int(90 * identity.brow_density)):
            place = float(rng.uniform(0, 1)) ** 0.9
            at = np.array([np.interp(place, s, line[:, 0]), np.interp(place, s, line[:, 1])])
            at[1] += np.interp(place, s, half) * rng.uniform(-0.9, 0.9)
            lean = np.deg2rad(80 - 75 * place + rng.normal(0, 10))
            tip = at + rng.uniform(0.04, 0.075) * np.array([side * np.cos(lean), -np.sin(lean) * 0.8])
            paint(picture, stroked(_SHAPE, to_px(np.stack([at, tip])), 1) * 0.55 * identity.brow_density, colour * 0.85)


def _hairline(identity: Identity, x: F32) -> F32:
    receding = 0.16 * identity.age * np.exp(-(((np.abs(x) - 0.5) / 0.2) ** 2)) if identity.hair_style == "short" else 0.0
    line = identity.hairline_y + 1.20 * (np.abs(x) / (1.08 * identity.face_width)) ** 4.5 - receding
    if identity.hair_style == "fringe":
        line = np.maximum(line, identity.brow_y - 0.17 + 0.9 * (np.abs(x) / 1.1) ** 6 - 0.08 * np.cos(7 * x))
    return np.asarray(line, np.float32)


def _hair(identity: Identity, rng: np.random.Generator) -> tuple[F32, F32]:
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
        curtain = 1 / (1 + np.exp(np.clip((inner - np.abs(x)) / 0.02, -30, 30))) * (y > -0.6)
        reach = outline(identity, grow)
        low = np.array([[1.20, -0.2], [1.34, 0.6], [1.38, 1.3], [1.26, 2.3]])
        low = smooth_curve(np.vstack([low, low[::-1] * [-1, 1]]) * [identity.face_width + 0.3 * volume, 1], closed=True)
        cover = np.maximum(cover, curtain * np.maximum(filled(_SHAPE, to_px(reach)), filled(_SHAPE, to_px(low))))
    if style == "scarf":
        grain = 0.05 * texture(rng, _SHAPE, (9, 3)) + 0.05 * np.sin(9 * x + 5 * y)
    elif style == "curly":
        grain = 0.22 * texture(rng, _SHAPE, (1.6, 1.6))
    else:
        grain = 0.16 * texture(rng, _SHAPE, (0.8, 7.0)) + 0.06 * texture(rng, _SHAPE, (5, 9))
    return colour * (1 + grain)[..., None], cover.astype(np.float32)


def _beard(identity: Identity, rng: np.random.Generator) -> F32:
    """Cover (H, W) of the beard."""
    x, y = canvas.grid()
    mouth = identity.mouth_y
    cheek_line = 0.55 + 0.45 * np.clip(1 - np.abs(x) / 1.0, 0, 1) ** 0.8
    full = 1 / (1 + np.exp(np.clip((cheek_line - y) / 0.05, -30, 30)))
    bare = bump(x, y, (0.0, identity.nose_y + 0.05), (0.24, 0.10))
    lip = np.exp(-(((y - (mouth - 0.19)) / 0.055) ** 4)) * np.exp(-((x / 0.40) ** 6))
    hairs = np.clip(0.85 + 0.35 * texture(rng, _SHAPE, (0.7, 1.3)), 0.2, 1.2)
    if identity.beard == "full":
        return np.asarray(np.clip((full * (1 - 0.9 * bare)) * 0.82 * hairs, 0, 0.95), np.float32)
    if identity.beard == "stubble":
        return np.asarray(np.clip(full * (1 - bare) * 0.26 * hairs, 0, 1), np.float32)
    if identity.beard == "moustache":
        return np.asarray(np.clip(lip * 0.8 * hairs, 0, 0.9), np.float32)
    return np.zeros(_SHAPE, np.float32)


def _glasses(identity: Identity) -> F32 | None:
    if identity.glasses == "none":
        return None
    layer = np.zeros((*_SHAPE, 4), np.float32)
    layer[..., :3] = np.array(identity.glasses_colour, np.float32)
    cover = np.zeros(_SHAPE, np.float32)
    angle = np.linspace(0, 2 * np.pi, 33)
    power = 0.95 if identity.glasses == "round" else 0.55
    for side in (-1, 1):
        ring = np.stack([np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power * 0.37, np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power * 0.27], 1)
        ring += [side * 0.51, 0.06]
        lens = filled(_SHAPE, to_px(ring))
        layer[..., :3] += (np.float32(225) - layer[..., :3]) * lens[..., None]
        cover = np.maximum(cover, 0.05 * lens)
        rim = stroked(_SHAPE, to_px(ring), 3, 0.5)
        temple = stroked(_SHAPE, to_px(np.array([[side * 0.88, 0.0], [side * 1.2 * identity.face_width, -0.04]])), 3, 0.5)
        for part in (rim, temple):
            layer[..., :3] += (np.array(identity.glasses_colour, np.float32) - layer[..., :3]) * part[..., None]
            cover = np.maximum(cover, part * 0.92)
    bridge = stroked(_SHAPE, to_px(smooth_curve(np.array([[-0.145, 0.03], [0.0, -0.02], [0.145, 0.03]]))), 3, 0.5)
    layer[..., :3] += (np.array(identity.glasses_colour, np.float32) - layer[..., :3]) * bridge[..., None]
    layer[..., 3] = np.maximum(cover, bridge * 0.92)
    return layer


def _body(identity: Identity, rng: np.random.Generator) -> NDArray[np.uint8]:
    width, height = BODY_SIZE_PX
    x, y = np.meshgrid(
        (np.arange(width, dtype=np.float32) - BODY_ORIGIN_PX[0]) / BODY_PX_PER_UNIT,
        (np.arange(height, dtype=np.float32) - BODY_ORIGIN_PX[1]) / BODY_PX_PER_UNIT,
    )

    def area(points: NDArray, softness: float = 0.6) -> F32:
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
    neck = [[-jaw, 0.8], [jaw, 0.8], [jaw * 0.98, chin + 0.45], [jaw + 0.5, chin + 0.75], [-jaw - 0.5, chin + 0.75], [-jaw * 0.98, chin + 0.45]]
    under = 0.55 + 0.35 / (1 + np.exp(-(y - chin - 0.32) / 0.10))
    round_off = 0.72 + 0.28 * np.sqrt(np.clip(1 - (x / (jaw * 1.15)) ** 2, 0, 1))
    lay(area(neck), skin * (under * round_off)[..., None])
    side = [[0.62, chin + 0.36], [0.95, chin + 0.62], [2.2, chin + 0.95], [2.75, chin + 1.5], [2.95, chin + 4]]
    collar = smooth_curve(np.array([[0.62, chin + 0.36], [0.35, chin + 0.72], [0, chin + 0.84], [-0.35, chin + 0.72], [-0.62, chin + 0.36]]))
    clothes = np.vstack([side, [[-p, q] for p, q in side[::-1]], collar[::-1]])
    fabric = np.array(identity.cloth, np.float32) * (0.9 - 0.05 * np.abs(x) + 0.04 * texture(rng, (height, width), (3, 8)))[..., None]
    lay(area(clothes), fabric)
    if identity.hair_style == "scarf":
        drape = [[-1.2, 0.6], [1.2, 0.6], [1.32, chin], [1.5, chin + 0.75], [0, chin + 1.2], [-1.5, chin + 0.75], [-1.32, chin]]
        shadow = 0.95 + 0.40 / (1 + np.exp(-(y - chin - 0.12) / 0.08))
        lay(area(smooth_curve(np.array(drape), closed=True), 1.0), hair * shadow[..., None])
    layer = np.dstack([np.clip(picture, 0, 255) * cover[..., None], 255 * cover])
    return np.clip(layer, 0, 255).astype(np.uint8)


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
        nostril = bump(x, y, (side * 0.115 * identity.nose_width, identity.nose_y + 0.105), (0.050, 0.022), side * -12.0)
        paint(picture, 0.85 * nostril, np.array(identity.skin, np.float32) * np.array([0.30, 0.22, 0.20], np.float32))
    picture *= 1 - 0.30 * (ears * (1 - face))[..., None]
    _brows(identity, picture, rng)
    beard = _beard(identity, rng)
    paint(picture, beard, np.array(identity.brow_colour, np.float32) * 0.9)
    hair_colour, hair_cover = _hair(identity, rng)
    picture += (hair_colour - picture) * hair_cover[..., None]
    cover = np.maximum(np.maximum(face, ears), hair_cover)
    depth = _depth(identity)
    soft = cv2.GaussianBlur(depth, (0, 0), 1.2)
    dzdx = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=canvas.PX_PER_UNIT / 8)
    dzdy = cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=canvas.PX_PER_UNIT / 8)
    normals = np.stack([-dzdx, -dzdy, np.ones_like(dzdx)])
    normals /= np.linalg.norm(normals, axis=0, keepdims=True)
    hollows = np.clip(cv2.GaussianBlur(depth, (0, 0), 9) - soft, 0, 0.2)
    coarse = cv2.GaussianBlur(np.clip(depth, 0.30, None), (0, 0), 4)
    return Head(
        albedo=np.dstack([np.clip(picture, 0, 255), 255 * cover]).astype(np.uint8),
        depth=depth,
        coarse_depth=coarse.astype(np.float32),
        normals=normals.astype(np.float32),
        occlusion=(1 - 3.2 * hollows).astype(np.float32),
        bare=np.asarray(face * (1 - hair_cover) * (1 - 0.8 * np.clip(beard * 1.2, 0, 1)), np.float32),
        glasses=_glasses(identity),
        body=_body(identity, rng),
    )
