"""How many steps a network is given, from the lengths of its training videos."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from reaction_worlds import made_sequences

from rnn.network import NetworkConfig
from rnn.training.data import SAMPLE_SCHEMA, SplitVideos, person_numbers, steps_reached, told_reach

BY_STEP, BY_STATISTICS = NetworkConfig(), NetworkConfig(readout="masked-statistics")


def train_of(lengths: list[int]) -> dict[str, SplitVideos]:
    rows = np.arange(len(lengths))
    samples = pa.Table.from_pylist([{"split": "train"}] * len(lengths), SAMPLE_SCHEMA)
    return {"train": SplitVideos(samples=samples, videos=rows, seen=rows, sequences=made_sequences(lengths))}


def test_the_longest_training_video_decides():
    assert steps_reached(train_of([3, 9, 14]), None, BY_STEP) == 14
    assert steps_reached(train_of([3, 9, 14]), 10, BY_STEP) == 10
    assert steps_reached(train_of([3, 9, 14]), 99, BY_STEP) == 14


def test_an_outlier_is_refused_where_steps_have_weights_and_nowhere_else():
    splits = train_of([10] * 300 + [200])
    with pytest.raises(ValueError, match=r"has 200 steps, 99 % have 10 or fewer: give --steps 10 .* or --steps 200"):
        steps_reached(splits, None, BY_STEP)
    assert steps_reached(splits, 10, BY_STEP) == 10
    assert steps_reached(splits, None, BY_STATISTICS) == 200


def test_the_reach_of_each_tenth_is_told():
    assert told_reach(np.array([1, 5, 10, 10]), 10).endswith("4 3 3 3 3 2 2 2 2 2")


def test_a_video_of_nobody_known_is_a_person_of_its_own():
    def numbers(*subjects):
        rows = [{"video_id": f"{k}", "subject": each} for k, each in enumerate(subjects)]
        found = person_numbers(pa.Table.from_pylist(rows, SAMPLE_SCHEMA))
        return None if found is None else found.tolist()

    assert numbers("A", "B", "A") == [0, 1, 0]
    assert numbers("A", None, "A", None, "3") == [0, 1, 0, 2, 3]
    assert numbers(None, None) is None
    assert numbers() is None
