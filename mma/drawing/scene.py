"""Where a clip is shot: background, light, camera; and what the camera does to the finished picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.drawing import canvas
from mma.drawing.canvas import F32, texture

_NOISE_QUANTILES = 256


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip's place, light and camera. Drawn by `sample_scene`."""

    width_px: int
    """Width of the picture."""
    height_px: int
    """Height of the picture."""
    contrast: float
    """Factor on the picture's contrast; under 1 for a planted gap (CORPUS.md)."""
    eyes_x_px: float
    """Where the point between the eyes lies at rest."""
    eyes_y_px: float
    """Where the point between the eyes lies at rest."""
    unit_px: float
    """Distance between the eyes of a face seen from the front."""
    light: tuple[float, float, float]
    """Direction to the light, of length 1: right, down, towards the camera."""
    ambient: float
    """Share of the light that comes from everywhere."""
    dapple: float
    """Depth of the soft shadows that lie across the scene, as a share of the light."""
    exposure: float
    """Factor on all brightness."""
    warmth: float
    """Colour temperature: -1 blue to 1 yellow."""
    drift_px: float
    """Amplitude of the camera's drift."""
    drift_period_s: float
    """Period of the camera's drift."""
    drift_phase: float
    """Phase of the camera's drift, in radians."""
    blur_px: float
    """Deviation of the lens blur."""
    noise: float
    """Deviation of the sensor's noise, in grey levels."""
    yaw_deg: float
    """How the subject sits to the camera, added to every frame's yaw."""
    pitch_deg: float
    """Likewise, added to every frame's pitch."""
    roll_deg: float
    """Likewise, added to every frame's roll."""
    background_seed: int
    """Seeds the background."""

    def __post_init__(self) -> None:
        if self.width_px < 64 or self.height_px < 64:
            raise ValueError(f"a scene of {self.width_px} x {self.height_px} px is too small: give at least 64 x 64")
        if not 0 < self.contrast <= 1:
            raise ValueError(f"contrast is {self.contrast}: give a value above 0 and at most 1")


