"""What a drawn face promises: every action unit shows, in its place and within its budget; equal seeds, equal pictures."""

from __future__ import annotations

import re
from dataclasses import replace

import av
import cv2
import numpy as np
import pytest

from mma.drawing import (
    CONTROLS,
    Identity,
    Scene,
    draw_empty_frame,
    draw_frame,
    landmarks,
    sample_identity,
    sample_scene,
)
from mma.drawing import motion as m
from mma.drawing.clip import write_clip
from mma.drawing.head import brow_line
from mma.drawing.sheet import EXPRESSIONS, contact_sheet

UPPER = ("brow", "lid")


def facing(seed: int) -> Scene:
    """A quiet scene seen from the front."""
    scene = sample_scene(np.random.default_rng(seed))
    return replace(scene, yaw_deg=0.0, pitch_deg=0.0, roll_deg=0.0, drift_px=0.0, noise=0.01)


def plain(seed: int) -> Identity:
    """A subject on whom nothing hides the skin."""
    identity = sample_identity(np.random.default_rng(seed))
    return replace(identity, glasses="none", beard="none", hair_style="short", hairline_y=-1.05)


def moved_units(identity: Identity, scene: Scene, state: dict[str, float]) -> dict[str, float]:
    rest, now = landmarks(identity, scene, {}), landmarks(identity, scene, state)
    return {name: float(np.linalg.norm(now[name] - rest[name]) / scene.unit_px) for name in rest}


def states(rng: np.random.Generator, count: int) -> list[dict[str, float]]:
    drawn: list[dict[str, float]] = [{au: 1.0} for au in m.AUS] + [dict(each) for each in EXPRESSIONS.values()]
    for _ in range(count):
        drawn.append({au: float(rng.uniform()) for au in rng.choice(m.AUS, 6, replace=False)})
    return [*drawn, dict.fromkeys(m.AUS, 1.0)]


def test_no_landmark_moves_further_than_the_displacement_budget() -> None:
    rng = np.random.default_rng(0)
    for seed in range(6):
        identity, scene = sample_identity(rng), facing(seed)
        for state in states(rng, 20):
            for name, distance in moved_units(identity, scene, state).items():
                limit = 0.10 if name.startswith(UPPER) else 0.20
                assert distance <= limit, (name, state, distance)


def test_resting_faces_differ_by_a_third_of_what_action_units_move() -> None:
    rng = np.random.default_rng(1)
    people = [sample_identity(rng) for _ in range(150)]

    def shape(identity: Identity, **aus: float) -> dict[str, float]:
        v = m.complete(aus)
        eye, mouth = m.eye_shape(identity, v, 1), m.mouth_shape(identity, v)
        brow = m.moved(m.skin_field(identity, v), brow_line(identity, 1))
        middle = len(mouth.upper_outer) // 2
        return {
            "brow height": float(brow[4, 1]),
            "corner height": float(mouth.upper_inner[-1, 1] - identity.mouth_y),
            "lid opening": eye.opening,
            "upper lip": float(mouth.upper_inner[middle, 1] - mouth.upper_outer[middle, 1]),
            "lower lip": float(mouth.lower_outer[middle, 1] - mouth.lower_inner[middle, 1]),
        }

    rest = [shape(each) for each in people]
    full = {
        "brow height": ("AU01", "AU02", "AU04"),
        "corner height": ("AU12", "AU15"),
        "lid opening": ("AU05", "AU07"),
        "upper lip": ("AU23", "AU24"),
        "lower lip": ("AU23", "AU24"),
    }
    for name, aus in full.items():
        sd = np.std([each[name] for each in rest])
        for au in aus:
            move = np.mean(
                [abs(shape(p, **{au: 1.0})[name] - r[name]) for p, r in zip(people[:40], rest, strict=False)]
            )
            assert sd >= move / 3, f"{name}: {sd:.4f} at rest, {au} moves {move:.4f}"


