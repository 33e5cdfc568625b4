"""From a clip's shown intensities to the events on its time line: displays with onset, apex and offset, and the
movements that mean nothing (polite smiles, speech, swallowing, blinks, gaze, head turns).

Everything is a function of continuous time, so a timeline can be played on any grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mma.descriptors import MMA26
from rnn.made.displays import BROW_FLASH, DISPLAYS, POLITE_SMILE, SWALLOW, Display
from rnn.made.plan import Clip

_POLITE_SHARE, _SPEECH_SHARE, _SWALLOW_SHARE = 0.4, 0.5, 0.2
"""Share of clips with a polite smile, with speech, with a swallow."""

_AGAIN_SHARE = 0.35
"""Probability that a reaction is displayed a second time, at .4 to .9 of its peak."""

_BRIEF = [DISPLAYS.index(display) for display in (SWALLOW, BROW_FLASH)]
_AU_INDEX = {au: i for i, au in enumerate(MMA26.action_units)}
_EDGE_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Episodes:
    """E displays on one time line; times in seconds, all arrays float64."""

    display: np.ndarray
    """(E,) int, index into DISPLAYS."""
    peak: np.ndarray
    """(E,) height of the apex in [0, 1]."""
    times_s: np.ndarray
    """(E, 4): start of the onset, of the apex, of the offset, and the end. The onset may start before the clip."""
    au_weight: np.ndarray
    """(E, 17) share of the peak that each AU of MMA26 reaches."""
    head_deg: np.ndarray
    """(E, 2) pitch and roll at a peak of 1."""

    def levels(self, times_s: np.ndarray) -> np.ndarray:
        """Height of every episode at each time, float64 (E, T): raised cosines up and down, flat at the apex."""
        start, apex, leave, end = (self.times_s[:, i, None] for i in range(4))
        rise = ((times_s - start) / (apex - start)).clip(0, 1)
        fall = ((end - times_s) / (end - leave)).clip(0, 1)
        return self.peak[:, None] * (0.25 * (1 - np.cos(np.pi * rise)) * (1 - np.cos(np.pi * fall)))


@dataclass(frozen=True, kw_only=True)
class Idle:
    """What moves without meaning."""

    blinks_s: np.ndarray
    """(B,) times of the blinks' closings."""
    speech_s: tuple[float, float] | None
    """Start and end of a bout of speech."""
    syllables: np.ndarray
    """(3, 2) rates in Hz and phases of the waves that make up articulation."""
    drift: np.ndarray
    """(5, 3, 3) amplitude, rate in Hz and phase of three slow waves for yaw, pitch, roll (deg), gaze x and gaze y."""
    turns: np.ndarray
    """(K, 5) looks elsewhere: start and end in s, yaw in deg, gaze x and gaze y."""


def _apexes(rng: np.random.Generator, clip: Clip, reactions: np.ndarray, again: np.ndarray) -> np.ndarray:
    """Starts of the apexes of displays of these reactions (E,) int, inside the clip: anywhere, or at the stimulus's
    cue plus the subject's latency; where one is shown `again`, bool (E,), at any of the cues."""
    count = len(reactions)
    edge = min(_EDGE_S, clip.seconds / 4)
    apexes = rng.uniform(0.0, clip.seconds, count)
    if clip.cues_s:
        cue = np.where(again, rng.integers(len(clip.cues_s), size=count), reactions)
        apexes = np.array(clip.cues_s)[cue] + clip.subject.latency_s + rng.normal(0.0, 0.1, count)
    return apexes.clip(edge, clip.seconds - edge)


