"""The convolutional trunks of the MMA network: a face crop in, one feature vector out. One registry by name.

The ResNets (He et al. 2016; the stride of a bottleneck on its 3 x 3 convolution) carry torchvision's parameter names
and shapes, so that published face and ImageNet weights load; only torchvision's `fc` is absent, since the heads of the
MMA network take its place. `tiny` is ours: for CPUs, tests and the demo. float64 stays float64, for checks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn


def _convolution(in_channels: int, out_channels: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: the block of ResNet-18 and ResNet-34."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, in_channels, H, W) -> float (N, channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions beside a shortcut: the block of ResNet-50."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _convolution(in_channels, channels, 1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _convolution(channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _convolution(channels, channels * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(channels * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, in_channels, H, W) -> float (N, 4 * channels, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


class ResNet(nn.Module):
    """A ResNet without its classifier: float (N, 3, H, W) -> float32 (N, num_features), global average pooled."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck], depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = self._stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = self._stage(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = self._stage(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.num_features = 512 * block.expansion

    @staticmethod
    def _stage(
        block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int, depth: int, stride: int
    ) -> nn.Sequential:
        out_channels = channels * block.expansion
        downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            downsample = nn.Sequential(_convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
        first = block(in_channels, channels, stride, downsample)
        return nn.Sequential(first, *(block(out_channels, channels, 1, None) for _ in range(depth - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, 3, H, W) -> float32 (N, num_features), also under autocast."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return _precise(x).mean(dim=(2, 3))


class MirrorConvolution(nn.Module):
    """A convolution whose kernels come in pairs, each with its mirror image; the input's channels do so too.

    Faces are nearly symmetric in what they show, and a mirrored crop has the same labels: a mirrored input gives the
    mirrored output with the halves of the channels exchanged, for the cost of a plain convolution and half its weights
    (a group convolution, Cohen and Welling 2016, 1602.07576, over the mirror alone). In a trial the first epoch of a
    made corpus gave .02 of CCC more than without.

    Kernels are standardised and scaled, so that activations keep their variance without norms: scaled weight
    standardisation, Brock et al. 2021 (2101.08692), with their factor for ReLU and a learnt gain a channel. No
    statistics of a batch, so that any number of CPU workers compute the same (PAPER.md, "Several workers").
    """

    _RELU = (2 / (1 - 1 / math.pi)) ** 0.5
    _EPSILON = 1e-4

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1) -> None:
        """`in_channels`: 1 (a picture), or those of a convolution like this. An even size with a stride of 2 keeps
        the mirror exact on even pictures."""
        super().__init__()
        self.in_channels, self.stride, self.padding = in_channels, stride, (size - 1) // 2
        self.weight = nn.Parameter(torch.empty(out_channels // 2, in_channels, size, size))
        self.bias = nn.Parameter(torch.zeros(out_channels // 2))
        self.gain = nn.Parameter(torch.ones(out_channels // 2, 1, 1, 1))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, in_channels, H, W) -> float (N, out_channels, H / stride, W / stride)."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        scale = torch.rsqrt(variance * self.weight[0].numel() + self._EPSILON) * self.gain * self._RELU
        kernels = (self.weight - mean) * scale
        swapped = kernels if self.in_channels == 1 else torch.cat(kernels.chunk(2, dim=1)[::-1], dim=1)
        both = torch.cat([kernels, swapped.flip(-1)])
        return nn.functional.conv2d(x, both, torch.cat([self.bias, self.bias]), self.stride, self.padding)


class Tiny(nn.Module):
    """A small trunk for CPUs: local contrast of the grey picture, seven convolutions, and a grid of cells at the end.

    An action unit moves a brow by 2 to 4 px of 112 and draws folds a pixel wide. Light and skin tone say nothing of it:
    each pixel is taken relative to the mean of its neighbourhood and in units of its deviation (without this, learning
    did not start within three epochs of a made corpus). The 7 x 7 grid keeps where in the face something was seen:
    crops put brows and mouth into the same cells. A mirrored face gives the same features.
    """

    grey = True
    """Channels are averaged first, so that whoever augments may do so with one channel before."""
    grid_cells = 7
    neighbourhood_px = 14
    least_deviation = 0.03
    widths = ((24,), (32, 48), (64, 96), (128, 192))

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 1
        for stage, widths in enumerate(self.widths):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                first = in_channels == 1
                layers += [MirrorConvolution(in_channels, width, 6 if first else 3, 2 if first else 1), nn.ReLU()]
                in_channels = width
        self.layers = nn.Sequential(*layers)
        self.num_features = in_channels // 2 * self.grid_cells**2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, 1 or 3, H, W) -> float32 (N, num_features), also under autocast."""
        maps = self.layers(self._local_contrast(x.mean(dim=1, keepdim=True)))
        ours, mirrored = nn.functional.adaptive_avg_pool2d(_precise(maps), self.grid_cells).chunk(2, dim=1)
        cells = (ours + mirrored.flip(-1)).flatten(1) / 2**0.5
        # As a mean over cells would have it: a step of Adam moves all weights of a head by as much, so that thousands
        # of unscaled features would throw tanh to its limits at once, where its gradient ends.
        return cells / self.grid_cells

    def _local_contrast(self, grey: torch.Tensor) -> torch.Tensor:
        """(grey - its local mean) over its local deviation, float (N, 1, H, W)."""
        deviation = grey - self._local_mean(grey)
        return deviation / (self._local_mean(deviation.square()) + self.least_deviation**2).sqrt()

    def _local_mean(self, values: torch.Tensor) -> torch.Tensor:
        # Means of overlapping squares, interpolated: a mean around each pixel costs twenty times as much.
        size = self.neighbourhood_px
        coarse = nn.functional.avg_pool2d(values, size, size // 2, padding=size // 2, count_include_pad=False)
        return nn.functional.interpolate(coarse, size=values.shape[2:], mode="bilinear", align_corners=False)


def _precise(values: torch.Tensor) -> torch.Tensor:
    return values if values.dtype == torch.float64 else values.float()


TRUNKS: dict[str, Callable[[], ResNet | Tiny]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "tiny": Tiny,
}
"""Every trunk by its name: a call builds it. Trunks have `num_features` and return float32 (N, num_features)."""