REGIONS = {
    # In units of the distance between the eyes: x from the middle, y down from the eyes' line.
    "AU01": (0.0, -0.55), "AU02": (0.75, -0.55), "AU04": (0.1, -0.32), "AU05": (0.5, -0.05), "AU06": (0.65, 0.35),
    "AU07": (0.5, 0.08), "AU09": (0.1, 0.3), "AU10": (0.25, 0.92), "AU12": (0.5, 1.05), "AU14": (0.5, 1.14),
    "AU15": (0.45, 1.25), "AU17": (0.1, 1.5), "AU20": (0.5, 1.15), "AU23": (0.2, 1.15), "AU24": (0.1, 1.15),
    "AU25": (0.0, 1.17), "AU26": (0.1, 1.4),
}  # fmt: skip


@pytest.mark.parametrize("au", m.AUS)
def test_an_action_unit_changes_its_own_region_and_nothing_far_from_it(au: str) -> None:
    for seed in (3, 8):
        identity, scene = plain(seed), facing(seed)
        rest = draw_frame(identity, scene, {}).astype(np.float32)
        change = np.abs(draw_frame(identity, scene, {au: 1.0}).astype(np.float32) - rest).mean(-1)
        y, x = np.mgrid[: scene.height_px, : scene.width_px]
        # A head seen from the front is symmetrical about the point between the eyes.
        across = np.abs(x - scene.eyes_x_px) / scene.unit_px
        down = (y - scene.eyes_y_px) / scene.unit_px
        centre = REGIONS[au]
        distance = np.hypot(across - centre[0], down - centre[1])
        near, far = change[distance < 0.35], change[distance > 1.25]
        assert near.mean() > 1.2, f"{au} does not show: {near.mean():.2f} grey levels"
        assert far.mean() < 0.1 * near.mean(), f"{au} shows far away: {far.mean():.2f} against {near.mean():.2f}"


def test_equal_seeds_give_equal_frames_and_other_seeds_other_noise() -> None:
    def frame(seed: int, noise: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return draw_frame(
            sample_identity(rng), sample_scene(rng), {"AU12": 0.7, "yaw_deg": 6.0}, time_s=1.5, seed=noise
        )

    first = frame(4, 0)
    assert first.dtype == np.uint8
    assert first.shape == (240, 320, 3)
    np.testing.assert_array_equal(first, frame(4, 0))
    noise = first.astype(int) - frame(4, 1)
    assert 0.5 < noise.std() < 8
    assert np.abs(first.astype(int) - frame(5, 0)).mean() > 10


def test_only_noise_and_drift_tell_frames_of_one_state_apart() -> None:
    rng = np.random.default_rng(2)
    identity, scene = sample_identity(rng), sample_scene(rng)
    five = [np.array(list(landmarks(identity, scene, {}, time_s=t).values())[:5]) for t in (0.0, 2.0)]
    assert np.linalg.norm(five[0] - five[1], axis=1).max() <= 2 * 1.3 * scene.drift_px
    a, b = (draw_empty_frame(replace(scene, drift_px=0.0), time_s=t, seed=0) for t in (0.0, 2.0))
    np.testing.assert_array_equal(a, b)


def test_the_five_alignment_points_lie_on_the_drawn_features() -> None:
    scene = facing(5)
    identity = replace(plain(5), skin=(210.0, 170.0, 150.0), tone=0.2, freckles=0.0, make_up=0.0)
    points = landmarks(identity, scene, {})
    assert list(points)[:5] == ["eye_left", "eye_right", "nose_tip", "mouth_left", "mouth_right"]
    # Closing the eyes changes the picture around each eye point, opening the mouth between the mouth points.
    rest = draw_frame(identity, scene, {}).astype(np.float32)
    y, x = np.mgrid[: scene.height_px, : scene.width_px]
    mouth = (points["mouth_left"] + points["mouth_right"]) / 2
    for state, expected, tolerance in (
        ({"AU45": 1.0}, points["eye_left"], 0.10),
        ({"AU45": 1.0}, points["eye_right"], 0.10),
        ({"AU25": 1.0}, mouth, 0.16),  # the lower lip moves more than the upper one
    ):
        change = np.abs(draw_frame(identity, scene, state).astype(np.float32) - rest).mean(-1)
        change = change * (np.hypot(x - expected[0], y - expected[1]) < 0.45 * scene.unit_px)
        found = np.array([(x * change).sum(), (y * change).sum()]) / change.sum()
        assert np.abs(found - expected).max() < tolerance * scene.unit_px


def test_an_unknown_control_is_refused_by_name() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="AU99"):
        draw_frame(sample_identity(rng), sample_scene(rng), {"AU99": 1.0})
    assert set(CONTROLS) >= {*m.AUS, "AU45", "speech", "gaze_x", "gaze_y", "yaw_deg", "pitch_deg", "roll_deg"}


