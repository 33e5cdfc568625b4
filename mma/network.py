"""The MMA network of stage 1: one trunk on a face crop, and one linear head a family of descriptors.

PAPER.md, "Stage 1": valence-arousal, basic expressions and action units at once [fact]; heads on the same pooled
feature with no other wiring between them, tanh, softmax and sigmoid [kin].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from mma.config import HF_PREFIX, MMAConfig
from mma.trunks import TRUNKS, BasicBlock, Bottleneck, MirrorConvolution, ResNet, Tiny

if TYPE_CHECKING:
    from mma.hf_trunk import HFTrunk


class MMAOutputs(NamedTuple):
    """What the three heads give for N crops, all float32: the form that losses are taken on."""

    valence_arousal: torch.Tensor
    """(N, 2) in [-1, 1], after tanh."""
    expression_logits: torch.Tensor
    """(N, num_expressions), before softmax."""
    action_unit_logits: torch.Tensor
    """(N, num_action_units), before sigmoid."""


class MMANetwork(nn.Module):
    """Trunk and heads.

    The parameters' names are `trunk.*` (torchvision's for ResNets; transformers', as `trunk.model.*`, for `hf:` ones)
    and `heads.<family>.*`.
    """

    def __init__(self, config: MMAConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _new_trunk(config)
        num_features = self.trunk.num_features
        families = config.descriptors.families
        # Not saved with the weights, since the configuration has them; buffers, since they belong on the device.
        self.pixel_mean: torch.Tensor
        self.pixel_std: torch.Tensor
        self.register_buffer("pixel_mean", torch.tensor(config.pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.pixel_std), persistent=False)
        self.heads = nn.ModuleDict({family: nn.Linear(num_features, len(names)) for family, names in families.items()})

    def normalise(self, crops: torch.Tensor) -> torch.Tensor:
        """RGB bytes as they lie in an image to the network's input, on the device where they are.

        uint8 (N, H, W, 3) -> float32 (N, 3, H, W), channels last in memory, [-1, 1] by default.
        """
        return crops.float().sub_(self.pixel_mean).div_(self.pixel_std).permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> MMAOutputs:
        """Normalised crops, float (N, 3, H, W), to the heads' outputs, float32 also when the trunk is autocast."""
        feature = self.trunk(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return MMAOutputs(
                valence_arousal=torch.tanh(self.heads["valence_arousal"](feature)),
                expression_logits=self.heads["expressions"](feature),
                action_unit_logits=self.heads["action_units"](feature),
            )

    def descriptors(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised crops, float (N, 3, H, W), to descriptors, float32 (N, D), ordered as `DescriptorSet.names`."""
        outputs = self(x)
        values = {
            "valence_arousal": outputs.valence_arousal,
            "expressions": torch.softmax(outputs.expression_logits, dim=1),
            "action_units": torch.sigmoid(outputs.action_unit_logits),
        }
        return torch.cat([values[family] for family in self.config.descriptors.families], dim=1)


def _new_trunk(config: MMAConfig) -> ResNet | Tiny | HFTrunk:
    if not config.trunk.startswith(HF_PREFIX):
        return TRUNKS[config.trunk]()
    from mma.hf_trunk import HFTrunk

    return HFTrunk(config.trunk_config, config.crop_size_px)


def new_mma(config: MMAConfig) -> MMANetwork:
    """A network on the CPU whose weights are yet to be filled or loaded: they hold whatever the memory held.

    Skips torch's own initialisation, which is slow for a ResNet-50 and draws from the global random state. An `hf:`
    trunk that cannot be built raises ValueError, with the mend.
    """
    if config.trunk.startswith(HF_PREFIX):
        return _new_hf_mma(config, seed=0)
    with torch.device("meta"):
        network = MMANetwork(config)
    network.to_empty(device="cpu")
    network.pixel_mean.copy_(torch.tensor(config.pixel_mean))
    network.pixel_std.copy_(torch.tensor(config.pixel_std))
    return network


def _new_hf_mma(config: MMAConfig, seed: int) -> MMANetwork:
    # With all its initial values: a model of transformers has buffers that no checkpoint holds (position ids), and
    # those are only filled where the model is built for real. Its initial values come from the global random state.
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return MMANetwork(config)


def random_mma(config: MMAConfig, seed: int) -> MMANetwork:
    """An untrained network, in training mode: the start of a training, or a stand-in where no weights are at hand.

    The same weights, bit for bit, for one configuration and seed on every machine; torch's global random state is
    neither used nor moved. Convolutions after He et al. 2015, uniform. An `hf:` trunk has transformers' own initial
    weights, the same under the same versions of torch and transformers.
    """
    foreign = config.trunk.startswith(HF_PREFIX)
    network = _new_hf_mma(config, seed) if foreign else new_mma(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in (network.heads if foreign else network).modules():
            if isinstance(module, (nn.Conv2d, MirrorConvolution)):
                _fill_uniform(module.weight, (6 / module.weight[0].numel()) ** 0.5, generator)
                if module.bias is not None:
                    module.bias.zero_()
                if isinstance(module, MirrorConvolution):
                    module.gain.fill_(1.0)
            elif isinstance(module, nn.Linear):
                # Heads start small: what they say at random would have to be unlearnt, and tanh must not start at 1.
                _fill_uniform(module.weight, 0.1 * (3 / module.in_features) ** 0.5, generator)
                module.bias.zero_()
            elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
                module.reset_parameters()
        for module in network.modules():
            # The last norm of each residual block. At 1 a block doubles the variance, and untrained batch norm does
            # not take that back: after 16 blocks the heads' outputs would stand at their limits for every input.
            if isinstance(module, BasicBlock):
                module.bn2.weight.fill_(0.25)
            elif isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.25)
    return network


def _fill_uniform(tensor: torch.Tensor, bound: float, generator: torch.Generator) -> None:
    # Uniform numbers in steps of their own: no logarithm or fused multiply whose last bit depends on the processor.
    tensor.uniform_(generator=generator).mul_(2).sub_(1).mul_(bound)
