"""Which samples an epoch shows, in which order, and the random numbers that belong to each of them.

All of it is decided by seed, epoch and sample alone: any number of workers, a restart in mid-run, and a resumed run see
the same batches, and a sample is changed by augmentation in the same way wherever it is computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def epoch_order(
    members: Mapping[str, Indices],
    shares: Mapping[str, float],
    count: int,
    *,
    seed: int,
    epoch: int,
    weights: npt.NDArray[np.float64] | None = None,
) -> Indices:
    """The samples of an epoch in their order, int64 (about count,), the sets mixed in the stated shares all along.

    Args:
        members: set -> its samples, as indices into all samples.
        shares: set -> its share of the samples shown; they are taken relative to their sum.
        count: samples to show.
        seed: root of all draws.
        epoch: counts from 0.
        weights: of all samples, (number of samples,): drawn with replacement in proportion. None: each set goes round
            in a fresh random order, over epoch borders too, so that no sample is shown twice before all have been.

    Counts are rounded by set, so that an epoch may differ by a few samples. Any stretch of the order holds each set's
    share to within one sample for two sets, and s - 1 samples for s of them: a batch is mixed, not only an epoch.
    """
    drawn, places = [], []
    for number, (name, shown) in enumerate(_shown(members, shares, count, epoch).items()):
        own = members[name]
        rng = np.random.default_rng([seed, epoch, number])
        if weights is None:
            drawn.append(own[_round_and_round(len(own), shown.start, shown.stop, [seed, number])])
        else:
            probability = weights[own] / weights[own].sum()
            drawn.append(own[rng.choice(len(own), len(shown), p=probability)])
        # Evenly spaced: places drawn one by one would let a stretch miss its share by twice as much.
        places.append((np.arange(len(shown)) + rng.random()) / max(len(shown), 1))
    order = np.concatenate(drawn)[np.argsort(np.concatenate(places), kind="stable")]
    return order.astype(np.int64)


def epoch_length(members: Mapping[str, Indices], shares: Mapping[str, float], count: int, epoch: int) -> int:
    """The length of `epoch_order`, without drawing it."""
    return sum(len(shown) for shown in _shown(members, shares, count, epoch).values())


def _shown(members: Mapping[str, Indices], shares: Mapping[str, float], count: int, epoch: int) -> dict[str, range]:
    """Which of all samples that a set ever shows are of this epoch, numbered from its first epoch on."""
    total = sum(shares[name] for name in members)
    edges = {name: [round(count * shares[name] / total * each) for each in (epoch, epoch + 1)] for name in members}
    return {name: range(first, last) for name, (first, last) in edges.items()}


def _round_and_round(size: int, first: int, last: int, seed: Sequence[int]) -> Indices:
    """Positions `first` to before `last` of an endless row of shuffled rounds through `size` members."""
    rounds = range(first // size, -(-last // size))
    endless = [np.random.default_rng([*seed, turn, 1]).permutation(size) for turn in rounds]
    skipped = rounds.start * size
    return np.concatenate([*endless, np.empty(0, np.int64)])[first - skipped : last - skipped].astype(np.int64)


def batches(order: Indices, batch_size: int) -> list[Indices]:
    """The global batches of an epoch. A rest under half a batch is joined to the batch before it."""
    count = batch_count(len(order), batch_size)
    edges = [min(index * batch_size, len(order)) for index in range(count)] + [len(order)]
    return [order[start:end] for start, end in itertools.pairwise(edges)]


def batch_count(length: int, batch_size: int) -> int:
    """How many `batches` an order of this length makes."""
    return max(1, round(length / batch_size))


def repeats(order: Indices) -> Indices:
    """How often each sample of an epoch's order came before in it, int64 (N,): 0 unless it is drawn again."""
    by_sample = np.argsort(order, kind="stable")
    starts = np.flatnonzero(np.diff(order[by_sample], prepend=-1))
    turns = np.empty(len(order), np.int64)
    turns[by_sample] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return turns


def keyed_uniforms(
    samples: npt.ArrayLike, count: int, *, seed: int, epoch: int, turn: npt.ArrayLike = 0
) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) that belong to (seed, epoch, sample), float64 (N, count), whatever the company.

    `turn` (N,): of a sample that an epoch shows several times, which of them (`repeats`).
    A hash of the key in counter mode (the finaliser of SplitMix64, Steele et al. 2014), all rows at once: a generator
    a sample would cost more than the sample's augmentation.
    """
    root = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    shown = np.asarray(samples).astype(np.uint64) + (np.asarray(turn).astype(np.uint64) << np.uint64(40))
    rows = _mixed(shown * _GOLDEN + root)
    cells = _mixed(rows[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)
    return np.asarray((cells >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def rarity_weights(
    expression: Indices, action_units: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], power: float
) -> npt.NDArray[np.float64]:
    """Class-balanced sampling: (share of the rarest expression or action unit that a sample shows) ^ -power, (N,).

    Labels as in `LabelArrays`; shares are of the labelled samples. `power` 0 draws all alike, 1 balances classes fully.
    A sample that shows neither (no label, or no unit that occurs) weighs 1, the least there is.
    """
    rarest = np.ones(len(expression))
    labelled = expression >= 0
    if labelled.any():
        share = np.bincount(expression[labelled]) / labelled.sum()
        rarest[labelled] = share[expression[labelled]]
    positive = known & (action_units > 0.5)
    share = positive.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    rarest = np.minimum(rarest, np.where(positive, share, 1.0).min(axis=1, initial=1.0))
    return rarest**-power