def draw_episodes(clip: Clip) -> Episodes:
    """The clip's displays. Only what is shown enters; nothing that is felt and hidden can leak."""
    rng = np.random.default_rng([clip.seed, 0])
    seconds = clip.seconds
    displays: list[int] = []
    peaks: list[float] = []
    repeats: list[bool] = []
    for reaction, peak in enumerate(clip.shown):
        times = 1 + int(rng.random() < _AGAIN_SHARE)
        variants = rng.integers(2, size=2)
        again = peak * rng.uniform(0.4, 0.9)
        if peak > 0:
            displays += [2 * reaction + int(variants[i]) for i in range(times)]
            peaks += [peak, again][:times]
            repeats += [False, True][:times]
    apex_start = list(_apexes(rng, clip, np.array(displays, dtype=int) // 2, np.array(repeats, dtype=bool)))
    speech = _speech(clip)
    for display, how_often, span in (
        (POLITE_SMILE, int(rng.random() < _POLITE_SHARE), (0.0, seconds)),
        (SWALLOW, int(rng.random() < _SWALLOW_SHARE), (0.0, seconds)),
        (BROW_FLASH, int(rng.integers(3)) if speech else 0, speech or (0.0, 0.0)),
    ):
        displays += [DISPLAYS.index(display)] * how_often
        peaks += list(rng.uniform(0.35, 0.9, how_often))
        apex_start += list(rng.uniform(*span, how_often))

    count = len(displays)
    onset = rng.uniform(0.2, 0.8, count)
    offset = onset + rng.uniform(0.2, 1.0, count)
    hold = 0.25 * (1.8 / 0.25) ** rng.random(count)
    brief = np.isin(displays, _BRIEF)
    onset[brief], hold[brief], offset[brief] = 0.2, 0.15, 0.3
    start = np.asarray(apex_start, dtype=float)
    times_s = np.column_stack([start - onset, start, start + hold, start + hold + offset])
    jitter = rng.uniform(0.7, 1.1, (count, len(_AU_INDEX)))
    side = np.where(rng.random(count) < 0.5, -1.0, 1.0)
    weight = np.array([_au_weights(DISPLAYS[i], clip.subject.optional_aus) for i in displays])
    return Episodes(
        display=np.array(displays, dtype=int),
        peak=np.array(peaks, dtype=float),
        times_s=times_s,
        au_weight=(weight.reshape(count, len(_AU_INDEX)) * jitter).clip(0, 1),
        head_deg=np.array([[DISPLAYS[i].pitch_deg, DISPLAYS[i].roll_deg * side[k]] for k, i in enumerate(displays)])
        .reshape(count, 2),
    )  # fmt: skip


def _speech(clip: Clip) -> tuple[float, float] | None:
    """Start and end of the clip's bout of speech in s, if it has one."""
    rng = np.random.default_rng([clip.seed, 3])
    start = rng.uniform(0.0, 0.8 * clip.seconds)
    return (start, start + rng.uniform(0.8, 2.5)) if rng.random() < _SPEECH_SHARE else None


def _au_weights(display: Display, optional_aus: frozenset[str]) -> np.ndarray:
    weight = np.zeros(len(_AU_INDEX))
    for au, value in display.optional.items():
        weight[_AU_INDEX[au]] = value if au in optional_aus else 0.0
    for au, value in display.action_units.items():
        weight[_AU_INDEX[au]] = value
    return weight


def draw_idle(clip: Clip, episodes: Episodes) -> Idle:
    """The clip's meaningless movements, and the blinks that anxious displays add."""
    rng = np.random.default_rng([clip.seed, 1])
    seconds = clip.seconds
    blinks = rng.uniform(0.0, seconds, rng.poisson(clip.subject.blinks_per_s * seconds))
    turns = rng.poisson(0.15 * seconds)
    starts = rng.uniform(0.0, seconds, turns)
    looks = np.column_stack([
        starts,
        starts + rng.uniform(0.6, 1.8, turns),
        rng.uniform(-9.0, 9.0, turns),
        rng.uniform(-0.7, 0.7, turns),
        rng.uniform(-0.4, 0.4, turns),
    ])  # fmt: skip
    amplitude = rng.normal(0.0, 1.0, (5, 3)) * np.array([2.5, 1.5, 2.0, 0.1, 0.06])[:, None]
    drift = np.stack([amplitude, rng.uniform(0.05, 0.3, (5, 3)), rng.uniform(0, 2 * np.pi, (5, 3))], axis=-1)
    syllables = np.column_stack([[4.1, 2.3, 1.1] * rng.uniform(0.85, 1.15, 3), rng.uniform(0, 2 * np.pi, 3)])
    added = [
        rng.uniform(start, end, rng.poisson(DISPLAYS[which].blinks_per_s * peak * (end - start)))
        for which, peak, (start, end) in zip(
            episodes.display, episodes.peak, episodes.times_s[:, [0, 3]], strict=True
        )
    ]  # fmt: skip
    return Idle(
        blinks_s=np.concatenate([blinks, *added]), speech_s=_speech(clip), syllables=syllables, drift=drift, turns=looks
    )
