"""The convolutional trunks of the MMA network: a face crop in, one feature vector out. One registry by name.

The ResNets (He et al. 2016; the stride of a bottleneck on its 3 x 3 convolution) carry torchvision's parameter names
and shapes, so that published face and ImageNet weights load; only torchvision's `fc` is absent, since the heads of the
MMA network take its place. `tiny` is ours: for CPUs, tests and the demo.
"""

from __future__ import annotations

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
        return x.float().mean(dim=(2, 3))


class Tiny(nn.Module):
    """A small trunk for CPUs: six convolutions with group norm; its last map is pooled to a grid, not to one cell.

    An action unit moves a drawn brow by 2 to 4 px of 112, so half the resolution is kept for two convolutions before
    the map shrinks, and the 7 x 7 grid keeps where in the face something was seen: aligned crops put brows and mouth
    into fixed cells. Group norm because CPU workers have no synchronised batch norm (PAPER.md, "Several workers").
    """

    grid_cells = 7
    widths = (16, 16, 32, 32, 64, 64)
    strides = (2, 1, 2, 1, 2, 1)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for width, stride in zip(self.widths, self.strides, strict=True):
            size = 5 if in_channels == 3 else 3
            layers += [_convolution(in_channels, width, size, stride), nn.GroupNorm(width // 4, width), nn.ReLU(True)]
            in_channels = width
        self.layers = nn.Sequential(*layers)
        self.num_features = in_channels * self.grid_cells**2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float (N, 3, H, W) -> float32 (N, num_features), also under autocast."""
        return nn.functional.adaptive_avg_pool2d(self.layers(x).float(), self.grid_cells).flatten(1)


TRUNKS: dict[str, Callable[[], ResNet | Tiny]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "tiny": Tiny,
}
"""Every trunk by its name: a call builds it. Trunks have `num_features` and return float32 (N, num_features)."""
