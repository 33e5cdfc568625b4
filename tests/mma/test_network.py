"""Trunks and heads: published names and shapes, the promised ranges, and seeded construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mma.config import TRUNK_NAMES, MMAConfig
from mma.descriptors import ABAW22, MMA26
from mma.network import MMANetwork, random_mma
from mma.trunks import TRUNKS

PUBLISHED = {
    "resnet18": (11_176_512, 120, 512),
    "resnet34": (21_284_672, 216, 512),
    "resnet50": (23_508_032, 318, 2048),
}
"""torchvision's models without `fc`: parameters, entries of the state dict, features."""


@pytest.fixture
def crops() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 112, 112, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", PUBLISHED)
def test_resnets_have_the_published_size(name):
    with torch.device("meta"):
        trunk = TRUNKS[name]()
    sizes = (sum(each.numel() for each in trunk.parameters()), len(trunk.state_dict()), trunk.num_features)
    assert sizes == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        (
            "resnet18",
            {
                "conv1.weight": (64, 3, 7, 7),
                "bn1.running_mean": (64,),
                "layer1.0.conv1.weight": (64, 64, 3, 3),
                "layer2.0.downsample.0.weight": (128, 64, 1, 1),
                "layer2.0.downsample.1.num_batches_tracked": (),
                "layer4.1.bn2.bias": (512,),
            },
        ),
        ("resnet34", {"layer3.5.conv2.weight": (256, 256, 3, 3), "layer4.2.bn2.running_var": (512,)}),
        (
            "resnet50",
            {
                "layer1.0.conv1.weight": (64, 64, 1, 1),
                "layer1.0.downsample.0.weight": (256, 64, 1, 1),
                "layer2.0.conv2.weight": (128, 128, 3, 3),
                "layer3.5.conv3.weight": (1024, 256, 1, 1),
                "layer4.0.downsample.1.weight": (2048,),
                "layer4.2.bn3.running_mean": (2048,),
            },
        ),
    ],
)
def test_resnets_have_the_published_names_and_shapes(name, shapes):
    with torch.device("meta"):
        state = TRUNKS[name]().state_dict()
    assert {key: tuple(state[key].shape) for key in shapes if key in state} == shapes
    assert not any(key.startswith(("fc", "layer1.0.downsample")) for key in state if name != "resnet50")


def test_resnet50_strides_on_its_3x3_convolution():
    """Weights load under either form, and give other numbers: published ones are of this form."""
    with torch.device("meta"):
        first = TRUNKS["resnet50"]().layer2[0]
    assert (first.conv1.stride, first.conv2.stride, first.conv3.stride) == ((1, 1), (2, 2), (1, 1))


@pytest.mark.parametrize("trunk", ["tiny", "resnet18"])
@pytest.mark.parametrize("descriptor_set", [MMA26, ABAW22], ids=lambda each: each.name)
def test_descriptors_keep_their_ranges_and_order(trunk, descriptor_set, crops):
    network = random_mma(MMAConfig(trunk=trunk, descriptor_set=descriptor_set.name), 0).eval()
    with torch.inference_mode():
        x = network.normalise(crops[:2])
        values, outputs = network.descriptors(x), network(x)
    assert values.dtype == torch.float32
    assert values.shape == (2, len(descriptor_set))
    by_name = dict(zip(descriptor_set.names, values.T, strict=True))
    torch.testing.assert_close(by_name["arousal"], outputs.valence_arousal[:, 1])
    assert outputs.valence_arousal.abs().max() <= 1
    probabilities = torch.stack([by_name[name] for name in descriptor_set.expressions], dim=1)
    torch.testing.assert_close(probabilities, outputs.expression_logits.softmax(dim=1))
    last = descriptor_set.action_units[-1]
    torch.testing.assert_close(by_name[last], outputs.action_unit_logits[:, -1].sigmoid())


def test_every_trunk_is_named_where_no_torch_is():
    assert set(TRUNKS) == set(TRUNK_NAMES)


@pytest.mark.parametrize("trunk", TRUNKS)
def test_random_networks_tell_inputs_apart_and_do_not_saturate(trunk, crops):
    flat = torch.linspace(0, 255, 4).to(torch.uint8).reshape(4, 1, 1, 1).expand(4, 112, 112, 3)
    network = random_mma(MMAConfig(trunk=trunk), 0).eval()
    with torch.inference_mode():
        values = network.descriptors(network.normalise(torch.cat([crops[:2], flat])))
    assert values.std(dim=0).min() > 1e-4  # heads start small, so that nothing random has to be unlearnt
    assert values[:, 9:].min() > 1e-3  # action units: no sigmoid at its limit
    assert values[:, 9:].max() < 1 - 1e-3


