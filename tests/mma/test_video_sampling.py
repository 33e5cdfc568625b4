"""Sampling by time stamps: the nearest frame to each grid point, and never a frame twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mma.video.sampling import sample_indices

PHONE_S = np.array([0.00, 0.03, 0.07, 0.50, 0.53, 0.57, 1.00])

stamps = st.lists(st.integers(0, 400), min_size=1, max_size=60).map(lambda gaps: np.cumsum(gaps) / 1000 - 0.2)


def test_worked_example_of_the_docstring():
    assert sample_indices(PHONE_S, 4).tolist() == [0, 2, 3, 5, 6]
    assert sample_indices(PHONE_S, 8).tolist().count(2) == 1


def test_stamps_below_zero_give_the_same_frames():
    assert sample_indices(PHONE_S - 0.3, 4).tolist() == sample_indices(PHONE_S, 4).tolist()


def test_constant_rate_halved_takes_every_other_frame():
    assert sample_indices(np.arange(100) / 30, 15).tolist() == list(range(0, 100, 2))


def test_stamps_rounded_to_ticks_keep_the_grid():
    rounded_s = np.floor(np.arange(0, 300) / 29.97 * 90000) / 90000
    assert sample_indices(rounded_s, 29.97).tolist() == list(range(300))


def test_no_rate_takes_all_and_an_empty_video_gives_none():
    assert sample_indices(PHONE_S, None).tolist() == list(range(7))
    assert len(sample_indices(np.array([]), 5)) == 0


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_a_rate_that_is_none_is_refused(fps):
    with pytest.raises(ValueError, match="fps"):
        sample_indices(PHONE_S, fps)


@given(stamps, st.floats(0.2, 60))
def test_each_grid_point_has_its_nearest_frame_and_no_other_frame_is_taken(times_s, fps):
    taken = sample_indices(times_s, fps)
    assert (np.diff(taken) > 0).all()
    since_s = times_s - times_s[0]
    grid_s = np.arange(int((since_s[-1] + 0.001) * fps + 1e-6) + 1) / fps
    reached = set()
    for point_s in grid_s:
        away_s = np.abs(since_s - point_s)
        nearest = away_s[taken].min()
        assert nearest <= away_s.min() + 2e-6 / fps
        reached |= set(taken[away_s[taken] <= nearest + 4e-6 / fps].tolist())
    assert reached == set(taken.tolist())


@given(stamps, st.floats(0.2, 60))
def test_first_frame_is_always_taken(times_s, fps):
    assert sample_indices(times_s, fps)[0] == 0
