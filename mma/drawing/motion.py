"""What action units move: the skin's displacement field, and the lids' and lips' outlines, after FACS.

Displacements keep CORPUS.md's gate 2: at most a tenth of the distance between the eyes for brows and lids, a fifth
for mouth and jaw, whatever is combined. Only a blink (AU45) may go further: it closes the eye, however wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mma.descriptors import MMA26
from mma.drawing import canvas
from mma.drawing.canvas import F32, bump
from mma.drawing.identity import Identity

AUS = MMA26.action_units
CONTROLS = (*AUS, "AU45", "speech", "gaze_x", "gaze_y", "yaw_deg", "pitch_deg", "roll_deg")
"""Names a frame's state may carry; a missing one is 0. `speech` draws nothing of its own: AU25 and AU26 hold what it
moves."""

FIELD_STEP = 4
"""Canvas pixels a sample of the displacement field."""
UPPER_LIMIT, LOWER_LIMIT = 0.098, 0.196
"""Largest displacement of brows and lids, and of mouth and jaw, in units of the distance between the eyes."""

Points = NDArray[np.float64]


def complete(state: Mapping[str, float]) -> dict[str, float]:
    """All CONTROLS with their values, clipped to their ranges. ValueError: a name that is no control."""
    unknown = set(state) - set(CONTROLS)
    if unknown:
        raise ValueError(f"no such facial control: {', '.join(sorted(unknown))}; known: {', '.join(CONTROLS)}")
    full = {}
    for name in CONTROLS:
        low, high = (-40.0, 40.0) if name.endswith("_deg") else (-1.0 if name.startswith("gaze") else 0.0, 1.0)
        full[name] = min(max(float(state.get(name, 0.0)), low), high)
    return full


def _limited(vectors: Points, limit: float | NDArray) -> Points:
    """Vectors (..., 2) shortened smoothly so that none is longer than `limit`."""
    length = np.linalg.norm(vectors, axis=-1)
    return vectors * (1 + (length / limit) ** 4)[..., None] ** -0.25


# ---- skin ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _skin_modes(identity: Identity) -> F32:
    """The skin's displacement under each action unit at full intensity, (17, 2, h, w) in units, y down."""
    x, y = canvas.grid(FIELD_STEP)
    inner, outer, brow = 0.27, 0.80, identity.brow_y
    mouth, width, chin = identity.mouth_y, identity.mouth_half_width, identity.chin_y
    modes = np.zeros((len(AUS), 2, *x.shape), np.float32)

    def move(au: str, dx: float, dy: float, at: tuple[float, float], sigma: tuple[float, float]) -> None:
        """Both sides move; `dx` counts outwards, `at` is on the image's right."""
        right, left = bump(x, y, at, sigma), bump(x, y, (-at[0], at[1]), sigma)
        modes[AUS.index(au), 0] += np.float32(dx) * (right - left)
        modes[AUS.index(au), 1] += np.float32(dy) * (right + left)

    move("AU01", 0.0, -0.084, (inner, brow - 0.02), (0.19, 0.22))
    move("AU01", 0.0, -0.030, (inner, brow - 0.40), (0.25, 0.20))
    move("AU02", 0.012, -0.088, (outer, brow), (0.23, 0.22))
    move("AU02", 0.0, -0.030, (outer - 0.15, brow - 0.35), (0.25, 0.20))
    move("AU04", -0.050, 0.058, (inner + 0.02, brow), (0.22, 0.16))
    move("AU04", -0.008, 0.045, (0.58, brow), (0.22, 0.16))
    move("AU05", 0.0, -0.012, (0.5, brow), (0.3, 0.12))
    move("AU06", 0.015, -0.070, (0.66, 0.52), (0.26, 0.22))
    move("AU06", -0.018, 0.018, (0.95, brow + 0.08), (0.14, 0.14))
    move("AU07", 0.0, -0.016, (0.5, 0.22), (0.24, 0.10))
    move("AU09", 0.020, -0.054, (0.20, identity.nose_y + 0.05), (0.13, 0.16))
    move("AU09", -0.014, 0.036, (inner, brow + 0.02), (0.20, 0.15))
    move("AU09", 0.0, -0.045, (0.34, 0.52), (0.18, 0.20))
    move("AU10", 0.010, -0.062, (0.40, 0.80), (0.16, 0.16))
    move("AU10", 0.0, -0.022, (0.20, identity.nose_y + 0.08), (0.10, 0.10))
    move("AU12", 0.050, -0.080, (0.60, 0.80), (0.24, 0.24))
    move("AU12", 0.060, -0.050, (width + 0.14, mouth - 0.05), (0.16, 0.16))
    move("AU14", -0.045, -0.010, (width + 0.14, mouth), (0.13, 0.16))
    move("AU15", 0.012, 0.075, (width + 0.06, mouth + 0.10), (0.16, 0.17))
    move("AU17", 0.0, -0.085, (0.10, chin - 0.26), (0.20, 0.17))
    move("AU20", 0.095, 0.020, (width + 0.14, mouth + 0.06), (0.20, 0.20))
    move("AU20", 0.030, 0.030, (0.45, chin - 0.2), (0.25, 0.20))
    move("AU23", -0.040, 0.0, (width + 0.10, mouth), (0.14, 0.14))
    move("AU24", 0.0, 0.022, (0.15, mouth - 0.17), (0.22, 0.08))
    move("AU24", 0.0, -0.030, (0.15, mouth + 0.22), (0.22, 0.08))
    modes[AUS.index("AU25"), 1] += 0.024 * bump(x, y, (0.0, mouth + 0.25), (0.35, 0.15))
    down = 1 / (1 + np.exp(-(y - (mouth + 0.06)) / 0.09))
    modes[AUS.index("AU26"), 1] += np.float32(0.152) * down * np.exp(-0.5 * (x / 1.0) ** 4)
    modes[AUS.index("AU26"), 0] -= np.float32(0.030) * np.tanh(x / 0.3) * bump(x, y, (0.0, mouth + 0.3), (0.9, 0.4))
    return modes


