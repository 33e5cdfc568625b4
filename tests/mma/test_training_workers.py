"""Several workers: real processes over gloo train as one does, and their scores are those of one."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from training_worlds import CASES, epochs, made_batches, made_data, made_network, one_thread, run_worlds  # noqa: F401

from mma.training.loop import Training
from mma.training.options import TrainingOptions
from mma.training.world import World

STEPS = [(name, size) for name, (sizes, _) in CASES.items() for size in sizes if name != "epochs"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    return run_worlds(tmp_path_factory.mktemp("worlds"))


@functools.cache
def alone(name: str) -> dict:
    return CASES[name][1](World())


@pytest.mark.parametrize(("name", "size"), STEPS)
def test_the_gradients_are_those_of_one_worker(worlds, name, size):
    """Equal and unequal shards, one without any sample, with and without clipping, and frozen batch norms."""
    expected = alone(name)["gradients"]
    assert _norm(expected) > 0.4
    for found in worlds[name, size]:
        assert found["gradients"].keys() == expected.keys()
        for parameter, gradient in expected.items():
            assert gradient.dtype == np.float64
            np.testing.assert_allclose(
                found["gradients"][parameter], gradient, rtol=1e-10, atol=1e-10, err_msg=parameter
            )


@pytest.mark.parametrize(("name", "size"), STEPS)
def test_steps_of_sgd_lose_as_much_as_with_one_worker(worlds, name, size):
    expected = alone(name)["losses"]
    assert len(set(expected)) == len(expected)
    for found in worlds[name, size]:
        np.testing.assert_allclose(found["losses"], expected, rtol=0, atol=1e-8)


def test_a_clip_that_bites_is_of_the_whole_gradient():
    assert _norm(alone("13 samples")["gradients"]) > 1
    assert _norm(alone("13 samples, clipped")["gradients"]) == pytest.approx(0.5, abs=1e-5)


def test_batch_norms_of_several_cpu_workers_stand_still(worlds):
    assert [found["moved_buffers"] for found in worlds["resnet18", 2]] == [[], []]


def test_one_worker_alone_moves_its_batch_norms():
    data = made_data()
    training = Training(made_network("resnet18"), data, TrainingOptions(batch_size=4))
    before = training.network.trunk.bn1.running_mean.clone()
    training.step(made_batches(data, 4, 1)[0])
    assert not training.freeze_norms
    assert (training.network.trunk.bn1.running_mean != before).any()


def test_a_whole_training_is_that_of_one_worker(worlds):
    """Losses, validation scores, the best epoch's weights and the final scores, on every rank."""
    expected = alone("epochs")
    for found in worlds["epochs", 3]:
        for theirs, ours in zip(found["history"], expected["history"], strict=True):
            assert theirs == pytest.approx(ours, abs=1e-7)
        for name, weights in expected["best"].items():
            # AdamW divides by the gradient's own size, so that rounding grows where a gradient is next to nothing.
            np.testing.assert_allclose(found["best"][name], weights, rtol=0, atol=1e-5, err_msg=name)
        assert _flat(found["final"]) == pytest.approx(_flat(expected["final"]), abs=1e-6)


def test_another_number_of_workers_goes_on_from_a_state(worlds):
    state = worlds["epochs", 3][0]["states"][0]
    resumed = epochs(World(), state=state)
    assert len(resumed["states"]) == 1
    for theirs, ours in zip(resumed["history"], alone("epochs")["history"], strict=True):
        assert theirs == pytest.approx(ours, abs=1e-7)


def test_merged_scores_of_shards_are_those_of_the_whole():
    """Each rank's part of `evaluate`, merged by hand: also with more ranks than samples."""
    data = made_data({"train": 3, "val": 7})
    rows = data.of_split("val")
    training = Training(made_network(), data, TrainingOptions())
    whole = _flat(training.evaluate(rows).scores())
    for size in (2, 3, 9):
        parts = [training.evaluate(rows[World(rank, size).slice_of(len(rows))]) for rank in range(size)]
        merged = functools.reduce(lambda one, other: one.merge(other), [part for part in parts if part is not None])
        assert _flat(merged.scores()) == pytest.approx(whole, abs=1e-6)


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 2), (12, 2), (13, 3), (2, 3), (100, 7)])
def test_shards_are_consecutive_and_differ_by_one_at_most(count, size):
    rows = np.concatenate([np.arange(count)[World(rank, size).slice_of(count)] for rank in range(size)])
    assert rows.tolist() == list(range(count))
    sizes = World(0, size).sizes(count)
    assert sum(sizes) == count
    assert max(sizes) - min(sizes) <= 1


def _norm(gradients: dict[str, np.ndarray]) -> float:
    return math.sqrt(sum(np.square(each).sum() for each in gradients.values()))


def _flat(told: dict, prefix: str = "") -> dict[str, float]:
    found = {}
    for name, value in told.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            found[f"{prefix}{name}"] = float(value)
    return found
