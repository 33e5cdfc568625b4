"""The ceiling of a made corpus: nobody passes it, and a good model comes near (CORPUS.md, "The ceiling")."""

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from mma.descriptors import MMA26
from rnn.made import (
    CorpusOptions,
    ceiling,
    expected_labels,
    expected_labels_of_display,
    plan_corpus,
    true_descriptors,
)
from rnn.made.ceiling import pearson
from rnn.reactions import REACTIONS


class Corpus:
    def __init__(self, options, redraws=150):
        self.clips = plan_corpus(options)
        self.felt, self.shown, self.labels = (
            np.array([getattr(clip, name) for clip in self.clips]) for name in ("felt", "shown", "labels")
        )
        self.train = np.array([clip.split == "Train" for clip in self.clips])
        self.subjects = np.array([clip.subject.subject for clip in self.clips])
        self.country = np.array([clip.subject.country for clip in self.clips])
        noise = np.array([clip.subject.style.noise for clip in self.clips])
        self.by_felt = expected_labels(self.felt, noise, redraws)
        self.by_display = expected_labels_of_display(self.shown, noise, redraws)

    def gain(self, predicted, bound, draws=40):
        """Mean Pearson of `predicted` less that of `bound`, held-out clips, with its standard error over subjects."""
        held_out = np.flatnonzero(~self.train)
        rows = {name: held_out[self.subjects[held_out] == name] for name in set(self.subjects[held_out])}
        names = sorted(rows)
        rng = np.random.default_rng(0)

        def difference(i):
            return (pearson(predicted[i], self.labels[i]) - pearson(bound[i], self.labels[i])).mean()

        redrawn = [np.concatenate([rows[n] for n in rng.choice(names, len(names))]) for _ in range(draws)]
        return difference(held_out), np.std([difference(i) for i in redrawn])

    def boosted(self, inputs):
        model = HistGradientBoostingRegressor(max_iter=60, learning_rate=0.12, max_leaf_nodes=15, early_stopping=False)
        return np.column_stack([model.fit(inputs[self.train], y[self.train]).predict(inputs) for y in self.labels.T])


@pytest.fixture(scope="module")
def corpus():
    return Corpus(CorpusOptions(videos=4000, seed=2))


def test_nothing_that_knows_what_was_felt_passes_the_label_ceiling(corpus):
    over_maximum = corpus.felt / corpus.felt.max(axis=1, keepdims=True)
    boosted = corpus.boosted(np.hstack([corpus.felt, over_maximum]))
    for predicted in (corpus.felt, over_maximum, boosted):
        gain, error = corpus.gain(predicted, corpus.by_felt)
        assert gain < 2 * error
    gain, _ = corpus.gain(boosted, corpus.by_felt)
    assert gain > -0.03, "the ceiling is so high that nothing comes near"


def test_nothing_that_knows_the_display_passes_its_ceiling(corpus):
    over_maximum = corpus.shown / corpus.shown.max(axis=1, keepdims=True).clip(1e-9)
    boosted = corpus.boosted(np.hstack([corpus.shown, over_maximum]))
    for predicted in (corpus.shown, over_maximum, boosted):
        gain, error = corpus.gain(predicted, corpus.by_display)
        assert gain < 2 * error
    gain, _ = corpus.gain(boosted, corpus.by_display)
    assert gain > -0.03, "the ceiling is so high that nothing comes near"
    gain, error = corpus.gain(corpus.by_display, corpus.by_felt)
    assert gain < -2 * error, "hidden feelings must cost something"


def test_a_country_gap_is_found_where_planted_and_not_where_there_is_none(corpus):
    def gap(some):
        score = {c: pearson(some.by_display[some.country == c], some.labels[some.country == c]).mean()
                 for c in set(some.country)}  # fmt: skip
        return score["United States"] - score["South Africa"]

    assert abs(gap(corpus)) < 0.03
    assert gap(Corpus(CorpusOptions(videos=2000, seed=2, gaps=("country",)), redraws=40)) > 0.1


def test_ridge_on_summaries_reads_displays_well_but_leaves_room_for_time():
    clips = plan_corpus(CorpusOptions(videos=1500, seed=4))
    sequences = [np.stack([found[name] for name in MMA26.names]) for found in map(true_descriptors, clips)]
    means = np.array([x.mean(axis=1) for x in sequences])
    summaries = np.hstack([means, [x.max(axis=1) for x in sequences], [x.std(axis=1) for x in sequences]])
    labels = np.array([clip.labels for clip in clips])
    train = np.array([clip.split == "Train" for clip in clips])
    bound = expected_labels_of_display(
        np.array([clip.shown for clip in clips]), np.array([clip.subject.style.noise for clip in clips]), 150
    )
    top = pearson(bound[~train], labels[~train]).mean()

    def share(inputs):
        inputs = StandardScaler().fit(inputs[train]).transform(inputs)
        model = RidgeCV(np.logspace(-1, 4, 11)).fit(inputs[train], labels[train])
        return pearson(model.predict(inputs[~train]), labels[~train]).mean() / top

    assert 0.72 < share(summaries) < 0.88
    assert share(means) < share(summaries) - 0.05
    singles = [pearson(summaries[:, [i] * 7], labels) for i in range(summaries.shape[1])]
    assert np.abs(singles).max(axis=0).mean() / top < 0.75, "some descriptor alone names its reaction"


def test_the_ceiling_has_the_keys_of_its_file_and_is_repeatable():
    clips = plan_corpus(CorpusOptions(videos=120))
    found = ceiling(clips, redraws=50)
    assert found == ceiling(clips, redraws=50)
    assert set(found) == {"train", "val", "test"}
    for split in found.values():
        assert set(split) == {"display", "label"}
        for scores in split.values():
            assert set(scores) == {"mean", *REACTIONS}
            assert scores["mean"] == pytest.approx(np.mean([scores[reaction] for reaction in REACTIONS]))


def test_a_corpus_of_one_clip_has_a_ceiling_of_zero_and_not_nan():
    assert ceiling(plan_corpus(CorpusOptions(videos=1)), redraws=20)["train"]["label"]["mean"] == 0.0
