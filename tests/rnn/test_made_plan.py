"""The plan of a made corpus: splits, subjects, statistics, options, tables, and gate 3 of CORPUS.md."""

from collections import Counter, defaultdict
from dataclasses import fields, replace

import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rnn.made import CorpusOptions, data_info, plan_corpus, subjects_table, truth_table
from rnn.made.ceiling import pearson
from rnn.made.subjects import COUNTRIES
from rnn.reactions import REACTIONS


@pytest.fixture(scope="module")
def many_clips():
    return plan_corpus(CorpusOptions(videos=8000, seed=3))


def by_split(clips):
    subjects = defaultdict(set)
    for clip in clips:
        subjects[clip.split].add(clip.subject.subject)
    return Counter(clip.split for clip in clips), subjects


@pytest.mark.parametrize("videos", [1, 2, 3, 12, 59, 60, 100, 400, 4000])
def test_splits_share_no_subject_and_hold_enough_of_them(videos):
    clips = plan_corpus(CorpusOptions(videos=videos))
    counts, subjects = by_split(clips)
    assert len(clips) == len({clip.video_id for clip in clips}) == videos
    assert sum(len(people) for people in subjects.values()) == len(set().union(*subjects.values()))
    if videos >= 3:
        assert set(counts) == {"Train", "Val", "Test"}
    if videos >= 60:
        assert len(subjects["Train"]) >= 30
        assert len(subjects["Val"]) >= 15
        assert len(subjects["Test"]) >= 15
    if videos >= 400:
        assert counts["Train"] / videos == pytest.approx(0.63, abs=0.01)
        assert counts["Val"] == counts["Test"]


def test_large_corpora_have_about_eleven_clips_a_subject(many_clips):
    clips_each = Counter(clip.subject.subject for clip in many_clips)
    assert 10.5 < np.mean(list(clips_each.values())) < 12
    assert min(clips_each.values()) >= 1


def test_equal_seeds_give_equal_corpora_and_others_do_not():
    options = CorpusOptions(videos=40, seed=5)
    assert plan_corpus(options) == plan_corpus(options)
    assert plan_corpus(options) != plan_corpus(replace(options, seed=6))


def test_felt_intensities_have_the_stated_statistics(many_clips):
    felt = np.array([clip.felt for clip in many_clips])
    shown = np.array([clip.shown for clip in many_clips])
    assert set(np.unique((felt > 0).sum(axis=1))) == {1, 2, 3}
    assert (felt.max(axis=1) < 0.3).mean() == pytest.approx(0.2, abs=0.02)
    assert (shown[felt > 0] == 0).mean() == pytest.approx(0.1, abs=0.02)
    assert (shown[felt == 0] == 0).all()
    assert shown.max() <= 1
    assert np.log([clip.subject.expressivity for clip in many_clips]).std() == pytest.approx(0.3, abs=0.04)
    r = np.corrcoef(felt.T)
    kin = [REACTIONS.index(name) for name in ("Fear", "Anxiety", "Surprise", "Empathic-Pain")]
    assert all(r[a, b] > 0.05 for a in kin for b in kin if a < b)
    assert r[0, 1] > 0.1
    assert all(r[a, b] < 0 for a in kin for b in (0, 1))


def test_labels_are_scaled_to_a_largest_of_one(many_clips):
    labels = np.array([clip.labels for clip in many_clips])
    np.testing.assert_array_equal(labels.max(axis=1), 1.0)
    assert labels.min() >= 0


def test_metadata_do_not_predict_the_reactions(many_clips):
    """Gate 3, for what this half knows: length, frame rate, Country, Age, and the tone behind brightness."""
    metadata = np.array(
        [
            [c.seconds, c.num_frames, c.fps, c.subject.age, c.subject.tone, c.subject.country == COUNTRIES[0]]
            for c in many_clips
        ],
        dtype=float,
    )
    labels = np.array([clip.labels for clip in many_clips])
    groups = [clip.subject.subject for clip in many_clips]
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(0, 5, 11)))
    predicted = cross_val_predict(model, metadata, labels, groups=groups, cv=GroupKFold(5))
    assert pearson(predicted, labels).max() < 0.05


def test_a_planted_country_gap_changes_nothing_but_the_labels_of_that_country():
    plain = plan_corpus(CorpusOptions(videos=300))
    gap = plan_corpus(CorpusOptions(videos=300, gaps=("country",)))
    assert [c.felt for c in gap] == [c.felt for c in plain]
    assert [c.seed for c in gap] == [c.seed for c in plain]
    for before, after in zip(plain, gap, strict=True):
        assert (after.subject.style.noise > before.subject.style.noise) == (after.subject.country == "South Africa")
        if after.subject.country == "United States":
            assert after.subject == before.subject


def test_a_planted_tone_gap_lowers_the_contrast_of_dark_faces_alone():
    plain = plan_corpus(CorpusOptions(videos=300))
    gap = plan_corpus(CorpusOptions(videos=300, gaps=("tone",)))
    assert {clip.subject.contrast for clip in plain} == {1.0}
    for before, after in zip(plain, gap, strict=True):
        assert after.labels == before.labels
        assert after.subject.tone == before.subject.tone
        assert (after.subject.contrast < 1) == (after.subject.tone > 0.5)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("videos", 0),
        ("seed", -1),
        ("seconds", (5.0, 3.0)),
        ("seconds", (0.0, 3.0)),
        ("fps", 0.0),
        ("timing", "loose"),
        ("stimuli", 0),
        ("label_noise", -0.5),
        ("gaps", ("country", "age")),
    ],
)
def test_nonsense_options_are_refused_in_one_line_that_names_the_option(option, value):
    with pytest.raises(ValueError, match="--" + option.rstrip("s").replace("_", "-")) as refused:
        CorpusOptions(**{"videos": 10, option: value})
    assert "\n" not in str(refused.value)
    assert option in {field.name for field in fields(CorpusOptions)}


def test_data_info_has_the_abaw5_layout_with_blank_test_labels():
    clips = plan_corpus(CorpusOptions(videos=80))
    table = data_info(clips)
    assert table.column_names == ["File_ID", "Split", *REACTIONS, "Age", "Country"]
    for row, clip in zip(table.to_pylist(), clips, strict=True):
        assert row["File_ID"] == f"[{clip.video_id}]"
        blank = [row[reaction] is None for reaction in REACTIONS]
        assert blank == [clip.split == "Test"] * 7
        if clip.split != "Test":
            assert tuple(row[reaction] for reaction in REACTIONS) == clip.labels


def test_truth_holds_the_labels_of_every_split_beside_felt_and_shown():
    clips = plan_corpus(CorpusOptions(videos=80))
    for row, person, clip in zip(truth_table(clips).to_pylist(), subjects_table(clips).to_pylist(), clips, strict=True):
        assert row["video_id"] == person["video_id"] == clip.video_id
        assert person["subject"] == clip.subject.subject
        for i, reaction in enumerate(REACTIONS):
            assert row[reaction] == clip.labels[i]
            assert row[f"felt_{reaction}"] == clip.felt[i]
            assert row[f"shown_{reaction}"] == clip.shown[i]
