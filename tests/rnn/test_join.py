"""Labels and features come together by id, and what has no partner is counted and named."""

from __future__ import annotations

import numpy as np
import pytest

from rnn.join import join
from rnn.labels import ReactionLabels

NAN = float("nan")


def labels_of(**rows: tuple[str | None, bool]) -> ReactionLabels:
    """id -> its split, and whether it has a label."""
    values = np.full((len(rows), 7), NAN, np.float32)
    values[[known for _, known in rows.values()], 2] = 0.5  # one known reaction of seven is a label
    blank = (None,) * len(rows)
    return ReactionLabels(
        video_ids=tuple(rows),
        values=values,
        splits=tuple(split for split, _ in rows.values()),
        subjects=blank,
        countries=blank,
        ages=np.full(len(rows), NAN, np.float32),
        layout="table",
    )


LABELS = labels_of(
    a=("train", True), b=("val", True), c=("test", False), d=("test", False), e=("train", True), f=(None, False)
)


def test_features_find_their_rows_by_id_in_any_order():
    found = join(LABELS, ["d", "b", "zz", "a"])
    assert found.index.tolist() == [3, 1, -1, 0]
    assert found.matched == 3


def test_what_lacks_a_label_a_row_or_features_is_counted_apart():
    found = join(LABELS, ["f", "c", "y", "d", "a", "x"])
    assert found.unlabelled == {"test": 2, "none": 1}
    assert found.without_row == ("y", "x")
    # Rows without a label whose video has no features would be no loss: only b and e are.
    assert found.without_features == ("b", "e")


def test_one_line_tells_the_counts_and_the_first_ids():
    more = [f"x{n}" for n in range(1500)]
    told = join(LABELS, ["a", "c", *more]).told()
    assert told == (
        "2 videos have features and a row of labels; without a known label: 1 of test; "
        "1,500 have features, but no row of labels (x0, x1, x2, …); 2 have a label, but no features (b, e)"
    )


def test_a_whole_join_has_nothing_else_to_tell():
    told = join(labels_of(a=("train", True), b=("val", True)), ["b", "a"]).told()
    assert told == "2 videos have features and a row of labels"


def test_nothing_in_common_is_refused_with_an_id_of_each_side_and_the_option():
    """As many rows on both sides: a join by position would take them."""
    with pytest.raises(ValueError) as error:
        join(labels_of(**{"00001": ("train", True), "00002": ("train", True)}), ["train/00001", "train/00002"])
    said = str(error.value)
    assert "'train/00001'" in said
    assert "'00001'" in said
    assert "--video-id" in said
    assert "\n" not in said


def test_empty_sides_are_refused_as_such():
    for labels, ids in ((LABELS, []), (labels_of(), ["a"])):
        with pytest.raises(ValueError, match="none at all"):
            join(labels, ids)