def test_speech_draws_nothing_beyond_the_action_units_that_it_moves() -> None:
    rng = np.random.default_rng(0)
    identity, scene = sample_identity(rng), sample_scene(rng)
    silent, speaking = (draw_frame(identity, scene, {"AU25": 0.5, "AU26": 0.3, "speech": s}) for s in (0.0, 1.0))
    np.testing.assert_array_equal(silent, speaking)


def test_less_contrast_and_a_given_tone_are_kept() -> None:
    identity = sample_identity(np.random.default_rng(6), skin_tone=0.9)
    assert identity.tone == 0.9
    scenes = [sample_scene(np.random.default_rng(6), contrast=c) for c in (1.0, 0.6)]
    full, flat = (draw_frame(identity, scene, {}).astype(float) for scene in scenes)
    assert flat.std() < 0.75 * full.std()
    big = sample_scene(np.random.default_rng(6), width_px=640, height_px=360)
    assert draw_frame(identity, big, {}).shape == (360, 640, 3)


def test_a_sheet_shows_all_people_and_states() -> None:
    people = [(plain(1), facing(1)), (plain(2), facing(2))]
    sheet = contact_sheet(people, list(EXPRESSIONS.items())[:3])
    assert sheet.shape == (20 + 2 * 196, 3 * 160, 3)


def test_a_clip_holds_the_frames_and_no_truth(tmp_path) -> None:
    rng = np.random.default_rng(3)
    identity, scene = sample_identity(rng), sample_scene(rng)

    def write(name: str, strength: float, noise: int) -> bytes:
        frames = [draw_frame(identity, scene, {"AU12": strength}, time_s=k / 12, seed=noise + k) for k in range(6)]
        write_clip(tmp_path / name, iter(frames), fps=12)
        return (tmp_path / name).read_bytes()

    def settings(data: bytes) -> bytes:
        found = re.search(rb"x264 - core[ -~]+", data)
        assert found, "the encoder's settings stand in the stream"
        return found[0]

    smile = write("a.mp4", 1.0, 0)
    assert smile == write("b.mp4", 1.0, 0)
    other = write("c.mp4", 1.0, 100)
    assert other != smile
    assert settings(smile) == settings(write("d.mp4", 0.0, 0)) == settings(other)
    with av.open(str(tmp_path / "a.mp4")) as clip:
        stream = clip.streams.video[0]
        assert (stream.width, stream.height, float(stream.average_rate)) == (320, 240, 12.0)
        assert set(clip.metadata) <= {"major_brand", "minor_version", "compatible_brands"}
        shown = [frame.to_ndarray(format="rgb24") for frame in clip.decode(stream)]
    assert len(shown) == 6
    first = draw_frame(identity, scene, {"AU12": 1.0}, seed=0)
    assert cv2.PSNR(shown[0], first) > 28
    with pytest.raises(ValueError, match="at least one frame"):
        write_clip(tmp_path / "e.mp4", [], fps=12)
