"""Played clips: displays, frame truth and the annotators' labels; gate 4 of CORPUS.md."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mma.descriptors import MMA26
from mma.prior import DU_PRIOR
from rnn.made import CorpusOptions, frame_table, frame_times, plan_corpus, play, true_descriptors
from rnn.made.displays import DISPLAYS, REACTION_DISPLAYS
from rnn.made.episodes import draw_episodes
from rnn.made.timeline import CONTROLS
from rnn.reactions import REACTIONS


@pytest.fixture(scope="module")
def clips():
    return plan_corpus(CorpusOptions(videos=400, seed=1))


@pytest.fixture(scope="module")
def frames(clips):
    """Annotated frames of 200 clips, as columns of NumPy arrays."""
    tables = [frame_table(clip, play(clip, frame_times(clip))).to_pandas() for clip in clips[:200]]
    return {name: np.concatenate([table[name].to_numpy() for table in tables]) for name in tables[0].columns}


def test_a_clip_plays_alike_on_any_grid(clips):
    for clip in clips[:20]:
        times_s = frame_times(clip)
        whole, part = play(clip, times_s), play(clip, times_s[1::3])
        for name in CONTROLS:
            np.testing.assert_allclose(part.controls[name], whole.controls[name][1::3], atol=1e-6)
        for name, values in whole.truth.items():
            if name == "true_expression":
                assert list(part.truth[name]) == list(values[1::3])
            else:
                np.testing.assert_allclose(part.truth[name], values[1::3], atol=1e-6)
        labels, some = frame_table(clip, whole), frame_table(clip, part)
        for name in ("frame", "expression", *MMA26.action_units):
            assert some[name].to_pylist() == labels[name].to_pylist()[1::3]


def test_controls_stay_in_their_ranges(clips):
    assert set(CONTROLS) >= {*MMA26.action_units, "AU45", "speech"}
    seen = {name: [] for name in CONTROLS}
    for clip in clips[:150]:
        controls = play(clip, frame_times(clip)).controls
        assert tuple(controls) == CONTROLS
        for name, values in controls.items():
            assert values.shape == (clip.num_frames,)
            assert values.dtype == np.float32
            seen[name].append(values)
    largest = {"gaze_x": 1, "gaze_y": 1, "yaw_deg": 15, "pitch_deg": 10, "roll_deg": 15}
    for name, parts in seen.items():
        values = np.concatenate(parts)
        assert np.isfinite(values).all()
        assert values.max() <= largest.get(name, 1)
        assert values.min() >= -largest.get(name, 0)
        assert values.std() > 0, f"{name} never moves"


def test_what_is_felt_and_hidden_leaves_no_trace(clips):
    for clip in clips[:20]:
        stripped = replace(clip, felt=clip.shown, labels=(0.0,) * 7)
        first, second = play(clip, frame_times(clip)), play(stripped, frame_times(clip))
        for name in CONTROLS:
            np.testing.assert_array_equal(first.controls[name], second.controls[name])


def test_every_shown_reaction_reaches_its_peak_inside_the_clip(clips):
    for clip in clips:
        episodes = draw_episodes(clip)
        for reaction, peak in enumerate(clip.shown):
            own = episodes.display // 2 == reaction
            assert own.any() == (peak > 0)
            if peak > 0:
                assert episodes.peak[own].max() == peak
        meant = episodes.display < 2 * len(REACTIONS)
        apex = episodes.times_s[meant, 1]
        assert (apex > 0).all()
        assert (apex < clip.seconds).all()
        onset = np.diff(episodes.times_s, axis=1)[meant]
        assert (onset[:, 0] >= 0.2 - 1e-9).all()
        assert (onset[:, 0] <= 0.8 + 1e-9).all()
        assert (onset[:, 2] > onset[:, 0]).all(), "the offset is longer than the onset"


def test_no_action_unit_names_a_reaction():
    for reaction, pair in REACTION_DISPLAYS.items():
        others = [d for name, displays in REACTION_DISPLAYS.items() if name != reaction for d in displays]
        used = {au for d in others for au in (*d.action_units, *d.optional)} | {"AU09"}
        assert {au for d in pair for au in d.action_units} <= used, reaction


@pytest.mark.parametrize("stimuli", [1, 4])
def test_locked_apexes_follow_the_stimulus_and_free_ones_do_not(stimuli):
    locked = plan_corpus(CorpusOptions(videos=300, timing="locked", stimuli=stimuli))
    longest = [clip for clip in locked if clip.seconds > 7.8]
    assert len({clip.cues_s for clip in longest}) == min(stimuli, len(longest))
    away = []
    for clip in locked:
        episodes = draw_episodes(clip)
        for reaction in np.flatnonzero(clip.shown):
            first = np.flatnonzero(episodes.display // 2 == reaction)[0]
            away.append(episodes.times_s[first, 1] - clip.subject.latency_s - clip.cues_s[reaction])
    assert np.mean(np.abs(away) < 0.3) > 0.95
    free = plan_corpus(CorpusOptions(videos=300))
    assert all(clip.cues_s == () for clip in free)
    times = np.concatenate([draw_episodes(clip).times_s[:, 1] / clip.seconds for clip in free])
    assert np.histogram(times, 5, (0, 1))[0].min() > 0.1 * len(times)


def test_occurrence_follows_intensity_and_the_band_between_is_unknown(clips):
    exact = [replace(clip, label_noise=0.0) for clip in clips[:60]]
    for clip in exact:
        table = frame_table(clip, play(clip, frame_times(clip))).to_pydict()
        for au in MMA26.action_units:
            for label, intensity in zip(table[au], table[f"true_{au}"], strict=True):
                expected = None if 0.3 <= intensity < 0.5 else float(intensity >= 0.4)
                assert label == expected
        assert table["expression"] == table["true_expression"]
        assert table["valence"] == table["true_valence"]


def test_annotators_flip_a_few_labels_while_the_face_moves_and_none_at_rest(frames):
    flips = rest = moves = 0
    for au in MMA26.action_units:
        intensity, label = frames[f"true_{au}"], frames[au]
        known = ~np.isnan(label)
        wrong = known & (label != (intensity >= 0.4))
        still = np.abs(np.gradient(intensity)) < 1e-6
        rest += (wrong & still).sum()
        flips += wrong.sum()
        moves += (known & (np.abs(np.gradient(intensity)) > 0.03)).sum()
    assert rest < 0.05 * flips
    assert 0.03 < flips / moves < 0.08


def test_annotators_lag_behind_valence(clips):
    lags = []
    for clip in clips[:60]:
        clip = replace(clip, fps=50.0, num_frames=int(clip.seconds * 50))
        table = frame_table(clip, play(clip, frame_times(clip)))
        label, truth = np.array(table["valence"]), np.array(table["true_valence"])
        if truth.std() > 0.1:
            errors = [np.abs(label[shift:] - truth[: len(truth) - shift]).mean() for shift in range(20)]
            lags.append(int(np.argmin(errors)) / 50)
    assert len(lags) > 10
    assert np.median(lags) == pytest.approx(0.2)


def test_expressions_are_neutral_under_a_quarter_and_unknown_where_two_are_close(frames):
    share = {name: np.mean(frames["true_expression"] == name) for name in MMA26.expressions}
    assert min(share.values()) > 0.005, share
    assert 0.2 < share["neutral"] < 0.8
    unknown = pd.isna(frames["true_expression"]).mean()
    assert 0.005 < unknown < 0.1
    probabilities = np.array([frames[f"true_{name}"] for name in MMA26.expressions])
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)
    known = ~pd.isna(frames["true_expression"])
    likeliest = np.array(MMA26.expressions)[probabilities.argmax(axis=0)]
    assert (likeliest[known] == frames["true_expression"][known]).all()


def test_action_units_given_the_expression_differ_from_the_du_table_as_in_the_wild(frames):
    """Gate 4."""
    gaps, outside = [], {}
    for expression, row in DU_PRIOR.items():
        here = frames["true_expression"] == expression
        for au in MMA26.action_units:
            share = np.nanmean(frames[au][here])
            gaps.append(abs(share - row.get(au, 0.0)))
            if au not in row:
                outside[expression, au] = share
    assert 0.1 < np.mean(gaps) < 0.2, np.mean(gaps)
    for au in ("AU07", "AU10", "AU14"):
        assert outside["happiness", au] > 0.02, au


def test_descriptors_come_on_a_ten_hertz_grid_by_name(clips):
    for clip in (*clips[:10], replace(clips[0], num_frames=1)):
        found = true_descriptors(clip)
        assert set(found) == {"time_s", *MMA26.names}
        steps = len(found["time_s"])
        assert steps == max(int(np.ceil(clip.seconds * 10 - 1e-9)), 1)
        np.testing.assert_allclose(found["time_s"], np.arange(steps) / 10)
        assert all(found[name].shape == (steps,) and found[name].dtype == np.float32 for name in MMA26.names)


def test_optional_action_units_come_from_the_table():
    assert all(set(d.action_units).isdisjoint(d.optional) for d in DISPLAYS)
    assert all({*d.action_units, *d.optional} <= set(MMA26.action_units) for d in DISPLAYS)
