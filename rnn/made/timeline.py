"""Plays a clip: what the drawing needs at each instant, and the frame truth beside it. The inverse of stage 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mma.descriptors import MMA26
from rnn.made.displays import DISPLAYS, SPEECH_AUS
from rnn.made.episodes import Idle, draw_episodes, draw_idle
from rnn.made.plan import Clip

DESCRIPTOR_FPS = 10.0
"""Grid of the true descriptors of `--no-video`, in Hz."""

CONTROLS = (*MMA26.action_units, "AU45", "speech", "gaze_x", "gaze_y", "yaw_deg", "pitch_deg", "roll_deg")
"""Names of what the drawing takes."""

NEUTRAL_BELOW = 0.25
UNKNOWN_WITHIN = 0.1
"""The expression is neutral while no display reaches the first, unknown while two classes lie within the second."""

_SOFT_MAX_POWER = 4
_CLASSES = tuple(name for name in MMA26.expressions if name != "neutral")
_SOFTNESS = 0.07
_BLINK_CLOSING_S, _BLINK_OPENING_S = 0.09, 0.16
_VALENCE = np.array([display.valence for display in DISPLAYS])
_AROUSAL = np.array([display.arousal for display in DISPLAYS])
_RESTING_AROUSAL = -0.1
_DISPLAY_CLASS = np.array([MMA26.expressions.index(display.expression) for display in DISPLAYS])
_SPEECH_WEIGHT = np.array([SPEECH_AUS.get(au, 0.0) for au in MMA26.action_units])


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """A clip on a grid of times."""

    times_s: np.ndarray
    """(T,) float64, seconds."""
    controls: dict[str, np.ndarray]
    """What the drawing takes, by the names of CONTROLS, float32 (T,): AUs, `AU45` (lid closure) and `speech`
    (articulation) in [0, 1], gaze in [-1, 1], head angles in degrees. AUs hold the resting offsets too, and AU25 and
    AU26 what speech moves."""
    truth: dict[str, np.ndarray]
    """Frame truth by column name: `true_` before each of the 26 descriptors, float32 (T,) (AUs are intensities in
    [0, 1], expressions soft probabilities that sum to 1), and `true_expression`, an object array (T,) of class names,
    None where unknown."""


def frame_times(clip: Clip) -> np.ndarray:
    """Time stamps of the drawn clip's frames, float64 (num_frames,), seconds."""
    return np.arange(clip.num_frames) / clip.fps


def play(clip: Clip, times_s: np.ndarray) -> Timeline:
    """The clip at these times, float64 (T,). Decided by the clip alone; a sub-grid of times gives the same."""
    times_s = np.asarray(times_s, dtype=np.float64)
    episodes = draw_episodes(clip)
    idle = draw_idle(clip, episodes)
    levels = episodes.levels(times_s)

    speech = _articulation(idle, times_s)
    powers = np.einsum("et,ea->ta", levels**_SOFT_MAX_POWER, episodes.au_weight**_SOFT_MAX_POWER)
    powers += np.multiply.outer(speech**_SOFT_MAX_POWER, _SPEECH_WEIGHT**_SOFT_MAX_POWER)
    aus = np.minimum(powers ** (1 / _SOFT_MAX_POWER), 1.0)

    strongest = np.zeros((len(MMA26.expressions), len(times_s)))
    np.maximum.at(strongest, _DISPLAY_CLASS[episodes.display], levels)
    strongest = strongest[[MMA26.expressions.index(name) for name in _CLASSES]]
    valence = clip.subject.valence_offset + _VALENCE[episodes.display] @ levels
    arousal = clip.subject.arousal_offset + _RESTING_AROUSAL + _AROUSAL[episodes.display] @ levels

    truth: dict[str, np.ndarray] = {
        "true_valence": valence.clip(-1, 1).astype(np.float32),
        "true_arousal": arousal.clip(-1, 1).astype(np.float32),
    }
    truth |= {f"true_{name}": values for name, values in _probabilities(strongest).items()}
    truth |= {f"true_{au}": aus[:, i].astype(np.float32) for i, au in enumerate(MMA26.action_units)}
    truth["true_expression"] = _expression(strongest)

    drawn = np.minimum((powers + np.array(clip.subject.resting) ** _SOFT_MAX_POWER) ** (1 / _SOFT_MAX_POWER), 1.0)
    controls = {au: drawn[:, i] for i, au in enumerate(MMA26.action_units)}
    controls["AU45"] = _lid_closure(idle, times_s)
    controls["speech"] = speech
    controls |= _head_and_gaze(idle, times_s, episodes.head_deg.T @ levels)
    return Timeline(
        times_s=times_s,
        controls={name: controls[name].astype(np.float32) for name in CONTROLS},
        truth=truth,
    )