@lru_cache(maxsize=1)
def _limits() -> NDArray[np.float64]:
    y = canvas.grid(FIELD_STEP)[1].astype(np.float64)
    return UPPER_LIMIT + (LOWER_LIMIT - UPPER_LIMIT) / (1 + np.exp(-(y - 0.55) / 0.06))


def skin_field(identity: Identity, v: Mapping[str, float]) -> F32:
    """The skin's displacement (h, w, 2) in units, one sample every FIELD_STEP canvas pixels."""
    weights = np.array([v[name] for name in AUS], np.float32)
    modes = _skin_modes(identity)
    field = canvas.blended(weights, modes).transpose(1, 2, 0)
    return _limited(field.astype(np.float64), _limits()).astype(np.float32)


def moved(field: F32, points: Points) -> Points:
    """Where the skin that rests at `points` (N, 2) lies under `field`."""
    height, width = field.shape[:2]

    def sampled(at: Points) -> Points:
        px = (canvas.to_px(at) + 0.5) / FIELD_STEP - 0.5
        column, row = np.clip(px[:, 0], 0, width - 1.001), np.clip(px[:, 1], 0, height - 1.001)
        c, r = column.astype(int), row.astype(int)
        fc, fr = (column - c)[:, None], (row - r)[:, None]
        top = field[r, c] * (1 - fc) + field[r, c + 1] * fc
        return np.asarray(top * (1 - fr) + (field[r + 1, c] * (1 - fc) + field[r + 1, c + 1] * fc) * fr)

    # The picture is drawn backwards (each place asks where its skin came from), so forwards takes a few rounds.
    at = points
    for _ in range(5):
        at = points + sampled(at)
    return at


# ---- lids ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Eye:
    """One eye's outline; curves (N, 2) run from the image's left to its right."""

    upper: Points
    lower: Points
    centre: tuple[float, float]
    """Midway between the two corners."""
    iris: tuple[float, float]
    opening: float
    """Distance between the lids in the middle."""


def eye_shape(identity: Identity, v: Mapping[str, float], side: int) -> Eye:
    """The eye on the image's left (`side` -1) or right (+1)."""
    half, opening = identity.eye_half_width, identity.lid_opening + side * identity.asymmetry[2]
    up = (0.060 * v["AU05"] - 0.020 * v["AU07"] - 0.014 * v["AU04"] - 0.010 * v["AU09"] - 0.012 * v["AU06"]) * (
        1 - v["AU45"]
    )
    raise_lower = 0.046 * v["AU07"] + 0.034 * v["AU06"] + 0.018 * v["AU09"] + 0.010 * v["AU12"] - 0.008 * v["AU05"]
    top, bottom = 0.63 * opening + up, 0.37 * opening - min(raise_lower, 0.065)
    top = max(top, min(0.042, 0.45 * opening) - bottom)
    shut = v["AU45"]
    meet = -0.55 * 0.37 * opening
    top, bottom = top + (meet - top) * shut, bottom + (-meet - bottom) * shut
    s = np.linspace(-1, 1, 17)
    inward = -side * s
    # The upper lid peaks towards the nose, the lower one away from it.
    upper_profile = (1 - np.abs(s) ** 2.3) * (1 + 0.12 * inward)
    lower_profile = (1 - np.abs(s) ** 2.0) * (1 - 0.14 * inward)
    lower_profile = lower_profile * (1 - 0.25 * v["AU07"]) + 0.25 * v["AU07"] * (1 - np.abs(s) ** 4)
    x = side * 0.5 + half * s
    line = 0.012 + identity.eye_tilt * inward
    gaze = np.array([0.085 * v["gaze_x"], 0.045 * v["gaze_y"]])
    return Eye(
        upper=np.stack([x, line - top * upper_profile], 1),
        lower=np.stack([x, line + bottom * lower_profile], 1),
        centre=(side * 0.5, 0.012),
        iris=(side * (0.497) + float(gaze[0]), -0.018 + float(gaze[1])),
        opening=float(top + bottom),
    )


