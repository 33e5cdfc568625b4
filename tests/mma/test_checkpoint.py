"""Checkpoints: everything comes back, nothing is executed, and what does not fit is refused in one line."""

from __future__ import annotations

import hashlib
import json
import pickle

import pytest
import safetensors.torch
import torch

from mma.checkpoint import dump_mma, load_mma, save_mma, weights_sha256
from mma.checkpoint_header import METADATA_KEY, NETWORKS, read_description, seal_of, stored_sha256
from mma.config import MMAConfig
from mma.network import random_mma

CONFIG = MMAConfig(trunk="tiny", descriptor_set="abaw22", pixel_mean=(127.5, 120, 110), crop={"margin": 1.2})
RECORD = {"trained_on": ["made"], "scores": {"au_f1": 0.5}, "note": "naïve"}


@pytest.fixture
def network():
    return random_mma(CONFIG, 3)


def _metadata(content: bytes) -> dict:
    length = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA_KEY])


def _rewritten(network, *, tensors=None, **changes) -> bytes:
    """The network's checkpoint with some of its metadata, or its tensors, replaced."""
    described = {**_metadata(dump_mma(network, {})), **changes}
    return safetensors.torch.save(tensors or network.state_dict(), {METADATA_KEY: json.dumps(described)})


def _refusal(source, **options) -> str:
    with pytest.raises(ValueError) as caught:
        load_mma(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("form", ["path", "bytes"])
def test_a_checkpoint_comes_back_whole(network, tmp_path, form):
    path = tmp_path / "mma.safetensors"
    save_mma(network, path, RECORD)
    loaded = load_mma(path if form == "path" else path.read_bytes())
    assert loaded.config == CONFIG == loaded.network.config
    assert loaded.record == RECORD
    assert not loaded.network.training
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.network.state_dict().items())
    assert loaded.weights_sha256 == weights_sha256(network)
    x = torch.rand(2, 3, 112, 112)
    with torch.inference_mode():
        assert torch.equal(loaded.network.descriptors(x), network.eval().descriptors(x))


def test_resnet_statistics_come_back(network):
    resnet = random_mma(MMAConfig(trunk="resnet18"), 0)
    with torch.no_grad():
        resnet.trunk.bn1.running_mean += 0.5
        resnet.trunk.bn1.num_batches_tracked += 7
    trunk = load_mma(dump_mma(resnet, {})).network.trunk
    assert trunk.bn1.running_mean[0] == 0.5
    assert trunk.bn1.num_batches_tracked == 7


def test_loading_leaves_the_global_random_state(network):
    content = dump_mma(network, {})
    state = torch.get_rng_state()
    load_mma(content)
    assert torch.equal(torch.get_rng_state(), state)


def test_metadata_names_the_descriptors_for_other_readers(network):
    described = _metadata(dump_mma(network, RECORD))
    assert described["descriptors"]["expressions"][-1] == "other"
    assert described["config"]["crop"] == {"margin": 1.2}
    assert described["written_by"]["torch"] == torch.__version__


def test_digest_knows_weights_not_layout(network):
    digest = weights_sha256(network)
    assert weights_sha256(network.to(memory_format=torch.channels_last)) == digest
    assert weights_sha256(load_mma(dump_mma(network, {"other": 1})).network) == digest
    with torch.no_grad():
        network.heads["expressions"].bias[0] += 1e-6
    assert weights_sha256(network) != digest


def test_a_seed_has_one_digest_on_every_machine():
    """A store made with random:0 must be resumable elsewhere, so the numbers may not depend on the processor."""
    assert weights_sha256(random_mma(MMAConfig(trunk="tiny"), 0)) == DIGEST_TINY_0


@pytest.mark.parametrize("trunk", ["tiny", "resnet18"])
def test_a_file_tells_its_digest_and_description_without_being_loaded(trunk):
    network = random_mma(MMAConfig(trunk=trunk, crop={"margin": 1.2}), 5)
    content = dump_mma(network, RECORD)
    assert stored_sha256(content, "x") == weights_sha256(network)
    assert read_description(content, "x")[:2] == (network.config, RECORD)
    with pytest.raises(ValueError, match="x is a damaged safetensors file"):
        stored_sha256(content[:-1], "x")


def _sealed(content: bytes) -> bool:
    config, _, seal = read_description(content, "x")
    return seal == seal_of(config, stored_sha256(content, "x"))


