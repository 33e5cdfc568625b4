"""Trunks of transformers: fetched from safetensors alone, carried in the checkpoint, and never running foreign code."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

transformers = pytest.importorskip("transformers")

from jobs.models import load_weights  # noqa: E402
from mma.checkpoint import dump_mma, load_mma, weights_sha256  # noqa: E402
from mma.config import MMAConfig  # noqa: E402
from mma.faces.alignment import CropGeometry  # noqa: E402
from mma.hf_trunk import HFTrunk, hf_start  # noqa: E402
from mma.network import MMANetwork, new_mma, random_mma  # noqa: E402

_TOKENS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MODELS = {
    "resnet": lambda: transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1]),
    "vit": lambda: transformers.ViTConfig(image_size=32, patch_size=8, **_TOKENS),
    "convnext": lambda: transformers.ConvNextConfig(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2),
    # Has a buffer of position ids outside its state dict.
    "clip_vision_model": lambda: transformers.CLIPVisionConfig(image_size=32, patch_size=8, **_TOKENS),
    # Fails on crops of 112, and is another model after that.
    "swin": lambda: transformers.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, image_size=224),
}
FEATURES = {"resnet": 12, "vit": 16, "convnext": 12, "clip_vision_model": 16, "swin": 64}
SIZES = {"vit": 32, "clip_vision_model": 32, "swin": 224}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of `save_pretrained` for each model, weights drawn wide enough to tell their outputs apart."""
    torch.manual_seed(0)
    made = {}
    for name, config in MODELS.items():
        model = transformers.AutoModel.from_config(config())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the ResNet's folder, to be spoilt."""
    for each in folders["resnet"].iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    return tmp_path


def _network(start, name="hf:some/model", seed=0):
    config = MMAConfig(
        trunk=name, trunk_config=start.trunk_config, pixel_mean=start.pixel_mean, pixel_std=start.pixel_std
    )
    network = random_mma(config, seed)
    network.trunk.load_state_dict(start.state)
    return network


def _refusal(model) -> str:
    with pytest.raises(ValueError) as caught:
        hf_start(str(model))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_goes_from_its_folder_through_a_checkpoint_and_back(folders, name):
    network = _network(hf_start(str(folders[name]))).eval()
    loaded = load_mma(dump_mma(network, {}))
    assert loaded.config == network.config
    assert loaded.weights_sha256 == weights_sha256(network)
    x = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        feature, original = network.trunk(x), transformers.AutoModel.from_pretrained(folders[name]).eval()
        assert feature.shape == (2, network.trunk.num_features) == (2, FEATURES[name])
        assert (feature[0] - feature[1]).abs().max() > 1e-3
        assert torch.equal(loaded.network.descriptors(x), network.descriptors(x))
        if name in SIZES:
            size = (SIZES[name], SIZES[name])
            resized = torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=True)
            expected = original(resized).last_hidden_state.mean(dim=1)
        else:
            expected = original(x).pooler_output.flatten(1)
    torch.testing.assert_close(feature, expected)


def test_a_checkpoint_needs_neither_the_folder_nor_a_connection(folder):
    content = dump_mma(_network(hf_start(str(folder)), name="hf:a folder that was"), {})
    for each in folder.iterdir():
        each.unlink()
    assert load_mma(content).config.trunk == "hf:a folder that was"


def test_a_seal_does_not_stand_for_another_library_s_trunk(folder, tmp_path):
    """Whether transformers is here, and names its parameters as it did, only building the network shows."""
    network = random_mma(replace(_network(hf_start(str(folder))).config, crop=CropGeometry().spec()), 0)
    (tmp_path / "mma.safetensors").write_bytes(dump_mma(network, {}))
    weights = load_weights(str(tmp_path / "mma.safetensors"))
    assert not weights.sealed
    assert load_weights("random:0:tiny").sealed


def test_buffers_outside_the_checkpoint_hold_their_values(folders):
    network = new_mma(MMAConfig(trunk="hf:x", trunk_config=hf_start(str(folders["clip_vision_model"])).trunk_config))
    (name,) = [each for each, _ in network.named_buffers() if each.endswith("position_ids")]
    assert name not in network.state_dict()
    assert torch.equal(network.get_buffer(name), torch.arange(17)[None])
    assert network.pixel_mean.tolist() == [127.5] * 3


