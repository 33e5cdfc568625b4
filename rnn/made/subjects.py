"""The people of the made corpus: who they are, how strongly they show what they feel, and how they report it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from mma.descriptors import MMA26
from rnn.made.displays import OPTIONAL_AUS

COUNTRIES = ("United States", "South Africa")
"""Those of Hume-Reaction (PAPER.md). Country has no bearing on anything unless `--gap country` plants it."""

GAP_COUNTRY = "South Africa"
"""The country whose self-report is noisier under `--gap country`."""

EXPRESSIVITY_SD = 0.3
"""Expressivity is exp(N(0, this)) (CORPUS.md)."""

REPORT_NOISE = 0.15
"""Standard deviation of a self-report, on a scale from 0 to 1, before it is scaled to a largest of 1."""

GAP_REPORT_NOISE = 0.4
"""The same for the country of a planted gap."""

DARK_FROM = 0.5
"""Tones above this count as dark for `--gap tone`."""

GAP_CONTRAST = 0.4
"""Contrast of their pictures then."""

_OPTIONAL_SHARE = 0.5
_RESTING_AUS = ("AU01", "AU02", "AU04", "AU07", "AU12", "AU15", "AU17", "AU24", "AU25")


@dataclass(frozen=True, kw_only=True)
class ResponseStyle:
    """How a person turns a felt intensity f into a report: baseline + (1 - baseline) f^exponent + noise."""

    exponent: float
    """Below 1 exaggerates weak feelings, above 1 plays them down."""
    baseline: float
    """What is reported for everything, felt or not, in [0, 1]."""
    noise: float
    """Standard deviation of the report's noise."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One person; everything here is the same in all their clips."""

    subject: str
    """Id, such as `S0007`."""
    age: int
    """Years, 18 to 70."""
    country: str
    """One of COUNTRIES."""
    seed: int
    """Seed of the drawn identity (`mma.drawing.sample_identity`)."""
    tone: float
    """Skin tone in [0, 1], 0 light, 1 dark, uniform; for the drawing."""
    contrast: float
    """Contrast of this person's pictures, 1 but for dark tones under `--gap tone`; for the drawing."""
    expressivity: float
    """Factor from felt intensity to peak of the display."""
    optional_aus: frozenset[str]
    """The optional AUs this person adds to displays."""
    resting: tuple[float, ...]
    """Resting offset of each AU of MMA26 in [0, .25]: drawn, but no part of the truth, since it is no movement."""
    valence_offset: float
    arousal_offset: float
    """What this person's face looks like at rest, N(0, .05) each."""
    latency_s: float
    """Seconds from the stimulus's event to this person's apex under locked timing."""
    blinks_per_s: float
    """Blinks a second that mean nothing."""
    style: ResponseStyle
    """How this person fills in the self-report."""


def sample_style(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """`size` response styles: exponents and baselines, float64 (size,) each."""
    return np.exp(rng.normal(0.0, 0.3, size)), np.abs(rng.normal(0.0, 0.06, size))


def report_noise(country: str, gaps: Collection[str]) -> float:
    """Standard deviation of the self-report in this country."""
    return GAP_REPORT_NOISE if "country" in gaps and country == GAP_COUNTRY else REPORT_NOISE


def sample_subject(number: int, seed: int, gaps: Collection[str] = ()) -> Subject:
    """Person `number` of the corpus with this seed. Planting a gap changes nothing but the gap."""
    rng = np.random.default_rng([seed, 1, number])
    country = COUNTRIES[int(rng.random() < 0.4)]
    tone = float(rng.random())
    exponent, baseline = sample_style(rng, 1)
    resting = np.abs(rng.normal(0.0, 0.08, len(MMA26.action_units))).clip(0, 0.25)
    return Subject(
        subject=f"S{number:04d}",
        age=int(np.clip(round(18 + rng.gamma(2.0, 8.0)), 18, 70)),
        country=country,
        seed=int(rng.integers(2**31)),
        tone=tone,
        contrast=GAP_CONTRAST if "tone" in gaps and tone > DARK_FROM else 1.0,
        expressivity=float(np.exp(rng.normal(0.0, EXPRESSIVITY_SD))),
        optional_aus=frozenset(au for au in OPTIONAL_AUS if rng.random() < _OPTIONAL_SHARE),
        resting=tuple(
            float(offset) if au in _RESTING_AUS else 0.0 for au, offset in zip(MMA26.action_units, resting, strict=True)
        ),
        valence_offset=float(rng.normal(0.0, 0.05)),
        arousal_offset=float(rng.normal(0.0, 0.05)),
        latency_s=float(rng.uniform(0.2, 0.6)),
        blinks_per_s=float(np.exp(rng.normal(np.log(0.25), 0.4))),
        style=ResponseStyle(
            exponent=float(exponent[0]), baseline=float(baseline[0]), noise=report_noise(country, gaps)
        ),
    )
