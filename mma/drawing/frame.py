"""One frame: the pieces put together, lit, posed and photographed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.drawing import canvas, features, folds
from mma.drawing.body import BODY_ORIGIN_PX, BODY_PX_PER_UNIT
from mma.drawing.canvas import F32
from mma.drawing.head import Head, brow_line, coarse_depth, head
from mma.drawing.identity import Identity
from mma.drawing.motion import AUS, complete, eye_shape, mouth_shape, moved, skin_field
from mma.drawing.pose import Pose, body_transform, canvas_map, pose_of, project
from mma.drawing.scene import Scene, background, expose, light_colour, soft_shadows


def draw_frame(
    identity: Identity, scene: Scene, state: Mapping[str, float], *, time_s: float = 0.0, seed: int = 0
) -> NDArray[np.uint8]:
    """Draw one frame of one subject.

    `state` holds any of `motion.CONTROLS`, missing ones are 0; `time_s` moves the camera's drift; `seed` is the
    frame's sensor noise alone. Returns uint8 (scene.height_px, scene.width_px, 3), RGB. ValueError: an unknown control.
    """
    v = complete(state)
    layers = head(identity)
    pose = pose_of(scene, v, time_s)
    picture = background(scene, time_s)
    _lay_body(picture, identity, scene, pose)
    face = _lit_face(identity, layers, scene, pose, v)
    rows, columns, map_x, map_y = canvas_map(pose, coarse_depth(identity), (scene.width_px, scene.height_px))
    turned = cv2.remap(face, map_x, map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    _over(picture[rows, columns], turned)
    return expose(scene, picture, seed)


def draw_empty_frame(scene: Scene, *, time_s: float = 0.0, seed: int = 0) -> NDArray[np.uint8]:
    """The same scene without a person; uint8 (H, W, 3), RGB."""
    return expose(scene, background(scene, time_s), seed)


def landmarks(
    identity: Identity, scene: Scene, state: Mapping[str, float], *, time_s: float = 0.0
) -> dict[str, NDArray[np.float64]]:
    """Named points of a frame, each (2,): x, y in pixels. Left and right are the image's.

    `eye_left`, `eye_right`, `nose_tip`, `mouth_left`, `mouth_right` are the five of PAPER.md, "Face crops", in that
    order; the others follow brows, lids, lips and jaw.
    """
    v = complete(state)
    field = skin_field(identity, v)
    mouth = mouth_shape(identity, v)
    middle = len(mouth.upper_outer) // 2
    points: dict[str, NDArray] = {}
    eyes = {"left": eye_shape(identity, v, -1), "right": eye_shape(identity, v, 1)}
    for name, eye in eyes.items():
        points[f"eye_{name}"] = np.array(eye.centre)
    skin = {"nose_tip": [0.0, identity.nose_y], "chin": [0.0, identity.chin_y - 0.03]}
    for name, side in (("left", -1), ("right", 1)):
        line = brow_line(identity, side)
        for part, index in (("inner", 1), ("middle", 4), ("outer", 7)):
            skin[f"brow_{name}_{part}"] = line[index].tolist()
        skin[f"jaw_{name}"] = [side * 0.80 * identity.jaw_width, 0.70 * identity.chin_y]
        skin[f"cheek_{name}"] = [side * 0.62, 0.62]
    points |= dict(zip(skin, moved(field, np.array(list(skin.values()))), strict=True))
    points["mouth_left"], points["mouth_right"] = mouth.upper_inner[0], mouth.upper_inner[-1]
    for name, eye in eyes.items():
        points[f"lid_{name}_upper"] = eye.upper[len(eye.upper) // 2]
        points[f"lid_{name}_lower"] = eye.lower[len(eye.lower) // 2]
    points["lip_upper_outer"], points["lip_upper_inner"] = mouth.upper_outer[middle], mouth.upper_inner[middle]
    points["lip_lower_inner"], points["lip_lower_outer"] = mouth.lower_inner[middle], mouth.lower_outer[middle]
    order = ("eye_left", "eye_right", "nose_tip", "mouth_left", "mouth_right")
    names = [*order, *(name for name in points if name not in order)]
    placed = project(pose_of(scene, v, time_s), coarse_depth(identity), np.array([points[name] for name in names]))
    return dict(zip(names, placed, strict=True))


def _lit_face(identity: Identity, layers: Head, scene: Scene, pose: Pose, v: Mapping[str, float]) -> NDArray[np.uint8]:
    """The face on its canvas: moved, painted and lit; (H, W, 4) with colour times cover."""
    flat = _moved_skin(identity, layers, v)
    albedo = flat[..., :3].astype(np.float32)
    eyes = [eye_shape(identity, v, side) for side in (-1, 1)]
    for eye in eyes:
        features.draw_eye(albedo, identity, eye)
    features.draw_mouth(albedo, identity, mouth_shape(identity, v), v)
    light = _light_on_head(scene, pose)
    shade, shine = _shading(identity, layers, scene, light, v)
    lit = albedo * (shade[..., None] * (light_colour(scene) * np.float32(_metered(identity, scene))))
    lit += shine[..., None]
    for eye in eyes:
        row, column, strength = features.eye_light(identity, eye, light[0])
        lit[row - 1 : row + 2, column - 1 : column + 2] += np.float32(strength * 190 * scene.exposure)
    if layers.glasses is not None:
        colour = layers.glasses[..., :3] * (shade[..., None] * np.float32(scene.exposure))
        lit += (colour - lit) * layers.glasses[..., 3:]
    cover = flat[..., 3]
    face = np.empty((*cover.shape, 4), np.uint8)
    face[..., :3] = np.clip(lit * (cover.astype(np.float32) * np.float32(1 / 255))[..., None], 0, 255)
    face[..., 3] = cover
    return face


def _moved_skin(identity: Identity, layers: Head, v: Mapping[str, float]) -> NDArray[np.uint8]:
    field = skin_field(identity, v)
    if not field.any():
        return layers.albedo
    fine = canvas.resized(field, canvas.WIDTH_PX, canvas.HEIGHT_PX) * np.float32(-canvas.PX_PER_UNIT)
    fine[..., 0] += np.arange(canvas.WIDTH_PX, dtype=np.float32)[None]
    fine[..., 1] += np.arange(canvas.HEIGHT_PX, dtype=np.float32)[:, None]
    places = fine[..., 0], fine[..., 1]
    taken = cv2.remap(layers.albedo, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(taken, np.uint8)


def _light_on_head(scene: Scene, pose: Pose) -> tuple[float, float, float]:
    """The light's direction as the turned head sees it."""
    x, y, z = scene.light
    x, z = x * np.cos(pose.yaw) - z * np.sin(pose.yaw), x * np.sin(pose.yaw) + z * np.cos(pose.yaw)
    y, z = y * np.cos(pose.pitch) + z * np.sin(pose.pitch), z * np.cos(pose.pitch) - y * np.sin(pose.pitch)
    return float(x), float(y), float(z)