# ---- lips ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mouth:
    """The lips' four curves, each (N, 2) from the image's left corner to its right one."""

    upper_outer: Points
    upper_inner: Points
    lower_inner: Points
    lower_outer: Points
    gap: float
    """Distance between the lips in the middle."""


def mouth_shape(identity: Identity, v: Mapping[str, float]) -> Mouth:
    """The mouth's outline under the action units; no point leaves its rest by more than LOWER_LIMIT."""
    rest = _mouth_curves(identity, dict.fromkeys(CONTROLS, 0.0))
    now = _mouth_curves(identity, v)
    curves = [r + _limited(n - r, LOWER_LIMIT) for r, n in zip(rest, now, strict=True)]
    middle = len(curves[0]) // 2
    gap = float(curves[2][middle, 1] - curves[1][middle, 1])
    return Mouth(
        upper_outer=curves[0], upper_inner=curves[1], lower_inner=curves[2], lower_outer=curves[3], gap=max(gap, 0.0)
    )


def _mouth_curves(identity: Identity, v: Mapping[str, float]) -> tuple[Points, Points, Points, Points]:
    smile, frown, stretch, dimple = v["AU12"], v["AU15"], v["AU20"], v["AU14"]
    tight, press, chin, lift = v["AU23"], v["AU24"], v["AU17"], v["AU10"]
    shut = 1 - 0.75 * max(tight, press)
    jaw, part = v["AU26"], v["AU25"]
    gap = (0.055 * part + 0.035 * part * smile + 0.142 * jaw * (0.25 + 0.75 * max(part, 0.4 * jaw))) * shut
    rise = 0.022 * part * shut + 0.014 * smile + 0.030 * lift + 0.018 * chin - 0.012 * frown

    half = identity.mouth_half_width + 0.105 * smile + 0.110 * stretch - 0.028 * dimple - 0.055 * tight
    half += -0.020 * press - 0.065 * jaw + 0.006 * frown - 0.02 * chin
    corner = identity.corner_drop - 0.112 * smile + 0.100 * frown + 0.026 * stretch - 0.014 * dimple + 0.045 * jaw
    corner += 0.020 * chin - 0.018 * lift
    t = np.linspace(-1, 1, 25)
    x = half * t
    corners = identity.mouth_y + corner + identity.asymmetry[1] * t
    # How far each place follows the middle rather than the corners.
    hold = 1 - np.abs(t) ** 2.2
    pushed = -0.045 * chin * hold - 0.020 * press * hold
    seam = (
        corners * (1 - hold)
        + (identity.mouth_y + 0.35 * corner + 0.015 * smile) * hold
        + pushed
        + 0.010 * np.exp(-((t / 0.22) ** 2)) * (1 - smile)
    )
    lifted = 0.062 * lift * np.exp(-(((np.abs(t) - 0.45) / 0.36) ** 2)) + 0.018 * lift * hold
    upper_inner = seam - (rise - 0.018 * chin) * hold * (gap > 0 or rise > 0) - 0.35 * lifted
    lower_inner = np.maximum(upper_inner + gap * (1 - np.abs(t) ** 2.6), upper_inner)

    bow = 1 - identity.cupid * np.exp(-((t / 0.13) ** 2))
    thin = (1 - 0.30 * smile) * (1 - 0.20 * stretch) * (1 - 0.38 * tight) * (1 - 0.52 * press) * (1 - 0.12 * v["AU25"])
    upper = identity.upper_lip * thin * np.clip(1 - np.abs(t) ** 1.7, 0, 1) * bow
    full = (1 - 0.18 * smile) * (1 - 0.22 * stretch) * (1 - 0.38 * tight) * (1 - 0.52 * press) * (1 + 0.16 * chin)
    lower = identity.lower_lip * full * np.clip(1 - np.abs(t) ** 2.2, 0, 1) ** 0.85
    return (
        np.stack([x, upper_inner - upper - 0.65 * lifted], 1),
        np.stack([x, upper_inner], 1),
        np.stack([x, lower_inner], 1),
        np.stack([x, lower_inner + lower], 1),
    )
