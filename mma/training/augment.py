"""Augmentation of face crops, on the device where they are, each sample by its own keyed numbers.

No change here alters a label: faces are nearly symmetric in what action units, expressions and affect say of them, so
a mirrored face keeps all. Turns, shifts and sizes stay within what a face detector's boxes vary by.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

NUMBERS = 15
"""Uniform numbers that a sample's augmentation takes (`mma.training.draw.keyed_uniforms`)."""


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """How far training crops are changed. 0 turns a change off."""

    flip: float = 0.5
    """Probability of a mirrored face."""
    turn_deg: float = 7.0
    """Largest turn either way, degrees."""
    zoom: float = 0.08
    """Largest change of size either way, as a share."""
    shift: float = 0.04
    """Largest shift either way along each axis, as a share of the crop's side."""
    contrast: float = 0.3
    """Largest change of contrast either way, as a share."""
    brightness: float = 0.1
    """Largest change of brightness either way, as a share of the range from black to white."""
    tint: float = 0.05
    """Largest change of each colour channel by itself, as a share of the same range."""
    erase: float = 0.25
    """Probability that a rectangle of the crop is blanked."""
    erase_side: float = 0.35
    """Longest side of that rectangle, as a share of the crop's side."""

    def __post_init__(self) -> None:
        for name, most in {"flip": 1.0, "erase": 1.0, "erase_side": 1.0, "zoom": 0.9, "shift": 0.5}.items():
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"--augment.{name.replace('_', '-')} {getattr(self, name)}: give 0 to {most:g}")
        for name in ("turn_deg", "contrast", "brightness", "tint"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--augment.{name.replace('_', '-')} {getattr(self, name)}: give 0 or more")


NO_AUGMENTATION = AugmentOptions(
    flip=0.0, turn_deg=0.0, zoom=0.0, shift=0.0, contrast=0.0, brightness=0.0, tint=0.0, erase=0.0
)


def augment(crops: torch.Tensor, uniforms: npt.NDArray[np.float64], options: AugmentOptions) -> torch.Tensor:
    """Changed crops: float (N, 3, H, W) as the network's `normalise` gives them, and (N, NUMBERS) in [0, 1).

    Crops of one channel, the mean of the three, give the mean of what the three would have given.

    Brightness, tint and blanks are measured in units of the normalised range from black to white, taken as 2 wide
    around 0. What a turn or shift brings in from outside repeats the edge. The result is channels last in memory.
    """
    if not len(crops):  # the share of a worker in a batch of fewer samples than workers
        return crops
    dtype, device = crops.dtype, crops.device
    columns = torch.from_numpy(np.ascontiguousarray(uniforms.T)).to(device=device, dtype=dtype)
    signed = 2 * columns - 1  # what of it is a change either way
    if options.flip or options.turn_deg or options.zoom or options.shift:
        crops = _moved(crops, columns, signed, options)
    if options.contrast or options.brightness or options.tint:
        gain = 1 + options.contrast * signed[5]
        tint = signed[7:10] if crops.shape[1] == 3 else signed[7:10].mean(dim=0, keepdim=True)
        offset = 2 * options.brightness * signed[6] + 2 * options.tint * tint  # (channels, N)
        crops = crops * gain[:, None, None, None] + offset.T[:, :, None, None]
    if options.erase:
        crops = crops.masked_fill(_blanked(crops.shape[2:], columns, options)[:, None], 0.0)
    return crops.contiguous(memory_format=torch.channels_last)


def _moved(crops: torch.Tensor, columns: torch.Tensor, signed: torch.Tensor, options: AugmentOptions) -> torch.Tensor:
    mirror = torch.where(columns[0] < options.flip, -1.0, 1.0).to(crops.dtype)
    turn = torch.deg2rad(options.turn_deg * signed[1])
    size = 1 + options.zoom * signed[2]
    cos, sin = torch.cos(turn) * size, torch.sin(turn) * size
    shift_x, shift_y = 2 * options.shift * signed[3], 2 * options.shift * signed[4]
    # From the place in the new crop to the place in the old one; the axes run from -1 to 1.
    rows = [torch.stack([cos * mirror, -sin, shift_x], dim=1), torch.stack([sin * mirror, cos, shift_y], dim=1)]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(crops.shape), align_corners=False)
    return functional.grid_sample(crops, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _blanked(side_px: torch.Size, columns: torch.Tensor, options: AugmentOptions) -> torch.Tensor:
    """bool (N, H, W): where a rectangle is blanked."""

    def stretch(number: int, pixels: int) -> torch.Tensor:
        length = torch.floor(options.erase_side * columns[number] * pixels)
        first = columns[number + 1] * (pixels - length)
        place = torch.arange(pixels, device=columns.device)
        return (place >= first[:, None]) & (place < (first + length)[:, None])

    chosen = columns[10] < options.erase
    return stretch(11, side_px[0])[:, :, None] & stretch(13, side_px[1])[:, None, :] & chosen[:, None, None]