def _shading(
    identity: Identity, layers: Head, scene: Scene, light: tuple[float, float, float], v: Mapping[str, float]
) -> tuple[F32, F32]:
    """Factor on the albedo, and what the skin mirrors in grey levels; both (H, W)."""
    intensities = np.array([v[name] for name in AUS])
    height = folds.relief(identity, intensities)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    lx, ly, lz = np.asarray(light, np.float32)
    # Under even light folds show by the light that their bottoms miss, under side light by their slopes.
    missed = np.float32(0.07) * np.minimum(height, 0)
    relief = missed - (slope_x * lx + slope_y * ly) * np.float32(1 - 0.6 * scene.ambient)
    relief = canvas.resized(relief, canvas.WIDTH_PX, canvas.HEIGHT_PX)
    nx, ny, nz = layers.normals
    facing = nx * lx + ny * ly + nz * lz
    direct = np.clip((facing + np.float32(0.30)) * np.float32(1 / 1.30), 0, None)
    shade = np.float32(scene.ambient) * layers.occlusion + np.float32(1 - scene.ambient) * direct
    shade = np.asarray(cv2.pow(np.maximum(shade, np.float32(0.06)), 0.65), np.float32)
    shade *= np.clip(1 + relief, 0.45, 1.4) * soft_shadows(scene)
    # The mirror direction lies half-way between light and viewer; dark skin shines more.
    mirrored = nx * (lx * np.float32(0.7)) + ny * (ly * np.float32(0.7)) + nz * (np.float32(0.5) * (lz + 1))
    gloss = (26 + 34 * identity.tone) * (1.1 - scene.ambient) * scene.exposure
    shine = np.asarray(cv2.pow(np.clip(mirrored, 0, 1), 16), np.float32) * layers.occlusion * layers.bare
    shine *= np.float32(gloss)
    return shade, shine


def _metered(identity: Identity, scene: Scene) -> float:
    """The exposure of the person: cameras meter on faces, and light dark ones up."""
    return scene.exposure * (1 + 0.28 * identity.tone)


@lru_cache(maxsize=4)
def _lit_body(identity: Identity, scene: Scene) -> NDArray[np.uint8]:
    body = head(identity).body.copy()
    light = np.sqrt(scene.ambient + (1 - scene.ambient) * max(scene.light[2], 0.2))
    body[..., :3] = np.clip(body[..., :3] * (0.95 * light * _metered(identity, scene) * light_colour(scene)), 0, 255)
    return body


def _lay_body(picture: NDArray[np.uint8], identity: Identity, scene: Scene, pose: Pose) -> None:
    transform = body_transform(pose, BODY_PX_PER_UNIT, BODY_ORIGIN_PX)
    size = (scene.width_px, scene.height_px)
    body = cv2.warpAffine(_lit_body(identity, scene), transform, size, flags=cv2.INTER_LINEAR)
    _over(picture, body)


def _over(picture: NDArray[np.uint8], layer: NDArray) -> None:
    """Lay a premultiplied (h, w, 4) uint8 layer over the picture in place."""
    through = cv2.cvtColor(255 - layer[..., 3], cv2.COLOR_GRAY2RGB)
    picture[:] = cv2.add(cv2.multiply(picture, through, scale=1 / 255), np.ascontiguousarray(layer[..., :3]))
