"""Turning the head: where a place on the face's canvas lies in the picture, and back. Weak perspective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.drawing import canvas
from mma.drawing.canvas import F32
from mma.drawing.scene import Scene, drift

PIVOT_Y = 0.6
"""Height of the axis of nodding."""
NECK_Y = 1.9
"""Height of the point about which the head tilts to a side."""
_STEP = 4


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Position of a head in one frame."""

    yaw: float
    """Towards the image's right, in radians."""
    pitch: float
    """Upwards, in radians."""
    roll: float
    """Clockwise in the image, in radians."""
    origin_px: tuple[float, float]
    """Where the point between the eyes would lie, turned to the front."""
    unit_px: float
    """Size of one unit."""


def _within(angle_deg: float, widest_deg: float) -> float:
    """An angle in radians, bent so that no sum of turns leaves the range in which detectors know a frontal face."""
    return float(np.deg2rad(widest_deg * np.tanh(angle_deg / widest_deg)))


def pose_of(scene: Scene, v: Mapping[str, float], time_s: float) -> Pose:
    """The head's position under a state's angles and the scene's own."""
    dx, dy = drift(scene, time_s)
    return Pose(
        yaw=_within(v["yaw_deg"] + scene.yaw_deg, 20.0),
        pitch=_within(v["pitch_deg"] + scene.pitch_deg, 12.0),
        roll=_within(v["roll_deg"] + scene.roll_deg, 13.0),
        origin_px=(scene.eyes_x_px + dx, scene.eyes_y_px + dy),
        unit_px=scene.unit_px,
    )


def _depth_at(depth: F32, x: NDArray, y: NDArray) -> NDArray[np.float64]:
    """Depth at places in units; beyond the canvas its edge goes on."""
    column = x * canvas.PX_PER_UNIT + canvas.ORIGIN_PX[0]
    row = y * canvas.PX_PER_UNIT + canvas.ORIGIN_PX[1]
    shape = x.shape
    found = cv2.remap(
        depth,
        column.reshape(shape[0], -1).astype(np.float32),
        row.reshape(shape[0], -1).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return found.reshape(shape).astype(np.float64)


def project(pose: Pose, depth: F32, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places (N, 2) on the face in units to pixels (N, 2) of the picture."""
    x, y = points[:, 0], points[:, 1]
    z = _depth_at(depth, x[:, None], y[:, None])[:, 0]
    u = x * np.cos(pose.yaw) + z * np.sin(pose.yaw)
    z = z * np.cos(pose.yaw) - x * np.sin(pose.yaw)
    v = (y - PIVOT_Y) * np.cos(pose.pitch) - z * np.sin(pose.pitch) + PIVOT_Y
    # Sitting turned must not push the face out of its place: the shift of a face of mean depth is taken back by half.
    u, v = u - 0.5 * np.sin(pose.yaw), v + 0.5 * np.sin(pose.pitch)
    c, s = np.cos(pose.roll), np.sin(pose.roll)
    v = v - NECK_Y
    return np.stack(
        [
            (u * c - v * s) * pose.unit_px + pose.origin_px[0],
            (u * s + v * c + NECK_Y) * pose.unit_px + pose.origin_px[1],
        ],
        1,
    )


def body_transform(pose: Pose, px_per_unit: float, origin_px: tuple[float, float]) -> NDArray[np.float32]:
    """The affine map (2, 3) that lays the body's plane into the picture: the shoulders follow the head a little."""
    c, s = np.cos(0.25 * pose.roll), np.sin(0.25 * pose.roll)
    k = pose.unit_px / px_per_unit
    anchor = np.array([origin_px[0], origin_px[1] + NECK_Y * px_per_unit])
    target = np.array([pose.origin_px[0], pose.origin_px[1] + NECK_Y * pose.unit_px])
    turned = k * np.array([c * anchor[0] - s * anchor[1], s * anchor[0] + c * anchor[1]])
    return np.column_stack([[k * c, k * s], [-k * s, k * c], target - turned]).astype(np.float32)


def canvas_map(pose: Pose, depth: F32, size_px: tuple[int, int]) -> tuple[slice, slice, F32, F32]:
    """Which canvas pixel each pixel of the picture shows.

    Returns the rows and columns of the picture that the head can reach, and for them the canvas columns and rows.
    """
    radius = 2.75 * pose.unit_px
    width, height = size_px
    left, top = max(int(pose.origin_px[0] - radius), 0), max(int(pose.origin_px[1] - radius), 0)
    right, bottom = min(int(pose.origin_px[0] + radius) + 1, width), min(int(pose.origin_px[1] + radius) + 1, height)
    across, down = -(-(right - left) // _STEP), -(-(bottom - top) // _STEP)
    px, py = np.meshgrid(
        left + (np.arange(across) + 0.5) * _STEP - 0.5 - pose.origin_px[0],
        top + (np.arange(down) + 0.5) * _STEP - 0.5 - pose.origin_px[1],
    )
    px, py = px / pose.unit_px, py / pose.unit_px - NECK_Y
    c, s = np.cos(pose.roll), np.sin(pose.roll)
    u = px * c + py * s + 0.5 * np.sin(pose.yaw)
    v = -px * s + py * c + NECK_Y - 0.5 * np.sin(pose.pitch)
    x, y = u.copy(), v.copy()
    for _ in range(5):
        z = _depth_at(depth, x, y)
        x = (u - z * np.sin(pose.yaw)) / np.cos(pose.yaw)
        z = z * np.cos(pose.yaw) - x * np.sin(pose.yaw)
        y = (v - PIVOT_Y + z * np.sin(pose.pitch)) / np.cos(pose.pitch) + PIVOT_Y
    places = np.stack([x * canvas.PX_PER_UNIT + canvas.ORIGIN_PX[0], y * canvas.PX_PER_UNIT + canvas.ORIGIN_PX[1]], -1)
    fine = canvas.resized(places.astype(np.float32), across * _STEP, down * _STEP)
    fine = fine[: bottom - top, : right - left]
    return slice(top, bottom), slice(left, right), fine[..., 0], fine[..., 1]
