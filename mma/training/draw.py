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
    share to within about one sample: a batch is mixed, not only an epoch.
    """
    total = sum(shares[name] for name in members)
    drawn, places = [], []
    for number, (name, own) in enumerate(members.items()):
        rng = np.random.default_rng([seed, epoch, number])
        first, last = (round(count * shares[name] / total * each) for each in (epoch, epoch + 1))
        share = last - first
        if weights is None:
            drawn.append(own[_round_and_round(len(own), first, last, [seed, number])])
        else:
            probability = weights[own] / weights[own].sum()
            drawn.append(own[rng.choice(len(own), share, p=probability)])
        places.append((np.arange(share) + rng.random(share)) / max(share, 1))
    order = np.concatenate(drawn)[np.argsort(np.concatenate(places), kind="stable")]
    return order.astype(np.int64)


def _round_and_round(size: int, first: int, last: int, seed: Sequence[int]) -> Indices:
    """Positions `first` to before `last` of an endless row of shuffled rounds through `size` members."""
    rounds = range(first // size, -(-last // size))
    endless = [np.random.default_rng([*seed, turn, 1]).permutation(size) for turn in rounds]
    skipped = rounds.start * size
    return np.concatenate([*endless, np.empty(0, np.int64)])[first - skipped : last - skipped].astype(np.int64)


def batches(order: Indices, batch_size: int) -> list[Indices]:
    """The global batches of an epoch. A rest under half a batch is joined to the batch before it."""
    count = max(1, round(len(order) / batch_size))
    edges = [min(index * batch_size, len(order)) for index in range(count)] + [len(order)]
    return [order[start:end] for start, end in itertools.pairwise(edges)]


def keyed_uniforms(samples: npt.ArrayLike, count: int, *, seed: int, epoch: int) -> npt.NDArray[np.float64]:
    """Uniform numbers in [0, 1) that belong to (seed, epoch, sample), float64 (N, count), whatever the company.

    A hash of the key in counter mode (the finaliser of SplitMix64, Steele et al. 2014), all rows at once: a generator
    a sample would cost more than the sample's augmentation.
    """
    root = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
    rows = _mixed(np.asarray(samples).astype(np.uint64) * _GOLDEN + root)
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
    A sample without a label, or with nothing but common ones, weighs as one that shows the commonest.
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