def test_a_seal_holds_for_the_file_that_was_written_and_for_no_other(network):
    """A file with its seal is not looked at by torch before it reaches the workers."""
    content = dump_mma(network, RECORD)
    assert _sealed(content)
    assert _sealed(_rewritten(network, record={"other": 1}))  # what was noted is no part of it
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["heads.expressions.bias"][0] += 1e-6
    assert not _sealed(_rewritten(network, tensors=state))
    del state["heads.expressions.bias"]
    assert not _sealed(_rewritten(network, tensors=state))
    assert not _sealed(_rewritten(network, config={**CONFIG.to_dict(), "crop": {}}))
    assert not _sealed(_rewritten(network, seal=None))
    with torch.no_grad():
        network.heads["expressions"].bias[0] = float("nan")
    assert not _sealed(dump_mma(network, RECORD))


def test_the_seal_is_of_these_layouts():
    """Where this fails, parameters have changed: raise `NETWORKS`, so that older files are looked at again."""
    layouts = [
        (trunk, name, list(tensor.shape), str(tensor.dtype))
        for trunk in ("tiny", "resnet18", "resnet50")
        for name, tensor in random_mma(MMAConfig(trunk=trunk), 0).state_dict().items()
    ]
    assert (NETWORKS, hashlib.sha256(json.dumps(layouts).encode()).hexdigest()[:16]) == LAYOUTS


LAYOUTS = (1, "714d828739ba4a72")
DIGEST_TINY_0 = "ad20db70a8d89741b24a190f58ca9241d76954b67d75e12c12b95c2cf1406135"


def test_a_failed_write_leaves_the_old_file_and_no_other(network, tmp_path, monkeypatch):
    path = tmp_path / "mma.safetensors"
    save_mma(network, path, {"n": 1})

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mma.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_mma(network, path, {"n": 2})
    assert load_mma(path).record == {"n": 1}
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_written_file_has_the_usual_permissions(network, tmp_path):
    save_mma(network, tmp_path / "mma.safetensors", {})
    (tmp_path / "plain").touch()
    assert (tmp_path / "mma.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("record", [{"score": float("nan")}, {"path": object()}], ids=["nan", "object"])
def test_a_record_that_json_cannot_hold_is_refused(network, record):
    with pytest.raises(ValueError, match="record"):
        dump_mma(network, record)


def test_pickles_are_refused_unread(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was executed",))

    torch.save({"trunk": Trap()}, tmp_path / "zip.pt")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Trap()))
    for name in ("zip.pt", "old.pth"):
        message = _refusal(tmp_path / name)
        assert name in message
        assert "pickle" in message


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff" * 64, b"<html>not found</html>", b"\x08" + b"\0" * 7 + b"[[[[[[[["]
)
def test_what_is_no_safetensors_file_is_refused(content):
    assert "s3://bucket/mma is not a safetensors file" in _refusal(content, name="s3://bucket/mma")


def test_a_truncated_file_is_refused_at_any_length(network):
    content = dump_mma(network, {})
    for length in (4, 100, len(content) // 2, len(content) - 1):
        assert "the given bytes" in _refusal(content[:length])


def test_weights_without_configuration_are_refused(network):
    assert "no MMA configuration" in _refusal(safetensors.torch.save(network.state_dict()))


def test_missing_unknown_and_misshapen_weights_are_named(network):
    state = network.state_dict()
    key = "heads.expressions.bias"
    without = {name: tensor for name, tensor in state.items() if name != key}
    assert f"lacks {key}" in _refusal(_rewritten(network, tensors=without))
    assert "holds trunk.fc.bias" in _refusal(_rewritten(network, tensors={**state, "trunk.fc.bias": torch.zeros(1)}))
    for wrong in (torch.zeros(7), torch.zeros(8, 1), state[key].half()):
        assert f"holds {key} as" in _refusal(_rewritten(network, tensors={**state, key: wrong}))
    diverged = torch.full_like(state[key], float("nan"))
    assert f"NaN or infinity in {key}" in _refusal(_rewritten(network, tensors={**state, key: diverged}))


def test_metadata_that_does_not_fit_is_refused(network):
    assert "update this project" in _refusal(_rewritten(network, format_version=2))
    assert "unreadable" in _refusal(_rewritten(network, format_version="two"))
    assert "incomplete" in _refusal(_rewritten(network, record=None))
    config = CONFIG.to_dict()
    assert "colour" in _refusal(_rewritten(network, config={**config, "colour": "BGR"}))
    assert "trunk" in _refusal(_rewritten(network, config={**config, "trunk": "resnet99"}))
    names = {family: list(order) for family, order in CONFIG.descriptors.families.items()}
    names["expressions"][:2] = ["anger", "neutral"]
    assert "another order" in _refusal(_rewritten(network, descriptors=names))


def test_a_file_that_is_not_there_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_mma(tmp_path / "none.safetensors")
