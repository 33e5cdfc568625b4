"""Which samples an epoch shows: shares, rounds, batches and weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mma.training.draw import batch_count, batches, epoch_length, epoch_order, rarity_weights


def members_of(*sizes: int) -> dict[str, np.ndarray]:
    """Sets a, b, c … of these sizes, their samples scattered over all."""
    rows = np.random.default_rng(1).permutation(sum(sizes))
    return dict(zip("abcdefgh", np.split(rows, np.cumsum(sizes)[:-1])))


def owners(order: np.ndarray, members: dict[str, np.ndarray]) -> np.ndarray:
    """(len(order), sets) one-hot: whose each sample is."""
    return np.stack([np.isin(order, own) for own in members.values()], axis=1)


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    shares=st.lists(st.floats(0.05, 5), min_size=4, max_size=4),
    count=st.integers(4, 150),
    epoch=st.integers(0, 5),
    balanced=st.booleans(),
)
def test_any_stretch_holds_the_stated_shares(sizes, shares, count, epoch, balanced):
    """Within one sample for two sets, s - 1 for s of them: every stretch of every length."""
    members = members_of(*sizes)
    by_name = dict(zip(members, shares))
    weights = np.arange(1.0, sum(sizes) + 1) if balanced else None
    order = epoch_order(members, by_name, count, seed=7, epoch=epoch, weights=weights)
    assert order.dtype == np.int64
    shown = owners(order, members)
    assert abs(len(order) - count) <= len(members)
    assert len(order) == epoch_length(members, by_name, count, epoch)
    wanted = np.array(list(by_name.values())) / sum(by_name.values())
    assert np.abs(shown.sum(axis=0) - count * wanted).max() <= 1
    # Within the epoch as it came out by rounding; a stretch's miss is the difference of two prefixes' misses.
    miss = np.zeros((len(order) + 1, len(members)))
    miss[1:] = np.cumsum(shown - shown.mean(axis=0), axis=0)
    assert np.ptp(miss, axis=0).max() <= max(1, len(members) - 1) + 1e-9


def test_shares_not_sizes_decide_where_they_are_given():
    order = epoch_order(members_of(1000, 10), {"a": 1.0, "b": 3.0}, 400, seed=0, epoch=0)
    assert owners(order, members_of(1000, 10)).sum(axis=0).tolist() == [100, 300]


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(1, 15), min_size=1, max_size=3), count=st.integers(3, 60), seed=st.integers(0, 99))
def test_no_sample_is_shown_twice_before_all_of_its_set_were(sizes, count, seed):
    """Over the borders of epochs too: each set's samples come in whole rounds, however the epochs cut them."""
    members = members_of(*sizes)
    shares = {name: float(number + 1) for number, name in enumerate(members)}
    epochs = [epoch_order(members, shares, count, seed=seed, epoch=epoch) for epoch in range(4)]
    counts = np.zeros(sum(sizes), int)
    for order in epochs:
        for sample in order:
            counts[sample] += 1
            assert all(np.ptp(counts[own]) <= 1 for own in members.values())


def test_an_epoch_shows_every_sample_once_by_default():
    members = members_of(7, 12, 30)
    shares = {name: float(len(rows)) for name, rows in members.items()}
    for epoch in range(3):
        assert sorted(epoch_order(members, shares, 49, seed=0, epoch=epoch)) == list(range(49))


def test_the_order_is_that_of_seed_and_epoch_alone():
    members, shares = members_of(20, 30), {"a": 1.0, "b": 1.0}

    def order(seed: int, epoch: int) -> list[int]:
        return epoch_order(members, shares, 50, seed=seed, epoch=epoch).tolist()

    assert order(1, 4) == order(1, 4)
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_neighbouring_rounds_are_shuffled_apart():
    """A round says nothing of the next: positions in two rounds are uncorrelated."""
    members = {"a": np.arange(2000)}
    first, second = (epoch_order(members, {"a": 1.0}, 2000, seed=0, epoch=epoch) for epoch in (0, 1))
    assert abs(np.corrcoef(np.argsort(first), np.argsort(second))[0, 1]) < 0.1
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1


def test_weighted_draws_are_in_proportion_within_each_set():
    members = {"a": np.array([0, 2, 4]), "b": np.array([1, 3])}
    weights = np.array([1.0, 5.0, 2.0, 15.0, 7.0])
    drawn = [
        epoch_order(members, {"a": 0.5, "b": 0.5}, 4000, seed=0, epoch=epoch, weights=weights) for epoch in range(5)
    ]
    counts = np.bincount(np.concatenate(drawn), minlength=5) / 20_000
    assert counts == pytest.approx([0.05, 0.125, 0.1, 0.375, 0.35], abs=0.015)
    assert not np.array_equal(drawn[0], drawn[1])


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 300), batch_size=st.integers(1, 70))
def test_batches_cover_the_order_and_none_is_tiny(length, batch_size):
    order = np.random.default_rng(0).permutation(length)
    cut = batches(order, batch_size)
    np.testing.assert_array_equal(np.concatenate(cut), order)
    assert len(cut) == batch_count(length, batch_size)
    sizes = [len(batch) for batch in cut]
    assert sizes[:-1] == [batch_size] * (len(cut) - 1)
    assert sizes[-1] <= 1.5 * batch_size
    assert sizes[-1] >= min(length, batch_size / 2)


def test_rarity_weights_by_hand():
    """Six labelled expressions: class 0 four times, 1 and 2 once; AU0 in 1 of 4 known cells, AU1 in 3 of 4."""
    expression = np.array([0, 0, 0, 0, 1, 2, -1, -1])
    occurs = np.array([[1, 1], [0, 1], [0, 1], [0, 0], [0, 0], [0, 0], [1, 1], [0, 0]], np.float32)
    known = np.array([[1, 1]] * 4 + [[0, 0]] * 4, bool)
    expected = np.array([1 / 4, 4 / 6, 4 / 6, 4 / 6, 1 / 6, 1 / 6, 1, 1]) ** -1
    assert rarity_weights(expression, occurs, known, 1.0) == pytest.approx(expected)
    assert rarity_weights(expression, occurs, known, 0.5) == pytest.approx(np.sqrt(expected))
    assert rarity_weights(expression, occurs, known, 0.0) == pytest.approx(np.ones(8))


def test_full_balance_shows_each_class_alike():
    expression = np.repeat([0, 1, 2], [900, 90, 10])
    nothing = np.zeros((1000, 3), np.float32)
    weights = rarity_weights(expression, nothing, nothing.astype(bool), 1.0)
    order = epoch_order({"a": np.arange(1000)}, {"a": 1.0}, 6000, seed=0, epoch=0, weights=weights)
    assert np.bincount(expression[order]) / 6000 == pytest.approx([1 / 3] * 3, abs=0.03)


def test_weights_without_any_label_are_even():
    unknown = np.zeros((4, 2), bool)
    assert rarity_weights(np.full(4, -1), np.ones((4, 2), np.float32), unknown, 1.0).tolist() == [1, 1, 1, 1]
