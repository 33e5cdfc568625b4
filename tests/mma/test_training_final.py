"""Final scores: thresholds chosen on validation, scores for people nobody chose by; and what a training reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from training_worlds import made_network

from mma.descriptors import MMA26
from mma.labels.table import label_table
from mma.metrics import DEFAULT_THRESHOLD, Stage1Metrics
from mma.training.data import training_data
from mma.training.final import CROSS_FITTED, cross_fitted, final_scores

UNITS = len(MMA26.action_units)
LOW = ((0.30, 1), (0.20, 0), (0.35, 1))
"""Probability and label of AU01 of one half: F1 is 1 at thresholds .21 to .30; of equals the nearest to .5 is .30."""
HIGH = ((0.80, 1), (0.70, 0), (0.75, 1))
"""Of the other half: F1 is 1 at .71 to .75; the nearest to .5 is .71."""
SPLIT_F1 = 4 / 7
"""Cross-fitted: at .71 none of LOW is found, at .30 all of HIGH: 2 true of 3 found and 4 to find, 2 * 2 / (3 + 4)."""


def counted(cells: tuple[tuple[float, int], ...]) -> Stage1Metrics:
    """Counts of cells of AU01; nothing else is known."""
    probability, label = np.zeros((2, len(cells), UNITS))
    known = np.zeros((len(cells), UNITS), bool)
    if cells:
        probability[:, 0], label[:, 0] = np.array(cells).T
    known[:, 0] = True
    return Stage1Metrics.of(
        MMA26,
        valence_arousal=np.zeros((len(cells), 2)),
        expressions=np.zeros((len(cells), len(MMA26.expressions))),
        action_units=probability,
        valence_arousal_label=np.zeros((len(cells), 2)),
        valence_arousal_known=np.zeros((len(cells), 2), bool),
        expression_label=np.full(len(cells), -1),
        action_unit_label=label,
        action_unit_known=known,
    )


class Scored:
    """As much of a training as final scores need: cells of AU01 by split, and whose each is."""

    def __init__(self, people: list[int], **splits: tuple[tuple[float, int], ...]) -> None:
        self.cells = [cell for cells in splits.values() for cell in cells]
        edges = np.cumsum([0, *map(len, splits.values())])
        rows = {name: np.arange(first, last) for name, first, last in zip(splits, edges, edges[1:])}
        self.data = SimpleNamespace(
            people=np.array(people), of_split=lambda split: rows.get(split, np.empty(0, np.int64))
        )
        self.asked: list[set[int]] = []

    def evaluate(self, rows, network):
        self.asked.append(set(self.data.people[rows].tolist()))
        return counted(tuple(self.cells[row] for row in rows)) if len(rows) else None


def scored(*args: Any, **splits: tuple) -> tuple[Scored, dict[str, Any]]:
    training = Scored(*args, **splits)
    return training, final_scores(training, made_network())


def test_thresholds_are_chosen_on_validation_and_reported_on_test():
    _, told = scored([1, 1, 1, 2, 2, 2], val=LOW, test=HIGH)
    assert (told["split"], told["threshold_choice"]) == ("test", "val")
    assert told["thresholds"]["AU01"] == 0.30
    assert told["thresholds"]["AU02"] == DEFAULT_THRESHOLD
    assert told["val"]["au_f1"] == 1
    assert told["scores"]["au_f1"] == pytest.approx(2 * 2 / (3 + 2))  # at .30 all three of HIGH are found
    assert told["scores"]["by_name"]["AU01"] == {"f1": told["scores"]["au_f1"], "n": 2, "known": 3, "threshold": 0.30}


def test_without_test_the_thresholds_are_cross_fitted_over_halves_of_the_people():
    training, told = scored([1, 1, 1, 2, 2, 2], val=LOW + HIGH)
    assert (told["split"], told["threshold_choice"]) == ("val", CROSS_FITTED)
    assert told["scores"]["au_f1"] == pytest.approx(SPLIT_F1)
    assert told["scores"]["by_name"]["AU01"] == {"f1": pytest.approx(SPLIT_F1), "n": 4, "known": 6}
    assert {1} in training.asked
    assert {2} in training.asked
    # On all of it at .21 to .30: every cell but LOW's negative, 2 * 4 / (5 + 4).
    assert told["thresholds"]["AU01"] == 0.30
    assert told["val"]["au_f1"] == pytest.approx(8 / 9)


def test_a_threshold_is_never_chosen_on_the_half_that_it_is_scored_on():
    """Each half alone would find all of its own; and which comes first does not matter."""
    low, high = counted(LOW), counted(HIGH)
    for one, other in ((low, high), (high, low)):
        assert cross_fitted(one, other)["au_f1"] == pytest.approx(SPLIT_F1)
    assert cross_fitted(low, low)["au_f1"] == cross_fitted(high, high)["au_f1"] == 1


def test_a_half_without_positives_chooses_the_default():
    none = tuple((probability, 0) for probability, _ in LOW)
    # HIGH at .5: 2 true of 3 found; the negatives at .71 find none.
    assert cross_fitted(counted(none), counted(HIGH))["au_f1"] == pytest.approx(2 * 2 / (3 + 2))


def test_halves_are_of_people_never_of_samples():
    people = np.random.default_rng(0).integers(0, 9, 60).tolist()
    cells = tuple((0.01 * row, row % 2) for row in range(60))
    training, _ = scored(people, val=cells)
    *_, one, other = training.asked
    assert not one & other
    assert one | other == set(people)
    assert abs(len(one) - len(other)) <= 1


def test_one_person_cannot_be_halved_and_the_table_says_so():
    _, told = scored([1, 1, 1], val=LOW)
    assert told["threshold_choice"] == "val itself: one subject cannot be halved"
    assert told["scores"] == told["val"]


def test_without_validation_there_are_no_scores():
    assert scored([1, 1, 1], test=LOW)[1] == {}


def test_a_test_split_in_which_nothing_is_labelled_is_no_test_split():
    """Rows whose only label is a class that the heads lack, say."""
    unlabelled = tuple((probability, 0) for probability, _ in LOW)
    _, told = scored([1, 1, 1, 2, 2, 2, 3, 3, 3], val=LOW + HIGH, test=unlabelled)
    assert (told["split"], told["threshold_choice"]) == ("val", CROSS_FITTED)


# --- what a training reads ---


def samples_of(*rows: tuple) -> pa.Table:
    """Rows (set, split, source, subject, valence)."""
    sets, splits, sources, subjects, valence = map(list, zip(*rows))
    table = label_table({"split": splits, "source": sources, "subject": subjects, "valence": valence})
    return table.add_column(0, "set", pa.array(sets))


def test_samples_are_listed_by_split_and_set_and_told_apart_by_person():
    table = samples_of(
        ("a", "train", "1.png", "ann", 0.5),
        ("b", "train", "1.png", "ann", None),
        ("a", "val", "2.png", None, 0.25),
        ("a", "train", "3.png", "ann", -1.0),
        ("a", "val", "2.png", None, None),
    )
    for each in (table, pa.concat_tables([table.slice(0, 2), table.slice(2)])):
        data = training_data(each, np.zeros((5, 112, 112, 3), np.uint8), MMA26)
        members = {split: {name: rows.tolist() for name, rows in of.items()} for split, of in data.members.items()}
        assert members == {"train": {"a": [0, 3], "b": [1]}, "val": {"a": [2, 4]}, "test": {}}
        assert data.of_split("train").tolist() == [0, 3, 1]
        assert data.of_split("test").tolist() == []
        same = data.people[:, None] == data.people[None]
        assert {(i, j) for i, j in zip(*np.nonzero(same)) if i < j} == {(0, 3), (2, 4)}
        assert data.labels.valence_arousal[:, 0].tolist() == [0.5, 0, 0.25, -1, 0]
        assert data.labels.valence_arousal_known[:, 0].tolist() == [True, False, True, True, False]


def test_rows_and_faces_that_are_not_as_many_are_refused():
    with pytest.raises(ValueError, match="1 labelled samples, but 2 faces"):
        training_data(samples_of(("a", "train", "1", None, 0.5)), np.zeros((2, 112, 112, 3), np.uint8), MMA26)