def true_descriptors(clip: Clip) -> dict[str, np.ndarray]:
    """The 26 descriptors of MMA26 by name, float32 (T,), and `time_s`, float64 (T,), on a 10 Hz grid, T at least 1."""
    times_s = np.arange(max(int(np.ceil(clip.seconds * DESCRIPTOR_FPS - 1e-9)), 1)) / DESCRIPTOR_FPS
    truth = play(clip, times_s).truth
    return {"time_s": times_s} | {name: truth[f"true_{name}"] for name in MMA26.names}


def _expression(strongest: np.ndarray) -> np.ndarray:
    """Class names, object (T,), from the height of each class's strongest display (6, T); None where unknown."""
    order = np.sort(strongest, axis=0)
    names = np.array(_CLASSES, dtype=object)[strongest.argmax(axis=0)]
    names[order[-1] - order[-2] < UNKNOWN_WITHIN] = None
    names[order[-1] < NEUTRAL_BELOW] = "neutral"
    return names


def _probabilities(strongest: np.ndarray) -> dict[str, np.ndarray]:
    """Soft probabilities of all classes, float32 (T,) each, from the same heights; neutral stands at its bound."""
    scores = np.vstack([np.full(strongest.shape[1], NEUTRAL_BELOW), strongest]) / _SOFTNESS
    weights = np.exp(scores - scores.max(axis=0))
    weights /= weights.sum(axis=0)
    by_name = dict(zip(("neutral", *_CLASSES), weights.astype(np.float32), strict=True))
    return {name: by_name[name] for name in MMA26.expressions}


def _articulation(idle: Idle, times_s: np.ndarray) -> np.ndarray:
    """Articulation in [0, 1], float64 (T,): syllables under an envelope with soft ends."""
    if idle.speech_s is None:
        return np.zeros(len(times_s))
    start, end = idle.speech_s
    inside = (np.minimum(times_s - start, end - times_s) / 0.15).clip(0, 1)
    waves = np.sin(2 * np.pi * times_s[:, None] * idle.syllables[:, 0] + idle.syllables[:, 1])
    return inside * (0.5 + waves @ np.array([0.3, 0.15, 0.1])).clip(0, 1)


def _lid_closure(idle: Idle, times_s: np.ndarray) -> np.ndarray:
    """AU45 in [0, 1], float64 (T,): the lids close fast and open slower."""
    away = times_s[:, None] - idle.blinks_s
    closure = 1 - np.where(away < 0, -away / _BLINK_CLOSING_S, away / _BLINK_OPENING_S)
    return closure.clip(0, 1).max(axis=1, initial=0.0)


def _head_and_gaze(idle: Idle, times_s: np.ndarray, display_deg: np.ndarray) -> dict[str, np.ndarray]:
    """Head angles and gaze, float64 (T,) each: slow drift, looks elsewhere, and (2, T) pitch and roll of displays."""
    amplitude, rate, phase = np.moveaxis(idle.drift, -1, 0)[..., None]
    yaw, pitch, roll, gaze_x, gaze_y = (amplitude * np.sin(2 * np.pi * rate * times_s + phase)).sum(axis=1)
    start, end = idle.turns[:, 0, None], idle.turns[:, 1, None]
    away = (np.minimum(times_s - start, end - times_s) / 0.3).clip(0, 1)
    turned = idle.turns[:, 2:].T @ (0.5 - 0.5 * np.cos(np.pi * away))
    return {
        "gaze_x": (gaze_x + turned[1]).clip(-1, 1),
        "gaze_y": (gaze_y + turned[2]).clip(-1, 1),
        "yaw_deg": (yaw + turned[0]).clip(-15, 15),
        "pitch_deg": (pitch + display_deg[0]).clip(-10, 10),
        "roll_deg": (roll + display_deg[1]).clip(-15, 15),
    }
