"""Who is drawn: the resting face of one subject, its colours, its hair and what it wears.

Lengths are in units of the distance between the eyes. Resting brows, mouth corners, lids and lips differ between
subjects by a third and more of what an action unit moves (CORPUS.md, gate 2), so that no position alone gives one away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mma.descriptors import MMA26

HAIR_STYLES = ("bald", "short", "fringe", "long", "curly", "bun", "scarf")
BEARDS = ("none", "stubble", "moustache", "full")
GLASSES = ("none", "round", "square")
Colour = tuple[float, float, float]
"""RGB, each in [0, 255]."""

_SKIN_RAMP = np.array(
    [
        [246, 217, 200],
        [236, 196, 170],
        [222, 172, 140],
        [196, 142, 108],
        [164, 111, 80],
        [138, 93, 67],
        [112, 75, 55],
        [90, 61, 47],
    ],
    float,
)
_HAIR = {
    "black": (32, 27, 26),
    "dark": (58, 40, 30),
    "brown": (92, 62, 42),
    "red": (142, 78, 42),
    "blond": (190, 150, 96),
}

_LIPSTICKS = np.array([[168, 36, 48], [120, 28, 46], [206, 96, 108], [196, 120, 110], [150, 60, 80]], float)
_STYLES = {
    "masculine": ("bald", "short", "short", "short", "curly"),
    "feminine": ("fringe", "long", "long", "curly", "bun", "scarf", "short"),
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """One subject. Drawn by `sample_identity`; equal values draw equal faces."""

    skin: Colour
    """Colour of lit skin."""
    lips: Colour
    """Colour of the lips, with lipstick where worn."""
    hair: Colour
    """Colour of the hair, or of the scarf."""
    brow_colour: Colour
    """Colour of brows and beard."""
    iris: Colour
    """Colour of the iris."""
    cloth: Colour
    """Colour of the clothes."""
    tone: float
    """Place on the skin ramp: 0 lightest, 1 darkest."""
    age: float
    """0 young to 1 old: resting folds, uneven skin."""
    face_width: float
    """Factor on the head's width."""
    jaw_width: float
    """Factor on the jaw's width."""
    chin_y: float
    """Height of the chin's lower edge."""
    nose_width: float
    """Factor on the nose's width."""
    nose_y: float
    """Height of the nose's tip."""
    nose_height: float
    """Factor on how far the nose stands out."""
    mouth_y: float
    """Height of the closed mouth."""
    mouth_half_width: float
    """Half the mouth's width."""
    corner_drop: float
    """How far the mouth's corners hang at rest (negative: a resting smile)."""
    upper_lip: float
    """Thickness of the upper lip."""
    lower_lip: float
    """Thickness of the lower lip."""
    cupid: float
    """Depth of the cupid's bow as a share of the upper lip."""
    lid_opening: float
    """Distance between the lids at rest."""
    eye_half_width: float
    """Half the distance between an eye's corners."""
    eye_tilt: float
    """How far the outer corner lies above the inner one."""
    lid_crease: float
    """Distance of the upper lid's crease from its edge; under .03 there is none."""
    brow_y: float
    """Height of the brows (negative: above the eyes)."""
    brow_tilt: float
    """How far the brow's inner end lies above its outer one."""
    brow_arch: float
    """Height of the brow's arch."""
    brow_thickness: float
    """Thickness of the brow at its inner end."""
    brow_density: float
    """Cover of the brow's hair, in [0, 1]."""
    asymmetry: tuple[float, float, float]
    """Left-right differences at rest: brow height, mouth-corner height, lid opening."""
    folds: tuple[float, ...]
    """Depth of each action unit's folds at rest, as a share of the full one, in the order of `MMA26.action_units`."""
    fold_gain: float
    """Factor on the folds that action units make."""
    hair_style: str
    """One of HAIR_STYLES."""
    hairline_y: float
    """Height of the hairline at the middle."""
    hair_volume: float
    """How far the hair stands off the head."""
    beard: str
    """One of BEARDS."""
    glasses: str
    """One of GLASSES."""
    glasses_colour: Colour
    """Colour of the frame."""
    make_up: float
    """Eye liner and blush, in [0, 1]."""
    freckles: float
    """Freckles and spots, in [0, 1]."""
    texture_seed: int
    """Seeds hair, pores and spots."""

    def __post_init__(self) -> None:
        for name, known in (("hair_style", HAIR_STYLES), ("beard", BEARDS), ("glasses", GLASSES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}: give one of {', '.join(known)}")


def _colour(value: np.ndarray | tuple[float, ...]) -> Colour:
    red, green, blue = np.clip(value, 4, 250).tolist()
    return red, green, blue


def _normal(rng: np.random.Generator, mean: float, sd: float, widest: float = 2.2) -> float:
    return float(mean + sd * np.clip(rng.standard_normal(), -widest, widest))


def sample_identity(rng: np.random.Generator, *, skin_tone: float | None = None) -> Identity:
    """One subject, drawn at random over the full range of tones, ages, hair, glasses, beards and make-up.

    `skin_tone`, 0 lightest to 1 darkest, fixes the tone. ValueError: it lies outside.
    """
    tone, age, masculine = float(rng.uniform()), float(rng.beta(1.3, 1.8)), bool(rng.uniform() < 0.5)
    if skin_tone is not None:
        if not 0 <= skin_tone <= 1:
            raise ValueError(f"skin_tone is {skin_tone}: give a value from 0 (lightest) to 1 (darkest)")
        tone = float(skin_tone)
    skin = np.array([np.interp(tone, np.linspace(0, 1, len(_SKIN_RAMP)), channel) for channel in _SKIN_RAMP.T])
    skin = skin * (1 + np.array([0.0, 0.02, 0.05]) * rng.standard_normal()) * rng.uniform(0.95, 1.04)
    hues = ("black", "dark") if tone > 0.55 else tuple(_HAIR)
    natural = np.array(_HAIR[hues[rng.integers(len(hues))]], float) * rng.uniform(0.8, 1.25)
    grey = float(np.clip(rng.normal(1.6 * age - 0.75, 0.25), 0, 0.9))
    natural = natural * (1 - grey) + np.array([168.0, 166.0, 164.0]) * grey
    make_up = 0.0 if masculine else float(rng.uniform() * (rng.uniform() < 0.65))
    lips = skin * np.array([0.90, 0.70, 0.70]) + np.array([6.0, 0.0, 4.0])
    lips = lips * rng.uniform(0.8, 1.12) + np.array([8.0, 0.0, 0.0]) * rng.standard_normal()
    if make_up > 0.4:
        lips = lips * 0.35 + _LIPSTICKS[rng.integers(len(_LIPSTICKS))] * 0.65 * (1 - 0.35 * tone)
    styles = _STYLES["masculine" if masculine else "feminine"]
    style = styles[rng.integers(len(styles))]
    beard = str(rng.choice(BEARDS, p=(0.45, 0.25, 0.12, 0.18))) if masculine else "none"
    eyes = [(62, 40, 26), (84, 58, 36), (110, 92, 52), (86, 112, 132), (92, 118, 90)]
    frame = [(28, 26, 28), (70, 46, 30), (52, 54, 62), (90, 26, 32)][rng.integers(4)]
    worn = rng.uniform(50, 210) * (1 + 0.25 * rng.standard_normal(3)) if style == "scarf" else natural
    return Identity(
        skin=_colour(skin),
        lips=_colour(lips),
        hair=_colour(worn),
        brow_colour=_colour(natural * min(rng.uniform(0.6, 1.0), 0.60 * skin.mean() / natural.mean())),
        iris=_colour(eyes[rng.integers(2 if tone > 0.55 else 5)]),
        cloth=_colour(rng.uniform(25, 215) * (1 + 0.18 * rng.standard_normal(3))),
        tone=tone,
        age=age,
        face_width=_normal(rng, 1.03 if masculine else 0.99, 0.045),
        jaw_width=_normal(rng, 1.05 if masculine else 0.95, 0.06),
        chin_y=_normal(rng, 1.90 if masculine else 1.80, 0.08),
        nose_width=_normal(rng, 0.95 + 0.25 * tone, 0.10),
        nose_y=_normal(rng, 0.61, 0.042),
        nose_height=_normal(rng, 1.0, 0.15),
        mouth_y=_normal(rng, 1.14, 0.06),
        mouth_half_width=_normal(rng, 0.41, 0.035),
        corner_drop=_normal(rng, -0.004, 0.050),
        upper_lip=_normal(rng, 0.094 + 0.02 * tone, 0.024, 2.0),
        lower_lip=_normal(rng, 0.130 + 0.02 * tone, 0.031, 2.0),
        cupid=float(rng.uniform(0.1, 0.45)),
        lid_opening=_normal(rng, 0.150, 0.026),
        eye_half_width=_normal(rng, 0.232, 0.014),
        eye_tilt=_normal(rng, 0.018, 0.024),
        lid_crease=float(rng.uniform(0.015, 0.075)),
        brow_y=_normal(rng, -0.335, 0.042),
        brow_tilt=_normal(rng, 0.0, 0.045),
        brow_arch=float(rng.uniform(0.02, 0.09)),
        brow_thickness=_normal(rng, 0.095 if masculine else 0.075, 0.018),
        brow_density=float(rng.uniform(0.45, 0.95)),
        asymmetry=(_normal(rng, 0, 0.012), _normal(rng, 0, 0.014), _normal(rng, 0, 0.004)),
        folds=tuple(np.clip(rng.normal(0.06 + 0.36 * age, 0.24, len(MMA26.action_units)), 0, 0.8).tolist()),
        fold_gain=float(0.75 + 0.4 * age + rng.uniform(-0.15, 0.15)),
        hair_style=style,
        hairline_y=_normal(rng, -1.02 - (0.12 * age if masculine else 0.0), 0.06),
        hair_volume=float(rng.uniform(0.05, 0.2)) if masculine else float(rng.uniform(0.1, 0.28)),
        beard=beard,
        glasses=str(rng.choice(GLASSES, p=(0.80, 0.10, 0.10))),
        glasses_colour=_colour(frame),
        make_up=make_up,
        freckles=float(rng.uniform() * (rng.uniform() < 0.35)),
        texture_seed=int(rng.integers(2**31)),
    )
