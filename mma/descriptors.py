"""The vocabulary of affect descriptors: their names, families and order. The one place where that order lives.

Everything that reads or writes descriptors looks them up by name; no other file may rely on a position.
"""

from __future__ import annotations

from dataclasses import dataclass

VALENCE_AROUSAL = ("valence", "arousal")
"""Both in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class DescriptorSet:
    """The descriptors one MMA network gives for a frame: three families in a fixed order.

    PAPER.md, "Stage 1": the 26-number descriptor stands as [kin] (FaceBehaviorNet's label sets),
    the 22-number one is the ABAW label space.
    """

    name: str
    """How options and files call this set."""
    expressions: tuple[str, ...]
    """Basic expressions; the values of a frame are probabilities and sum to 1."""
    action_units: tuple[str, ...]
    """Facial action units, `AU` and two digits; the values are probabilities of occurrence in [0, 1]."""
    valence_arousal: tuple[str, ...] = VALENCE_AROUSAL
    """Valence and arousal, each in [-1, 1]."""
    foreign: tuple[str, ...] = ()
    """Descriptors of another tool, in its units; no MMA network gives any, and they are of no family."""

    @property
    def names(self) -> tuple[str, ...]:
        """All descriptor names in their order: valence-arousal, expressions, action units, another tool's."""
        return (*self.valence_arousal, *self.expressions, *self.action_units, *self.foreign)

    @property
    def families(self) -> dict[str, tuple[str, ...]]:
        """The three families by the names that options use for them."""
        return {
            "valence_arousal": self.valence_arousal,
            "expressions": self.expressions,
            "action_units": self.action_units,
        }

    def __len__(self) -> int:
        return len(self.names)


def action_unit_name(number: int) -> str:
    """The column name of an action unit: `action_unit_name(4) == "AU04"`."""
    return f"AU{number:02d}"


def _action_units(*numbers: int) -> tuple[str, ...]:
    return tuple(action_unit_name(number) for number in numbers)


BASIC_EXPRESSIONS = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")

MMA26 = DescriptorSet(
    name="mma26",
    expressions=BASIC_EXPRESSIONS,
    action_units=_action_units(1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 24, 25, 26),
)
"""The default: 2 + 7 + 17 numbers a frame."""

ABAW22 = DescriptorSet(
    name="abaw22",
    expressions=(*BASIC_EXPRESSIONS, "other"),
    action_units=_action_units(1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26),
)
"""The ABAW label space: 2 + 8 + 12 numbers a frame."""

DESCRIPTOR_SETS = {each.name: each for each in (MMA26, ABAW22)}
"""Those that an MMA network can give, by name."""

_OPENFACE_UNITS = (1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26)

OPENFACE = DescriptorSet(
    name="openface",
    valence_arousal=(),
    expressions=(),
    action_units=(),
    foreign=(
        *(f"{unit}_r" for unit in _action_units(*_OPENFACE_UNITS, 45)),
        *(f"{unit}_c" for unit in _action_units(*_OPENFACE_UNITS, 28, 45)),
        *("gaze_angle_x", "gaze_angle_y", "pose_Rx", "pose_Ry", "pose_Rz"),
    ),
)
"""What OpenFace 2 tells of a frame, under its names and in its units: 17 intensities of action units (`_r`, 0 to 5), 18
presences (`_c`, 0 or 1), the direction of the gaze and the turn of the head (radians)."""
