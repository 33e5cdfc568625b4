"""`--init`: what fits is taken by name, what does not is told, and no file runs code."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import pickle
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from mma.checkpoint import dump_mma
from mma.config import MMAConfig
from mma.init import initialise
from mma.network import random_mma


def _network(trunk="tiny", descriptor_set="mma26", seed=0, **options):
    return random_mma(MMAConfig(trunk=trunk, descriptor_set=descriptor_set, **options), seed)


def _snapshot(network):
    return {key: each.clone() for key, each in network.state_dict().items()}


def _pytorch(content, legacy=False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@functools.cache
def _trunk_state():
    return _network("resnet18", seed=5).trunk.state_dict()


def _published(counts=True):
    """What torchvision would give for resnet18: the trunk's names, and `fc`."""
    state = OrderedDict(_trunk_state())
    state = OrderedDict((k, v) for k, v in state.items() if counts or "num_batches" not in k)
    state["bn1.running_mean"] = torch.arange(64.0)
    return OrderedDict(state, **{"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)})


def _refusal(network, content) -> str:
    before = _snapshot(network)
    with pytest.raises(ValueError) as caught:
        initialise(network, content, name="s3://bucket/start")
    assert "\n" not in str(caught.value)
    assert "s3://bucket/start" in str(caught.value)
    assert len(str(caught.value)) < 500
    assert all(torch.equal(each, before[key]) for key, each in network.state_dict().items())
    return str(caught.value)


def test_a_checkpoint_starts_the_same_network_whole():
    start, network = _network(seed=1), _network(seed=2)
    report = initialise(network, dump_mma(start, {}), name="x")
    assert all(torch.equal(each, start.state_dict()[key]) for key, each in network.state_dict().items())
    assert len(report.loaded) == len(start.trunk.state_dict()) + 26
    assert (report.skipped, report.missing, report.notes) == ((), (), ())
    count = len(start.trunk.state_dict())
    assert report.told() == f"took {count} of {count} trunk tensors and 26 of 26 descriptors"


@pytest.mark.parametrize(("ours", "theirs"), [("abaw22", "mma26"), ("mma26", "abaw22")])
def test_heads_are_taken_over_by_descriptor_name(ours, theirs):
    start, network = _network(descriptor_set=theirs, seed=1), _network(descriptor_set=ours, seed=2)
    before = _snapshot(network)
    report = initialise(network, dump_mma(start, {}), name="x")
    known = {f"heads.{family}.{each}" for family, names in start.config.descriptors.families.items() for each in names}
    for family, names in network.config.descriptors.families.items():
        others = start.config.descriptors.families[family]
        for row, each in enumerate(names):
            for key in (f"heads.{family}.weight", f"heads.{family}.bias"):
                value = network.state_dict()[key][row]
                if each in others:
                    assert torch.equal(value, start.state_dict()[key][others.index(each)])
                else:
                    assert torch.equal(value, before[key][row])
            name = f"heads.{family}.{each}"
            assert (name in report.loaded, name in report.missing) == (name in known, name not in known)
    lost = {name for name, _ in report.skipped}
    if ours == "abaw22":
        assert report.missing == ("heads.expressions.other",)
        assert lost == {f"heads.action_units.AU{n:02d}" for n in (5, 9, 14, 17, 20)}
        assert all(reason == "not a descriptor of abaw22" for _, reason in report.skipped)
    else:
        assert lost == {"heads.expressions.other"}


def test_another_trunk_is_refused():
    message = _refusal(_network("resnet18"), dump_mma(_network("tiny"), {}))
    assert "trunk tiny" in message
    assert "resnet18" in message


def test_other_pixels_and_crops_are_told():
    content = dump_mma(_network(pixel_mean=(1, 2, 3), crop={"margin": 2}), {})
    report = initialise(_network(), content, name="x")
    assert "(1.0, 2.0, 3.0)" in report.notes[0]
    assert "cropped" in report.told()


def test_a_damaged_checkpoint_is_refused():
    network = _network()
    content = dump_mma(network, {})
    assert "damaged" in _refusal(network, content[:-1])
    with torch.no_grad():
        network.heads["expressions"].bias[0] = float("nan")
    content = dump_mma(network, {})
    assert "NaN" in _refusal(_network(), content)


@pytest.mark.parametrize("form", ["safetensors", "zip", "legacy"])
def test_published_weights_fill_the_trunk_and_leave_the_heads(form):
    state, network = _published(), _network("resnet18", seed=1)
    heads = network.heads["expressions"].weight.clone()
    content = safetensors.torch.save(dict(state)) if form == "safetensors" else _pytorch(state, form == "legacy")
    report = initialise(network, content, name="x")
    trunk = network.trunk.state_dict()
    assert all(torch.equal(trunk[key], each) for key, each in state.items() if not key.startswith("fc"))
    assert torch.equal(network.heads["expressions"].weight, heads)
    assert dict(report.skipped).keys() == {"fc.weight", "fc.bias"}
    assert "classifier" in report.skipped[0][1]
    assert len(report.loaded) == 120
    assert set(report.missing) == {
        f"heads.{family}.{each}" for family, names in network.config.descriptors.families.items() for each in names
    }
    assert report.told().startswith("took 120 of 120 trunk tensors and 0 of 26 descriptors; new: heads.")
    assert "fc.bias, fc.weight (the classifier" in report.told()
    assert report.told().count("\n") == 1
    assert json.loads(json.dumps(report.to_dict()))["skipped"].keys() == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("prefix", "nesting"),
    [
        ("", ("state_dict",)),
        ("module.", ("model",)),
        ("backbone.", ()),
        ("encoder.", ("model", "state_dict")),
        ("model.", ("state_dict",)),
        ("module.model.backbone.", ()),
    ],
)
def test_wrappings_of_training_code_are_seen_through(prefix, nesting):
    state = {prefix + key: each for key, each in _published(counts=False).items()}
    content = state
    for level in reversed(nesting):
        content = {level: content, "epoch": 3, "optimizer": {"state": {}}}
    network = _network("resnet18", seed=1)
    report = initialise(network, _pytorch(content), name="x")
    assert network.trunk.bn1.running_mean[63] == 63
    assert len(report.loaded) == 100  # 120 less the counts of batches
    assert not [name for name in report.missing if name.startswith("trunk.")]
    assert dict(report.skipped).keys() == {f"{prefix}fc.weight", f"{prefix}fc.bias"}


def test_of_two_candidates_the_plainer_name_counts():
    state = _published()
    state["encoder.bn1.running_mean"] = torch.full((64,), -1.0)
    network = _network("resnet18", seed=1)
    report = initialise(network, _pytorch(state), name="x")
    assert network.trunk.bn1.running_mean[63] == 63
    assert "already" in dict(report.skipped)["encoder.bn1.running_mean"]


def test_what_has_another_shape_or_kind_is_skipped_with_its_reason():
    state, network = _published(), _network("resnet18", seed=1)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    state["layer1.0.conv1.weight"] = torch.zeros(64, 64, 3, 3, dtype=torch.int8)
    state["layer9.weight"] = torch.zeros(1)
    before = _snapshot(network)
    report = initialise(network, _pytorch(state), name="x")
    skipped = dict(report.skipped)
    assert "(64, 1, 7, 7), not (64, 3, 7, 7)" in skipped["conv1.weight"]
    assert "torch.int8" in skipped["layer1.0.conv1.weight"]
    assert "no such name" in skipped["layer9.weight"]
    assert {"trunk.conv1.weight", "trunk.layer1.0.conv1.weight"} < set(report.missing)
    assert torch.equal(network.trunk.conv1.weight, before["trunk.conv1.weight"])
    assert "took 118 of 120" in report.told()


def test_half_precision_becomes_float32():
    network = _network("resnet18", seed=1)
    initialise(
        network, _pytorch({k: v.half() if v.is_floating_point() else v for k, v in _published().items()}), name="x"
    )
    assert network.trunk.conv1.weight.dtype == torch.float32
    assert network.trunk.bn1.running_mean[63] == 63


def test_nothing_that_fits_is_refused_with_names_from_both_sides():
    message = _refusal(_network("tiny"), _pytorch(_published()))
    assert "it has bn1.bias, " in message
    assert "expected are layers.0.weight, " in message
    assert "no weight that fits" in _refusal(
        _network("resnet18"), _pytorch({"bn1.num_batches_tracked": torch.tensor(1), "conv1.weight": torch.zeros(2)})
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights_are_refused(value):
    state = _published()
    state["layer4.1.bn2.bias"] = torch.full((512,), value)
    assert "layer4.1.bn2.bias" in _refusal(_network("resnet18"), _pytorch(state))


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_malicious_pickle_runs_nothing(tmp_path):
    sprung = tmp_path / "sprung"
    trap = _Trap(str(sprung))
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "x": trap}
    network = _network("resnet18")
    for content in (_pytorch(state), _pytorch(state, legacy=True), _pytorch({"state_dict": state}), pickle.dumps(trap)):
        assert "could run code" in _refusal(network, content)
        assert not sprung.exists()
    torch.load(io.BytesIO(_pytorch(state)), weights_only=False)
    assert sprung.exists()  # the trap is a real one


def test_a_checkpoint_of_more_than_weights_is_told_how_to_be_mended():
    content = _pytorch({"state_dict": dict(_published()), "args": argparse.Namespace(lr=1)})
    message = _refusal(_network("resnet18"), content)
    assert "argparse.Namespace" in message
    assert "torch.save(model.state_dict(), file)" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html>",
        b"PK\x03\x04junk",
        b"\x80\x02junk",
        b"\x08" + b"\0" * 7 + b"[[[[[[[[",
        _pytorch([1]),
        _pytorch({"a": 1}),
    ],
)
def test_what_holds_no_weights_is_refused(content):
    _refusal(_network(), content)


def test_a_truncated_file_is_refused():
    for content in (_pytorch(_published()), safetensors.torch.save(dict(_published()))):
        _refusal(_network("resnet18"), content[: len(content) // 2])


def test_a_safetensors_file_that_begins_like_a_pickle_is_read():
    """One in 32 has a header whose length ends in the byte that pickles begin with."""
    state = {"conv1.weight": torch.ones(64, 3, 7, 7)}
    contents = (safetensors.torch.save(state, {"note": "x" * length}) for length in range(256))
    content = next(each for each in contents if each[:1] == b"\x80")
    network = _network("resnet18")
    assert initialise(network, content, name="x").loaded == ("trunk.conv1.weight",)
    assert network.trunk.conv1.weight.min() == 1