def test_pixels_reach_the_network_between_minus_one_and_one():
    network = random_mma(MMAConfig(trunk="tiny"), 0)
    pixels = torch.zeros((1, 112, 112, 3), dtype=torch.uint8)
    pixels[0, 3, 5] = torch.tensor([255, 0, 51], dtype=torch.uint8)
    x = network.normalise(pixels)
    assert x.shape == (1, 3, 112, 112)
    assert x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(x[0, :, 3, 5], torch.tensor([1.0, -1.0, -0.6]))


def test_pixel_scaling_is_a_channel_each():
    config = MMAConfig(trunk="tiny", pixel_mean=(1, 2, 3), pixel_std=(1, 2, 4))
    x = random_mma(config, 0).normalise(torch.full((1, 112, 112, 3), 7, dtype=torch.uint8))
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([6.0, 2.5, 1.0]))


def test_a_seed_gives_one_network_and_leaves_the_global_random_state():
    config = MMAConfig(trunk="tiny")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = random_mma(config, 7).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second, other = random_mma(config, 7).state_dict(), random_mma(config, 8).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["heads.expressions.weight"], other["heads.expressions.weight"])


def test_each_head_reads_the_trunk_and_no_other_head(crops):
    network = random_mma(MMAConfig(trunk="tiny"), 0)
    network(network.normalise(crops)).expression_logits.sum().backward()
    assert network.heads["expressions"].weight.grad.abs().sum() > 0
    assert network.trunk.layers[0].weight.grad.abs().sum() > 0
    assert network.heads["valence_arousal"].weight.grad is None
    assert network.heads["action_units"].weight.grad is None


def test_heads_stay_float32_under_autocast(crops):
    network = random_mma(MMAConfig(trunk="tiny"), 0).eval()
    x = network.normalise(crops)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network.descriptors(x)
    with torch.inference_mode():
        exact = network.descriptors(x)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.02


def test_tiny_keeps_no_statistics_of_a_batch(crops):
    """CPU workers cannot share batch statistics, so a frame's numbers must be its own in training too."""
    network = random_mma(MMAConfig(trunk="tiny"), 0)
    x = network.normalise(crops)
    torch.testing.assert_close(network.descriptors(x)[:1], network.descriptors(x[:1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"trunk": "resnet99"}, "trunk"),
        ({"descriptor_set": "faces"}, "descriptor_set"),
        ({"crop_size_px": 0}, "crop_size_px"),
        ({"pixel_std": (1, 1, 0)}, "pixel_std"),
        ({"crop": {"template": np.zeros(2)}}, "crop"),
    ],
)
def test_nonsense_settings_are_refused_by_name(options, word):
    with pytest.raises(ValueError, match=word) as caught:
        MMAConfig(**options)
    assert "\n" not in str(caught.value)


def test_config_survives_json():
    config = MMAConfig(trunk="tiny", crop={"template": ((1.5, 2), (3, 4)), "margin": 1.2})
    assert MMAConfig(**config.to_dict()) == config
    assert isinstance(MMANetwork(config).config.crop["template"], list)


def test_a_mirrored_face_gives_tiny_the_same_descriptors(crops):
    """Its kernels come in mirrored pairs, so this holds for any weights, and for odd and even places alike."""
    network = random_mma(MMAConfig(trunk="tiny"), 3).double().eval()
    x = network.normalise(crops).double()
    with torch.inference_mode():
        torch.testing.assert_close(network.descriptors(x.flip(3)), network.descriptors(x), rtol=0, atol=1e-12)
        # No accident of symmetric kernels or of features that say nothing.
        assert (network.trunk(x.flip(2)) - network.trunk(x)).abs().max() > 1e-3


def test_tiny_sees_the_mean_of_the_channels_alone(crops):
    network = random_mma(MMAConfig(trunk="tiny"), 3).double().eval()
    x = network.normalise(crops).double()
    with torch.inference_mode():
        torch.testing.assert_close(network.trunk(x.mean(1, keepdim=True)), network.trunk(x), rtol=0, atol=1e-12)
