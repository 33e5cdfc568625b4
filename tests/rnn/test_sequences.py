"""From grids to sequences: fill rules, rest, scale, smoothing, and what was outside the training's range."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from mma.descriptors import MMA26
from rnn.grid import VIDEO_FACTS, GridVideos
from rnn.sequences import (
    CLIP,
    Normaliser,
    SequenceOptions,
    chosen_names,
    fit_normaliser,
    has_steps,
    select,
    to_sequences,
)

NAN = float("nan")


def grid_of(*videos, names=("valence",)) -> GridVideos:
    values = [np.asarray(each, np.float32).reshape(-1, len(names)) for each in videos]
    facts = pa.Table.from_pylist(
        [{"video_id": f"v{k}"} for k in range(len(videos))], pa.schema(list(VIDEO_FACTS.items()))
    )
    return GridVideos(
        names=tuple(names),
        step_s=0.1,
        values=np.concatenate(values),
        offsets=np.concatenate([[0], np.cumsum([len(each) for each in values])]).astype(np.int64),
        facts=facts,
    )


AS_IS = Normaliser(names=("valence",), mean=(0.0,), scale=(1.0,), low=(-9.0,), high=(9.0,))


def filled(fill: str, *videos) -> list[list[float]]:
    found = to_sequences(grid_of(*videos), SequenceOptions(fill=fill), AS_IS)
    return [each[:, 0].tolist() for each in found.take(np.arange(len(videos)))]


GAPS = ([NAN, NAN, 1, NAN, NAN, 4, NAN], [2, NAN, 3], [NAN, 5])


@pytest.mark.parametrize(
    ("fill", "expected"),
    [
        ("hold", [[1, 1, 1, 1, 1, 4, 4], [2, 2, 3], [5, 5]]),
        ("interpolate", [[1, 1, 1, 2, 3, 4, 4], [2, 2.5, 3], [5, 5]]),
        ("zero", [[0, 0, 1, 0, 0, 4, 0], [2, 0, 3], [0, 5]]),
    ],
)
def test_gaps_are_filled_as_asked_and_never_from_another_video(fill, expected):
    for found, wanted in zip(filled(fill, *GAPS), expected, strict=True):
        assert found == pytest.approx(wanted)


def test_smoothing_is_a_centred_mean_over_known_steps_of_the_same_video():
    grid = grid_of([0, 3, NAN, 9, 0], [3, 3])
    found = to_sequences(
        grid, SequenceOptions(smooth_s=0.3, fill="zero"), Normaliser(**{**vars(AS_IS), "high": (99.0,)})
    )
    assert found.values[:, 0].tolist() == pytest.approx([1.5, 1.5, 0, 4.5, 4.5, 3, 3])


def test_the_scale_is_of_training_steps_with_a_face_and_values_are_cut():
    grid = grid_of([1, 3, NAN], [5, 7])
    normaliser = fit_normaliser(grid, SequenceOptions(), None)
    assert normaliser.mean == (4.0,)
    assert normaliser.scale == pytest.approx((5**0.5,))
    assert (normaliser.low, normaliser.high) == ((1.0,), (7.0,))
    found = to_sequences(grid_of([4, 400, -400]), SequenceOptions(), normaliser)
    assert found.values[:, 0].tolist() == [0, CLIP, -CLIP]


def test_a_descriptor_that_never_varies_has_scale_1():
    grid = grid_of([[0.3, 1], [0.3, 2]], [[0.3, 3]], names=("valence", "arousal"))
    normaliser = fit_normaliser(grid, SequenceOptions(), None)
    assert normaliser.scale[0] == 1
    assert to_sequences(grid, SequenceOptions(), normaliser).values[:, 0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("normalise", ["subject", "video"])
def test_a_resting_face_of_ones_own_vanishes(normalise):
    """The same movements over other resting values are the same sequences; under `corpus` they are not."""
    moves = np.array([0, 0, 1, 2, 0, 0, 0], np.float32)
    grid = grid_of(moves, moves + 5, moves + 5)
    people = np.array([0, 1, 1])
    options = SequenceOptions(normalise=normalise)
    normaliser = fit_normaliser(grid, options, people)
    one, two, _ = to_sequences(grid, options, normaliser, people).take(np.arange(3))
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert one[3, 0] > 1
    plain = fit_normaliser(grid, SequenceOptions(), None)
    one, two, _ = to_sequences(grid, SequenceOptions(), plain).take(np.arange(3))
    assert np.abs(one - two).min() > 1


def test_log_odds_make_an_offset_of_a_resting_face_that_looks_like_an_action_unit():
    """Equal movements of the evidence for an AU, over another rest, are equal sequences in log odds alone; valence,
    which is no probability, enters as it is."""
    odds = np.array([-2.0, -2, 0, 1, -2, -2, -2])

    def face(rest):
        return np.column_stack([1 / (1 + np.exp(-(odds + rest))), odds / 4])

    grid = grid_of(face(0), face(3), face(0), names=("AU04", "valence"))
    people = np.array([0, 1, 2])
    for how, alike in (("log-odds", True), ("plain", False)):
        options = SequenceOptions(normalise="subject", probabilities=how)
        normaliser = fit_normaliser(grid, options, people)
        one, two, _ = to_sequences(grid, options, normaliser, people).take(np.arange(3))
        assert np.allclose(one, two, atol=1e-4) == alike, how
        scaled = (odds - np.median(odds)) / 4 / normaliser.scale[1]
        np.testing.assert_allclose(one[:, 1], scaled, atol=1e-5)


def test_log_odds_are_finite_at_0_and_1_and_leave_gaps_alone():
    grid = grid_of([0, 1, NAN, 0.5], names=("happiness",))
    as_is = Normaliser(names=("happiness",), mean=(0.0,), scale=(2.0,), low=(-6.0,), high=(6.0,))
    found = to_sequences(grid, SequenceOptions(probabilities="log-odds", fill="interpolate"), as_is)
    assert found.values[:, 0].tolist() == pytest.approx([-3, 3, 1.5, 0])
    assert found.outside.tolist() == [0]


@pytest.mark.parametrize("probabilities", ["plain", "log-odds"])
def test_no_video_at_all_has_no_sequence(probabilities):
    grid = select(grid_of([1, 0], names=("AU04",)), np.array([], np.int64), ("AU04",))
    as_is = Normaliser(**{**vars(AS_IS), "names": ("AU04",)})
    assert len(to_sequences(grid, SequenceOptions(probabilities=probabilities), as_is)) == 0


def test_log_odds_of_intensities_beyond_1_are_refused():
    grid = grid_of([0, 3.2], names=("AU01_r",))
    with pytest.raises(ValueError, match=r"log-odds: AU01_r runs from 0 to 3\.2 .* give plain"):
        fit_normaliser(grid, SequenceOptions(probabilities="log-odds"), None)


def test_a_persons_rest_is_over_all_their_videos():
    grid = grid_of([0, 0, 0, 0, 0], [4, 4])
    found = to_sequences(grid, SequenceOptions(normalise="subject"), AS_IS, np.array([0, 0]))
    assert found.values[:, 0].tolist() == [0] * 5 + [4, 4]
    found = to_sequences(grid, SequenceOptions(normalise="subject"), AS_IS, None)  # nobody known: each by itself
    assert found.values[:, 0].tolist() == [0] * 7


def test_steps_outside_the_trainings_range_are_counted():
    normaliser = Normaliser(names=("valence",), mean=(0.0,), scale=(1.0,), low=(0.0,), high=(1.0,))
    found = to_sequences(grid_of([0.5, 1.5, NAN, -0.5], [0, 1]), SequenceOptions(), normaliser)
    assert found.outside.tolist() == pytest.approx([2 / 3, 0])


def test_videos_without_a_face_have_no_sequence():
    grid = grid_of([1, 2], [NAN, NAN], [3])
    assert has_steps(grid).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="without a face"):
        to_sequences(grid, SequenceOptions(), AS_IS)
    kept = select(grid, np.array([2, 0]), ("valence",))
    assert [each[:, 0].tolist() for each in to_sequences(kept, SequenceOptions(), AS_IS).take(np.arange(2))] == [
        [3],
        [1, 2],
    ]
    with pytest.raises(ValueError, match="no training video shows a face"):
        fit_normaliser(grid_of([NAN]), SequenceOptions(), None)


@pytest.mark.parametrize(
    ("asked", "count", "first"),
    [(["all"], 26, "valence"), (["va"], 2, "valence"), (["expressions"], 7, "neutral"), (["aus"], 17, "AU01"),
     (["AU12", "va"], 3, "valence"), (["VA", "AUs"], 19, "valence")],
)  # fmt: skip
def test_descriptors_are_chosen_by_family_or_name(asked, count, first):
    names = chosen_names(asked, MMA26.names)
    assert (len(names), names[0]) == (count, first)
    assert list(names) == sorted(names, key=MMA26.names.index)


def test_a_name_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match=r"descriptors AU99: .*none of that name.*valence, arousal"):
        chosen_names(["AU99"], MMA26.names)
    with pytest.raises(ValueError, match="do not fit a model of"):
        to_sequences(grid_of([1], names=("arousal",)), SequenceOptions(), AS_IS)


def test_a_normaliser_goes_through_json():
    assert Normaliser.from_dict(AS_IS.to_dict()) == AS_IS
