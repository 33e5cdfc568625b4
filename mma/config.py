"""What an MMA network is, told without torch: a driver that only hands a checkpoint on starts in half the time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mma.descriptors import DESCRIPTOR_SETS, DescriptorSet

HF_PREFIX = "hf:"
"""How the names of transformers' models begin, as trunks (mma/hf_trunk.py)."""
TRUNK_NAMES = ("resnet18", "resnet34", "resnet50", "tiny")
"""The trunks that `mma.trunks.TRUNKS` builds."""


@dataclass(frozen=True, kw_only=True)
class MMAConfig:
    """What an MMA network is and which pixels it expects; stored whole with its weights."""

    trunk: str = "resnet50"
    """A name of `TRUNK_NAMES`, or `hf:` and a model of transformers. ResNet-50 is the paper's kin;
    `tiny` is for CPUs and tests."""
    trunk_config: Mapping[str, Any] = field(default_factory=dict)
    """For an `hf:` trunk alone: its configuration as `mma.hf_trunk.hf_start` gives it, in plain JSON values, so that a
    checkpoint builds again from itself."""
    descriptor_set: str = "mma26"
    """The name in `mma.descriptors.DESCRIPTOR_SETS`: which descriptors the heads give, and in which order."""
    crop_size_px: int = 112
    """Side of the square RGB face crop, in pixels."""
    pixel_mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    """Subtracted from the RGB bytes (0 to 255), a channel each. With the deviation below: pixels in [-1, 1]."""
    pixel_std: tuple[float, float, float] = (127.5, 127.5, 127.5)
    """Divides them afterwards."""
    crop: Mapping[str, Any] = field(default_factory=dict)
    """How faces were cut out of the frames (template, margins), as plain JSON values: crops that were cut otherwise
    do not fit these weights. Empty: not known."""

    def __post_init__(self) -> None:
        # As JSON gives them back, so that a stored and a loaded configuration compare equal (tuples become lists).
        object.__setattr__(self, "crop", _plain_json("crop", self.crop))
        object.__setattr__(self, "trunk_config", _plain_json("trunk_config", self.trunk_config))
        if str(self.trunk).startswith(HF_PREFIX):
            if not isinstance(self.trunk_config.get("model_type"), str):
                raise ValueError(
                    f"trunk={self.trunk!r} needs a trunk_config with its model_type: take mma.hf_trunk.hf_start's"
                )
        elif self.trunk not in TRUNK_NAMES:
            known = ", ".join(TRUNK_NAMES)
            raise ValueError(f"trunk={self.trunk!r} is not known: choose one of {known}, or hf:<model or folder>")
        elif self.trunk_config:
            raise ValueError(f"trunk={self.trunk!r} takes no trunk_config: that is for hf: trunks")
        if self.descriptor_set not in DESCRIPTOR_SETS:
            known = ", ".join(DESCRIPTOR_SETS)
            raise ValueError(f"descriptor_set={self.descriptor_set!r} is not known: choose one of {known}")
        if self.crop_size_px < 32:
            raise ValueError(f"crop_size_px={self.crop_size_px} is under 32, the trunks' stride: give 32 or more")
        if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3 or min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_mean={self.pixel_mean}, pixel_std={self.pixel_std}: give three each, std above 0")
        object.__setattr__(self, "pixel_mean", tuple(float(value) for value in self.pixel_mean))
        object.__setattr__(self, "pixel_std", tuple(float(value) for value in self.pixel_std))

    @property
    def descriptors(self) -> DescriptorSet:
        """The vocabulary behind `descriptor_set`."""
        return DESCRIPTOR_SETS[self.descriptor_set]

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values; `MMAConfig(**config.to_dict())` is equal to `config`."""
        settings = dataclasses.asdict(self)
        if not self.trunk_config:  # checkpoints of built-in trunks stay readable to versions that do not know the field
            del settings["trunk_config"]
        return settings


def _plain_json(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold plain JSON values, to be stored with the weights: {error}") from None
    return plain
