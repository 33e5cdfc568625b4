"""A network learns an obvious pattern in a few epochs, and learns nothing from shuffled labels."""

from __future__ import annotations

import numpy as np
import pytest
from training_worlds import made_network, one_thread  # noqa: F401

from mma.descriptors import MMA26
from mma.labels.table import LabelArrays
from mma.losses import LossOptions
from mma.training.augment import AugmentOptions
from mma.training.data import TrainingData
from mma.training.loop import Training
from mma.training.options import TrainingOptions

SIDE_PX, COUNT, TRAIN = 112, 400, 300
CELL_PX = SIDE_PX // 8
SHOWN_UNITS = ("AU01", "AU12", "AU25")


def patterned(shuffled: bool) -> TrainingData:
    """Noise with a bright square in one of 7 rows (expression), 3 combs that occur (units), and two squares whose
    heights say affect. `tiny` sees local contrast and no difference between left and right, which keeps all of them."""
    rng = np.random.default_rng(0)
    expression, va = rng.integers(0, 7, COUNT), rng.uniform(-1, 1, (COUNT, 2)).astype(np.float32)
    occurs = rng.random((COUNT, len(SHOWN_UNITS))) < 0.3
    faces = rng.normal(110, 15, (COUNT, SIDE_PX, SIDE_PX, 3))
    for row in range(COUNT):
        top = CELL_PX * expression[row]
        faces[row, top : top + CELL_PX, :CELL_PX] += 90
        for place, strip in zip((va[row] + 1) / 2 * (SIDE_PX - CELL_PX), (1, 2)):
            faces[row, int(place) : int(place) + CELL_PX, CELL_PX * strip : CELL_PX * (strip + 1)] += 90
        for number in np.flatnonzero(occurs[row]):
            top = CELL_PX * (1 + 2 * number)
            faces[row, top : top + CELL_PX, 3 * CELL_PX : 5 * CELL_PX : 2] -= 70
    indices = [MMA26.action_units.index(name) for name in SHOWN_UNITS]
    units, known = np.zeros((COUNT, len(MMA26.action_units)), np.float32), np.zeros((COUNT, 17), bool)
    units[:, indices], known[:, indices] = occurs, True
    labels = LabelArrays(va, np.ones((COUNT, 2), bool), expression, units, known)
    if shuffled:
        labels = LabelArrays(*(each[rng.permutation(COUNT)] for each in labels))
    rows = np.arange(COUNT)
    return TrainingData(
        faces=faces.clip(0, 255).astype(np.uint8),
        labels=labels,
        members={"train": {"made": rows[:TRAIN]}, "val": {"made": rows[TRAIN:]}, "test": {}},
        people=rows,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["true labels", "shuffled labels"])
def trained(request) -> tuple[bool, list[dict[str, float]]]:
    options = TrainingOptions(
        epochs=4,
        batch_size=20,
        learning_rate=3e-3,
        warmup=0.2,
        average=0.8,
        loss=LossOptions(matching="off"),  # the squares and combs are not after Du's table
        augment=AugmentOptions(flip=0.0, turn_deg=2.0, zoom=0.02, shift=0.01, tint=0.01, brightness=0.02, erase=0.0),
    )
    training = Training(made_network(side_px=SIDE_PX), patterned(request.param), options)
    return request.param, list(training.epochs())


def test_a_network_learns_what_is_there_and_nothing_else(trained):
    shuffled, history = trained
    last = history[-1]
    scores = {name: last[f"val_{name}"] for name in ("valence_ccc", "arousal_ccc", "expression_f1", "au_f1")}
    if shuffled:
        assert max(scores["valence_ccc"], scores["arousal_ccc"]) < 0.3
        assert scores["expression_f1"] < 0.35
        assert scores["au_f1"] < 0.62  # saying yes to all gets .46
    else:
        assert min(scores.values()) > 0.6, scores
        assert last["loss_total"] < 0.5 * history[0]["loss_total"]