def sample_scene(
    rng: np.random.Generator, *, width_px: int = 320, height_px: int = 240, contrast: float = 1.0
) -> Scene:
    """One clip's place and camera at random; sizes follow the picture's shorter side."""
    side = min(width_px, height_px)
    unit = side * float(rng.uniform(0.155, 0.225))
    azimuth, elevation = rng.uniform(-1.0, 1.0), rng.uniform(-0.3, 1.0)
    light = np.array([np.sin(azimuth) * np.cos(elevation), -np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    light[2] = max(light[2], 0.25)
    light /= np.linalg.norm(light)
    free_x, free_y = max(width_px - 3.6 * unit, 0) / 2, max(height_px - 4.15 * unit, 0) / 2
    return Scene(
        width_px=width_px,
        height_px=height_px,
        contrast=contrast,
        eyes_x_px=float(width_px / 2 + free_x * rng.uniform(-0.8, 0.8)),
        eyes_y_px=float(2.10 * unit + free_y * (1 + rng.uniform(-0.8, 0.8))),
        unit_px=unit,
        light=(float(light[0]), float(light[1]), float(light[2])),
        ambient=float(rng.uniform(0.30, 0.70)),
        dapple=float(rng.uniform(0.0, 0.05)),
        exposure=float(rng.uniform(0.82, 1.10)),
        warmth=float(np.clip(rng.normal(0, 0.45), -1, 1)),
        drift_px=float(side * rng.uniform(0.0, 0.006)),
        drift_period_s=float(rng.uniform(4, 10)),
        drift_phase=float(rng.uniform(0, 2 * np.pi)),
        blur_px=float(rng.uniform(0.3, 0.75) * side / 240),
        noise=float(rng.uniform(1.0, 4.0)),
        yaw_deg=float(np.clip(rng.normal(0, 4.5), -7, 7)),
        pitch_deg=float(np.clip(rng.normal(0, 3.5), -5, 5)),
        roll_deg=float(np.clip(rng.normal(0, 3.0), -5, 5)),
        background_seed=int(rng.integers(2**31)),
    )


def drift(scene: Scene, time_s: float) -> tuple[float, float]:
    """The camera's displacement (x, y) in px at a time."""
    angle = 2 * np.pi * time_s / scene.drift_period_s + scene.drift_phase
    return float(scene.drift_px * np.sin(angle)), float(0.7 * scene.drift_px * np.sin(1.37 * angle + 1.0))


@lru_cache(maxsize=4)
def _background(scene: Scene) -> NDArray[np.uint8]:
    """A wall with light falling off, out-of-focus furniture; (H + margins, W + margins, 3)."""
    rng = np.random.default_rng(scene.background_seed)
    margin = _margin(scene)
    height, width = scene.height_px + 2 * margin, scene.width_px + 2 * margin
    small = (max(height // 4, 8), max(width // 4, 8))
    x, y = np.meshgrid(np.linspace(-1, 1, small[1]), np.linspace(-1, 1, small[0]))
    wall = rng.uniform(45, 205) * (1 + 0.07 * rng.standard_normal(3))
    slope = 1 + 0.22 * rng.uniform(-1, 1) * x + 0.18 * rng.uniform(-1, 1) * y
    room = (wall[None, None] * slope[..., None]).astype(np.float32)
    for _ in range(int(rng.integers(0, 6))):
        colour = np.clip(rng.uniform(20, 225) * (1 + 0.13 * rng.standard_normal(3)), 0, 255)
        w, h = int(rng.uniform(0.08, 0.4) * small[1]), int(rng.uniform(0.1, 0.7) * small[0])
        left, top = int(rng.integers(-w // 2, small[1])), int(rng.integers(-h // 2, small[0]))
        if rng.uniform() < 0.7:
            cv2.rectangle(room, (left, top), (left + w, top + h), colour.tolist(), -1)
        else:
            cv2.ellipse(room, (left, top), (w // 2, h // 2), 0, 0, 360, colour.tolist(), -1, cv2.LINE_AA)
    room = cv2.GaussianBlur(room, (0, 0), float(rng.uniform(0.6, 4.0)))  # type: ignore[assignment]
    room = cv2.resize(room, (width, height), interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
    room += rng.uniform(0, 5) * texture(rng, (height, width), (1.2, 1.2))[..., None]
    return np.clip(room * light_colour(scene) * scene.exposure, 0, 255).astype(np.uint8)


def _margin(scene: Scene) -> int:
    return int(np.ceil(scene.drift_px)) + 2


def light_colour(scene: Scene) -> F32:
    """What the light does to red, green and blue."""
    return np.array([1 + 0.10 * scene.warmth, 1 + 0.01 * scene.warmth, 1 - 0.13 * scene.warmth], np.float32)


@lru_cache(maxsize=4)
def soft_shadows(scene: Scene) -> F32:
    """Factor (H, W) on the light that falls on the face's canvas: shadows of what stands around."""
    rng = np.random.default_rng(scene.background_seed + 1)
    width_px = float(rng.uniform(8, 20))
    field = texture(rng, (canvas.HEIGHT_PX, canvas.WIDTH_PX), (width_px, width_px * float(rng.uniform(0.6, 1.6))))
    return np.asarray(np.clip(1 + scene.dapple * field, 0.6, 1.3), np.float32)


def background(scene: Scene, time_s: float) -> NDArray[np.uint8]:
    """The scene without a person, before the camera's blur and noise; uint8 (H, W, 3), the caller's own copy."""
    room, margin = _background(scene), _margin(scene)
    dx, dy = drift(scene, time_s)
    shift = np.array([[1, 0, dx - margin], [0, 1, dy - margin]], np.float32)
    return cv2.warpAffine(room, shift, (scene.width_px, scene.height_px), flags=cv2.INTER_LINEAR)  # type: ignore[return-value]


@lru_cache(maxsize=8)
def _noise_levels(deviation: float) -> NDArray[np.int16]:
    """Normal quantiles: a table from a random byte to a whole grey level."""
    from statistics import NormalDist

    levels = [deviation * NormalDist().inv_cdf((k + 0.5) / _NOISE_QUANTILES) for k in range(_NOISE_QUANTILES)]
    return np.round(levels).astype(np.int16)


def expose(scene: Scene, picture: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """What the camera makes of the picture: lens blur, contrast, the sensor's noise under `seed`."""
    picture = cv2.GaussianBlur(picture, (5, 5), scene.blur_px)  # type: ignore[assignment]
    if scene.contrast < 1:
        curve = 112 + scene.contrast * (np.arange(256) - 112.0)
        picture = cv2.LUT(picture, np.round(curve).astype(np.uint8))  # type: ignore[assignment]
    random_bytes = np.frombuffer(np.random.default_rng(seed).bytes(picture.size), np.uint8).reshape(picture.shape)
    levels = _noise_levels(scene.noise)
    up, down = np.maximum(levels, 0).astype(np.uint8), np.maximum(-levels, 0).astype(np.uint8)
    return cv2.subtract(cv2.add(picture, cv2.LUT(random_bytes, up)), cv2.LUT(random_bytes, down))  # type: ignore[return-value]
