"""The state between two epochs: going on from it is the same as never having stopped; what is not one is refused."""

from __future__ import annotations

import json
import pickle

import pytest
import safetensors.torch
import torch
from training_worlds import made_data, made_network, one_thread  # noqa: F401

from mma.checkpoint import dump_mma
from mma.training.loop import Training
from mma.training.options import TrainingOptions
from mma.training.state import METADATA_KEY, Progress

OPTIONS = TrainingOptions(epochs=2, batch_size=16, average=0.8, balance=0.5)


def new_training(options: TrainingOptions = OPTIONS, seed: int = 1, **network: str) -> Training:
    return Training(made_network(seed=seed, **network), made_data({"train": 32, "val": 12}), options)


def contents(state: bytes) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and numbers of a state, seconds left out."""
    header = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])
    numbers = json.loads(header["__metadata__"][METADATA_KEY])
    for entry in numbers["history"]:
        del entry["seconds"], entry["samples_per_s"]
    return safetensors.torch.load(state), numbers


def rewritten(state: bytes, tensors: dict[str, torch.Tensor], **numbers: object) -> bytes:
    """A state with other tensors or numbers."""
    return safetensors.torch.save(tensors, {METADATA_KEY: json.dumps({**contents(state)[1], **numbers})})


def assert_same(one: bytes, other: bytes) -> None:
    (tensors, numbers), (others, other_numbers) = contents(one), contents(other)
    assert numbers == other_numbers
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.fixture(scope="module")
def straight() -> list[bytes]:
    """The states after each of two epochs that were trained without a stop."""
    training = new_training()
    return [training.state() for _ in training.epochs()]


def test_a_resumed_training_goes_on_bit_for_bit(straight):
    """From a network that started elsewhere: weights, means, moments, the best, and the history but for its times."""
    training = new_training(seed=2)
    training.resume(straight[0])
    assert_same(training.state(), straight[0])
    assert len([training.state() for _ in training.epochs()]) == 1
    assert_same(training.state(), straight[1])
    assert training.finished


def test_a_state_holds_what_a_training_needs(straight):
    tensors, numbers = contents(straight[1])
    names = dict(made_network().named_parameters())
    for part in ("network", "average", "best"):
        assert {f"{part}/{name}" for name in names} <= tensors.keys()
    assert {f"optimiser/{name}/{key}" for name in names for key in ("step", "exp_avg", "exp_avg_sq")} <= tensors.keys()
    assert (numbers["epochs_done"], numbers["steps_done"]) == (2, 4)
    assert [entry["epoch"] for entry in numbers["history"]] == [0, 1]


def test_a_finished_training_stays_finished(straight):
    training = new_training()
    training.resume(straight[1])
    assert list(training.epochs()) == []
    assert_same(training.state(), straight[1])


@pytest.mark.parametrize(
    "options", [TrainingOptions(optimiser="sgd", epochs=2), TrainingOptions(average=0.0, epochs=2)]
)
def test_other_optimisers_and_means_resume_too(options):
    first, second = new_training(options), new_training(options, seed=2)
    after = [first.state() for _ in first.epochs()]
    second.resume(after[0])
    assert len(list(second.epochs())) == 1
    assert_same(second.state(), after[1])


def test_the_moments_lie_in_memory_as_the_weights_do(straight):
    """Channels last: else a resumed training would leave torch's fast path for optimisers."""
    training = new_training()
    training.resume(straight[0])
    weight = training.network.trunk.layers[3].weight
    assert not weight.is_contiguous()
    assert training.optimiser.state[weight]["exp_avg"].stride() == weight.stride()


def test_a_state_is_read_without_pickle(straight, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    training = new_training()
    training.resume(straight[0])
    assert training.progress.epochs_done == 1


@pytest.mark.parametrize("keep", [0, 7, 8, 100, 5000, -1])
def test_a_state_cut_short_is_refused(straight, keep):
    with pytest.raises(ValueError, match="does not fit"):
        new_training().resume(straight[0][:keep])


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04not safetensors",
        b'{"epochs_done": 1}' * 9,
        safetensors.torch.save({"network/weight": torch.zeros(2)}),
        safetensors.torch.save({"network/weight": torch.zeros(2)}, {METADATA_KEY: "{"}),
        safetensors.torch.save({"network/weight": torch.zeros(2)}, {METADATA_KEY: "[]"}),
        safetensors.torch.save({"network/weight": torch.zeros(2)}, {METADATA_KEY: '{"epochs_done": 1}'}),
    ],
)
def test_what_is_no_state_is_refused(content):
    with pytest.raises(ValueError, match="does not fit"):
        new_training().resume(content)


def test_a_checkpoint_is_no_state():
    with pytest.raises(ValueError, match="does not fit"):
        new_training().resume(dump_mma(made_network(), {}))


def test_the_state_of_another_network_is_refused(straight):
    with pytest.raises(ValueError, match="size mismatch"):
        new_training(descriptor_set="abaw22").resume(straight[0])


@pytest.mark.parametrize("part", ["network", "average", "best"])
def test_a_state_that_lacks_a_tensor_is_refused(straight, part):
    tensors, _ = contents(straight[0])
    del tensors[f"{part}/heads.expressions.bias"]
    with pytest.raises(ValueError, match="does not fit"):
        new_training().resume(rewritten(straight[0], tensors))


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_a_moment_of_another_shape_is_refused(straight, shape):
    tensors, _ = contents(straight[0])
    tensors["optimiser/heads.expressions.bias/exp_avg"] = torch.zeros(shape)
    with pytest.raises(ValueError, match="a moment of shape"):
        new_training().resume(rewritten(straight[0], tensors))


def test_numbers_of_another_version_are_refused(straight):
    tensors, _ = contents(straight[0])
    with pytest.raises(ValueError, match="mood"):
        new_training().resume(rewritten(straight[0], tensors, mood=1))


def test_progress_starts_with_nothing():
    assert new_training().progress == Progress()
