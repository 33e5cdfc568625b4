"""What each reaction looks like: the table of facial displays. Ours [ours]: no source gives one for these 7 reactions.

Two displays a reaction, overlapping in their action units, so that no single AU names a reaction (CORPUS.md). The
class a viewer gives a display is the one whose row of the Du table (`mma.prior`) it covers best, happiness only with
AU12; so classes overlap too: 4+7+10 and 14+24 read as anger, 4+6+7+20+25 as fear, 4+5+26 as surprise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rnn.reactions import REACTIONS


@dataclass(frozen=True, kw_only=True)
class Display:
    """One facial display at its apex, for a peak of 1."""

    action_units: Mapping[str, float]
    """AU name -> intensity in [0, 1]."""
    optional: Mapping[str, float] = field(default_factory=dict)
    """AUs that only some subjects add (`Subject.optional_aus`) -> intensity."""
    expression: str
    """The basic expression a viewer would name."""
    valence: float
    arousal: float
    """The fixed map of displays to valence and arousal, each in [-1, 1]."""
    roll_deg: float = 0.0
    """Head tilt that comes with it; the side is drawn."""
    pitch_deg: float = 0.0
    """Nod (positive: chin down) that comes with it."""
    blinks_per_s: float = 0.0
    """Additional blinks while it lasts."""


REACTION_DISPLAYS: dict[str, tuple[Display, Display]] = {
    "Adoration": (
        Display(
            action_units={"AU06": 0.65, "AU12": 0.7}, optional={"AU01": 0.5, "AU07": 0.5},
            expression="happiness", valence=0.7, arousal=0.0, roll_deg=7.0,
        ),
        Display(
            action_units={"AU01": 0.8, "AU12": 0.8, "AU25": 0.8}, optional={"AU06": 0.7, "AU02": 0.5},
            expression="happiness", valence=0.7, arousal=0.25,
        ),
    ),
    "Amusement": (
        Display(
            action_units={"AU06": 0.9, "AU12": 1.0, "AU25": 0.95, "AU26": 0.8}, optional={"AU10": 0.85, "AU07": 0.85},
            expression="happiness", valence=0.75, arousal=0.5,
        ),
        Display(
            action_units={"AU07": 0.8, "AU12": 0.9, "AU14": 0.8}, optional={"AU06": 0.8, "AU10": 0.8},
            expression="happiness", valence=0.6, arousal=0.2,
        ),
    ),
    "Anxiety": (
        Display(
            action_units={"AU01": 0.9, "AU04": 0.95, "AU20": 0.9}, optional={"AU15": 0.7, "AU25": 0.8},
            expression="fear", valence=-0.5, arousal=0.45,
        ),
        Display(
            action_units={"AU14": 0.95, "AU24": 1.0}, optional={"AU23": 0.9, "AU17": 0.8, "AU04": 0.8},
            expression="anger", valence=-0.35, arousal=0.25, blinks_per_s=1.5,
        ),
    ),
    "Disgust": (
        Display(
            action_units={"AU09": 1.0, "AU10": 0.95, "AU17": 0.9}, optional={"AU04": 0.9, "AU07": 0.7},
            expression="disgust", valence=-0.7, arousal=0.3,
        ),
        Display(
            action_units={"AU04": 1.0, "AU07": 0.95, "AU10": 0.95}, optional={"AU24": 0.8, "AU23": 0.8, "AU17": 0.7},
            expression="anger", valence=-0.6, arousal=0.35,
        ),
    ),
    "Empathic-Pain": (
        Display(
            action_units={"AU01": 0.95, "AU04": 0.95, "AU15": 1.0, "AU17": 0.9}, optional={"AU06": 0.7, "AU14": 0.7},
            expression="sadness", valence=-0.6, arousal=-0.15,
        ),
        Display(
            action_units={"AU04": 1.0, "AU06": 0.9, "AU07": 0.95, "AU20": 0.9, "AU25": 0.95},
            optional={"AU10": 0.8, "AU15": 0.7}, expression="fear", valence=-0.6, arousal=0.45,
        ),
    ),
    "Fear": (
        Display(
            action_units={"AU01": 1.0, "AU02": 0.9, "AU04": 0.95, "AU05": 1.0, "AU20": 0.95, "AU25": 1.0},
            optional={"AU26": 0.8}, expression="fear", valence=-0.65, arousal=0.8,
        ),
        Display(
            action_units={"AU04": 0.95, "AU05": 1.0, "AU26": 1.0}, optional={"AU25": 1.0, "AU01": 0.8},
            expression="surprise", valence=-0.3, arousal=0.7,
        ),
    ),
    "Surprise": (
        Display(
            action_units={"AU01": 1.0, "AU02": 1.0, "AU05": 0.95, "AU26": 1.0}, optional={"AU25": 1.0},
            expression="surprise", valence=0.1, arousal=0.75, pitch_deg=-4.0,
        ),
        Display(
            action_units={"AU02": 0.95, "AU25": 1.0, "AU26": 0.95}, optional={"AU01": 0.9},
            expression="surprise", valence=0.15, arousal=0.5,
        ),
    ),
}  # fmt: skip
"""Reaction -> its two displays, after CORPUS.md "Contents"; the intensities and the optional AUs are ours."""

POLITE_SMILE = Display(
    action_units={"AU12": 0.9}, optional={"AU14": 0.5, "AU25": 0.5}, expression="happiness", valence=0.2, arousal=0.0
)
"""A smile without a reaction behind it; a viewer calls it happiness all the same."""

SWALLOW = Display(
    action_units={"AU17": 0.8, "AU24": 0.7}, optional={"AU23": 0.6}, expression="neutral", valence=0.0, arousal=0.0
)
"""Chin and lips move; nobody reads an expression into it."""

BROW_FLASH = Display(
    action_units={"AU01": 0.8, "AU02": 0.85}, optional={"AU05": 0.5}, expression="neutral", valence=0.0, arousal=0.1
)
"""The brows stress a word; comes with speech alone."""

SPEECH_AUS = {"AU25": 0.8, "AU26": 0.5}
"""What full articulation moves: coders score parted lips and a dropped jaw while somebody speaks."""

DISPLAYS: tuple[Display, ...] = (
    *(display for reaction in REACTIONS for display in REACTION_DISPLAYS[reaction]),
    POLITE_SMILE,
    SWALLOW,
    BROW_FLASH,
)
"""All displays; those of reaction number i are 2i and 2i + 1."""

OPTIONAL_AUS = tuple(sorted({au for display in DISPLAYS for au in display.optional}))
"""The AUs over which subjects differ in habit."""