@pytest.mark.parametrize("name", ["resnet", "vit", "convnext", "clip_vision_model"])
def test_every_trained_parameter_gets_a_gradient(folders, name):
    """Without one, DistributedDataParallel stops at the second step: so poolers that nothing reads are frozen."""
    network = _network(hf_start(str(folders[name])))
    assert network.training
    assert network.trunk.model.training
    outputs = network(torch.randn(2, 3, 112, 112))
    sum(each.sum() for each in outputs).backward()
    without = {key for key, each in network.named_parameters() if each.grad is None}
    frozen = {key for key, each in network.named_parameters() if not each.requires_grad}
    assert without == frozen
    assert all("pooler" in key or "post_layernorm" in key for key in frozen)
    assert len(frozen) < len(list(network.parameters())) / 4


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_features_are_float32_under_autocast(folders, name):
    trunk = _network(hf_start(str(folders[name]))).trunk.eval()
    x = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        exact = trunk(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = trunk(x)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.2


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_seed_gives_one_network_and_leaves_the_global_random_state(folders, name):
    state = torch.get_rng_state()
    start = hf_start(str(folders[name]))
    config = MMAConfig(trunk="hf:x", trunk_config=start.trunk_config)
    first = weights_sha256(random_mma(config, 7))
    load_mma(dump_mma(new_mma(config), {}))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    assert weights_sha256(random_mma(config, 7)) == first
    other = random_mma(config, 8)
    assert weights_sha256(other) != first
    assert not torch.equal(next(other.trunk.parameters()), next(random_mma(config, 7).trunk.parameters()))


def test_a_trunk_is_built_on_the_cpu_also_under_the_meta_device():
    with torch.device("meta"):
        network = MMANetwork(MMAConfig(trunk="hf:x", trunk_config={"model_type": "vit", "image_size": 32, **_TOKENS}))
    assert network.trunk(torch.zeros(1, 3, 32, 32)).shape == (1, 16)


@pytest.mark.parametrize(
    ("told", "mean", "std"),
    [
        (None, 127.5, 127.5),
        ({"image_mean": [0.2, 0.4, 0.6], "image_std": [0.1, 0.2, 0.3]}, [51, 102, 153], [25.5, 51, 76.5]),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}, 0, 255),
        ({"image_mean": [9] * 3, "image_std": [3] * 3, "do_rescale": False}, 9, 3),
    ],
)
def test_pixels_are_scaled_as_the_model_was_pretrained(folder, told, mean, std):
    if told is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(told))
    start = hf_start(str(folder))
    assert start.pixel_mean == pytest.approx(mean if isinstance(mean, list) else [mean] * 3)
    assert start.pixel_std == pytest.approx(std if isinstance(std, list) else [std] * 3)


def test_half_precision_weights_become_float32(folder, folders):
    transformers.AutoModel.from_pretrained(folders["resnet"]).half().save_pretrained(folder)
    start = hf_start(str(folder))
    assert {each.dtype for each in start.state.values()} == {torch.float32, torch.int64}
    assert "dtype" not in start.trunk_config


def test_a_folder_without_safetensors_is_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert "no .safetensors file" in _refusal(folder)


@pytest.mark.parametrize("model_type", ["resnet", "my_own_model"])
def test_code_that_a_model_brings_is_refused_and_not_run(folder, model_type):
    described = json.loads((folder / "config.json").read_text())
    described |= {"model_type": model_type, "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    assert "code of its own" in _refusal(folder)
    with pytest.raises(ValueError, match="code of its own"):  # as a stranger's checkpoint could ask for it
        new_mma(MMAConfig(trunk="hf:x", trunk_config={"model_type": "upernet", "backbone_config": described}))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "no_such_model"}, "no_such_model"),
        ({"model_type": None}, "model_type"),
        ({"hidden_sizes": [8, 16]}, "cannot be had"),
        ({"depths": [1, 2]}, "holds no weights for"),
        ({"use_pretrained_backbone": True}, "backbone"),
    ],
)
def test_a_folder_that_does_not_fit_is_refused(folder, change, word):
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, **change}))
    assert word in _refusal(folder)


def test_broken_folders_and_names_are_refused(folder, tmp_path_factory):
    (folder / "model.safetensors").write_bytes(b"\x08" + b"\0" * 20)
    assert "cannot be had" in _refusal(folder)
    (folder / "config.json").unlink()
    assert "names no model_type in its config.json" in _refusal(folder)
    assert "no such folder" in _refusal(folder / "none")
    assert "fetch the URI" in _refusal("s3://bucket/model")


def test_nan_weights_are_refused(folder, folders):
    model = transformers.AutoModel.from_pretrained(folders["resnet"])
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    model.save_pretrained(folder)
    assert "NaN" in _refusal(folder)


def test_a_model_of_text_is_no_trunk():
    with pytest.raises(ValueError, match="is it a model of images") as caught:
        HFTrunk({"model_type": "bert", "vocab_size": 10, **_TOKENS})
    assert "\n" not in str(caught.value)


def test_the_configuration_goes_with_hf_trunks_alone():
    with pytest.raises(ValueError, match="trunk_config"):
        MMAConfig(trunk="hf:microsoft/resnet-50")
    with pytest.raises(ValueError, match="trunk_config"):
        MMAConfig(trunk="tiny", trunk_config={"model_type": "resnet"})


def test_without_transformers_the_extra_is_named(monkeypatch, folders):
    config = MMAConfig(trunk="hf:x", trunk_config=hf_start(str(folders["resnet"])).trunk_config)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for build in (lambda: hf_start("some/model"), lambda: new_mma(config)):
        with pytest.raises(ValueError, match=r"pip install 'mma-mrnnet\[hf\]'"):
            build()


def test_built_in_trunks_do_not_import_transformers():
    code = (
        "import sys; from mma.network import *; new_mma(MMAConfig(trunk='tiny')); print('transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.slow)],  # 25 s
    ids=["offline", "dead"],
)
def test_without_a_connection_the_way_round_is_named(environment, tmp_path):
    code = "from mma.hf_trunk import hf_start\ntry: hf_start('some/model')\nexcept ValueError as error: print(error)"
    environment = {"HF_HOME": str(tmp_path), "PATH": "", **environment}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.count("\n") == 1
    assert "give hf:FOLDER" in done.stdout
    assert done.stderr == ""
