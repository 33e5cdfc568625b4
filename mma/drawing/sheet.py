"""Contact sheets: faces at rest, under each action unit and with the basic expressions, to be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mma.drawing.frame import draw_frame
from mma.drawing.identity import Identity, sample_identity
from mma.drawing.motion import AUS
from mma.drawing.scene import Scene, sample_scene

EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral": {},
    "happiness": {"AU06": 0.8, "AU12": 1.0, "AU25": 1.0},
    "sadness": {"AU01": 1.0, "AU04": 0.9, "AU15": 1.0, "AU17": 0.8},
    "fear": {"AU01": 1.0, "AU02": 0.8, "AU04": 0.9, "AU05": 1.0, "AU20": 1.0, "AU25": 1.0},
    "anger": {"AU04": 1.0, "AU07": 1.0, "AU23": 0.5, "AU24": 1.0},
    "surprise": {"AU01": 1.0, "AU02": 1.0, "AU05": 0.8, "AU25": 1.0, "AU26": 1.0},
    "disgust": {"AU04": 0.4, "AU09": 1.0, "AU10": 1.0, "AU17": 0.7},
}
"""A strong face for each basic expression: the prototypes of Du et al. with some of their observational units."""

States = Sequence[tuple[str, dict[str, float]]]


def contact_sheet(people: Sequence[tuple[Identity, Scene]], states: States, *, crop: bool = True) -> NDArray[np.uint8]:
    """One row a person, one column a state, its name above; uint8 (H, W, 3), RGB. `crop` cuts to the face."""
    rows: list[NDArray[np.uint8]] = []
    for identity, scene in people:
        row = []
        for number, (name, state) in enumerate(states):
            frame = draw_frame(identity, scene, state, seed=number)
            if crop:
                reach, low = int(1.45 * scene.unit_px), int(2.1 * scene.unit_px)
                x, y = int(scene.eyes_x_px), int(scene.eyes_y_px)
                frame = frame[max(y - reach, 0) : y + low, max(x - reach, 0) : x + reach]
                frame = cv2.resize(frame, (160, 196), interpolation=cv2.INTER_CUBIC)  # type: ignore[assignment]
            if not rows:
                band = np.full((20, frame.shape[1], 3), 255, np.uint8)
                cv2.putText(band, name, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (20, 20, 20), 1, cv2.LINE_AA)
                frame = np.vstack([band, frame])
            row.append(frame)
        rows.append(np.hstack(row))
    return np.vstack(rows)


def expression_sheet(*, seed: int = 0, people: int = 5) -> NDArray[np.uint8]:
    """The basic expressions over several subjects: the README's picture."""
    rng = np.random.default_rng(seed)
    drawn = [(sample_identity(rng), sample_scene(rng)) for _ in range(people)]
    return contact_sheet(drawn, list(EXPRESSIONS.items()))


def action_unit_sheet(identity: Identity, scene: Scene) -> NDArray[np.uint8]:
    """One subject at rest and with each action unit alone at full intensity, in rows of six."""
    states: list[tuple[str, dict[str, float]]] = [("rest", {}), *((au, {au: 1.0}) for au in AUS)]
    return np.vstack(
        [contact_sheet([(identity, scene)], states[first : first + 6]) for first in range(0, len(states), 6)]
    )
