"""One frame: the pieces put together, lit, posed and photographed."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.drawing import canvas, features, folds
from mma.drawing.canvas import F32
from mma.drawing.head import BODY_ORIGIN_PX, BODY_PX_PER_UNIT, Head, brow_line, head
from mma.drawing.identity import Identity
from mma.drawing.motion import AUS, FIELD_STEP, complete, eye_shape, jaw_drop, mouth_shape, moved, skin_field
from mma.drawing.pose import Pose, body_transform, canvas_map, pose_of, project
from mma.drawing.scene import Scene, background, expose, light_colour


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
    _lay_body(picture, layers, scene, pose)
    face = _lit_face(identity, layers, scene, pose, v)
    rows, columns, map_x, map_y = canvas_map(pose, layers.coarse_depth, (scene.width_px, scene.height_px))
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
    placed = project(pose_of(scene, v, time_s), head(identity).coarse_depth, np.array([points[name] for name in names]))
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
    lit = albedo * (shade[..., None] * (light_colour(scene) * np.float32(scene.exposure)))
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
    size = (canvas.WIDTH_PX, canvas.HEIGHT_PX)
    fine = cv2.resize(field, size, interpolation=cv2.INTER_LINEAR) * np.float32(-canvas.PX_PER_UNIT)
    fine[..., 0] += np.arange(canvas.WIDTH_PX, dtype=np.float32)[None]
    fine[..., 1] += np.arange(canvas.HEIGHT_PX, dtype=np.float32)[:, None]
    moved_skin = cv2.remap(layers.albedo, fine, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved_skin  # type: ignore[return-value]


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
    intensities[AUS.index("AU26")] = jaw_drop(v)
    height = folds.relief(identity, intensities)
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=0.125)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=0.125)
    lx, ly, lz = (np.float32(part) for part in light)
    # Folds under even light show by what they keep in the shade, under side light by their slopes.
    relief = -(slope_x * lx + slope_y * ly) * np.float32(1 - 0.6 * scene.ambient) + np.float32(0.10) * np.minimum(height, 0)
    relief = cv2.resize(relief, (canvas.WIDTH_PX, canvas.HEIGHT_PX), interpolation=cv2.INTER_LINEAR)
    nx, ny, nz = layers.normals
    facing = nx * lx + ny * ly + nz * lz
    direct = np.clip((facing + np.float32(0.30)) * np.float32(1 / 1.30), 0, None)
    shade = np.float32(scene.ambient) * layers.occlusion + np.float32(1 - scene.ambient) * direct
    shade = np.power(np.clip(shade, 0.06, None), np.float32(0.65)) * np.clip(1 + relief, 0.45, 1.4)
    mirrored = np.clip(nx * lx * np.float32(0.7) + ny * (ly * np.float32(0.7)) + nz * np.float32(0.5) * (lz + 1), 0, 1)
    shine = mirrored**24 * layers.bare * np.float32(34 * (1 - scene.ambient) * scene.exposure)
    return shade.astype(np.float32), shine.astype(np.float32)


def _lay_body(picture: NDArray[np.uint8], layers: Head, scene: Scene, pose: Pose) -> None:
    transform = body_transform(pose, BODY_PX_PER_UNIT, BODY_ORIGIN_PX)
    size = (scene.width_px, scene.height_px)
    body = cv2.warpAffine(layers.body, transform, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    dim = light_colour(scene) * scene.exposure * np.sqrt(scene.ambient + (1 - scene.ambient) * max(scene.light[2], 0.2))
    body[..., :3] = cv2.multiply(body[..., :3], (*(0.95 * dim).tolist(), 1.0))
    _over(picture, body)


def _over(picture: NDArray[np.uint8], layer: NDArray) -> None:
    """Lay a premultiplied (h, w, 4) uint8 layer over the picture in place."""
    through = cv2.cvtColor(255 - layer[..., 3], cv2.COLOR_GRAY2RGB)
    picture[:] = cv2.add(cv2.multiply(picture, through, scale=1 / 255), np.ascontiguousarray(layer[..., :3]))
