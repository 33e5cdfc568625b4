"""Several workers: real processes over gloo train the masked RNN as one does."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import reaction_worlds
from reaction_worlds import CASES
from training_worlds import one_thread, run_worlds  # noqa: F401

from mma.training.world import World
from rnn.training.loop import fair_shares

STEPS = [(name, size) for name, (sizes, _) in CASES.items() for size in sizes if not name.startswith("epochs")]
EXACT = [case for case in STEPS if "float32" not in case[0]]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return run_worlds(tmp_path_factory.mktemp("worlds"), reaction_worlds.__file__, CASES)


@functools.cache
def alone(name: str) -> dict:
    return CASES[name][1](World())


@pytest.mark.parametrize(("name", "size"), EXACT)
def test_the_first_gradients_are_those_of_one_worker(worlds, name, size):
    """Equal and unequal shards, dropout and clipping on, one way and both."""
    expected = alone(name)["gradients"]
    assert max(np.abs(each).max() for each in expected.values()) > 0.01
    for found in worlds[name, size]:
        for parameter, gradient in expected.items():
            assert gradient.dtype == np.float64
            np.testing.assert_allclose(
                found["gradients"][parameter], gradient, rtol=1e-10, atol=1e-10, err_msg=parameter
            )


@pytest.mark.parametrize(("name", "size"), [case for case in EXACT if case[0].startswith("sgd")])
def test_twenty_steps_of_sgd_end_where_one_worker_ends(worlds, name, size):
    """Weights and the running statistics of the norm, on every rank."""
    expected = alone(name)
    assert len(set(expected["losses"])) == 20
    for found in worlds[name, size]:
        np.testing.assert_allclose(found["losses"], expected["losses"], rtol=0, atol=1e-8)
        for parameter, weights in expected["end"].items():
            np.testing.assert_allclose(found["end"][parameter], weights, rtol=0, atol=1e-8, err_msg=parameter)
    assert np.abs(expected["end"]["norm.running_mean"]).max() > 1e-3


def test_twenty_steps_of_adam_in_float32_end_where_one_worker_ends(worlds):
    expected = alone("adam, float32")
    for found in worlds["adam, float32", 2]:
        for parameter, weights in expected["end"].items():
            np.testing.assert_allclose(found["end"][parameter], weights, rtol=0, atol=1e-5, err_msg=parameter)


@pytest.mark.parametrize("name", ["sgd, 13", "adam", "adamw"])
def test_the_routed_layer_with_its_counters_and_moments_is_that_of_one_worker(worlds, name):
    """That of one worker follows a dense optimiser block by block: `test_routed`."""
    expected = alone(name)
    assert expected["routed"]["0/count"].max() == 20
    for found in worlds[name, 2]:
        for key, value in expected["routed"].items():
            np.testing.assert_allclose(found["routed"][key], value, rtol=0, atol=1e-8, err_msg=key)
        weight = "readout.dense.weight"
        np.testing.assert_allclose(found["end"][weight], expected["end"][weight], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["epochs", "epochs, stopped in between"])
def test_whole_epochs_are_those_of_one_worker(worlds, name):
    """The same order of videos, losses, validation scores and predictions on every rank, also after a resumption."""
    expected = alone("epochs")
    for found in worlds[name, 2]:
        for key, value in expected["routed"].items():
            np.testing.assert_allclose(found["routed"][key], value, rtol=0, atol=1e-8, err_msg=key)
        for theirs, ours in zip(found["history"], expected["history"], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-7)
        for key in ("predictions", "one"):
            np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 7, 128])
def test_workers_share_a_batch_to_the_longest_video(size, count):
    """Each one takes as many videos as any other, and as many steps but for a video; consecutive shares differ more."""
    lengths = np.random.default_rng(count).integers(20, 601, count)
    shares = fair_shares(lengths, size)
    assert sorted(np.concatenate(shares).tolist()) == list(range(count))
    assert np.ptp([len(each) for each in shares]) <= 1
    steps = [int(lengths[each].sum()) for each in shares]
    assert np.ptp(steps) <= max(lengths, default=0)
    if (count, size) == (128, 2):
        assert np.ptp(steps) < 100 < np.ptp([lengths[half].sum() for half in (slice(64), slice(64, None))])
