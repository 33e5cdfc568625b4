"""From `--mma` to a network: a checkpoint at a URI, or untrained weights for a trial, marked as such."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster.storage import read
from cluster.uri import StorageError, display
from jobs.outcome import InputError, input_errors
from mma.checkpoint import dump_mma, load_mma
from mma.descriptors import DescriptorSet
from mma.faces.alignment import CropGeometry
from mma.network import MMAConfig, random_mma

HOW_TO_GET_WEIGHTS = (
    "--mma is missing: give the URI of a trained MMA checkpoint (.safetensors), "
    "or --mma random:0 for a trial with untrained weights, whose descriptors mean nothing"
)

MODEL_FILE = "mma.safetensors"
"""A checkpoint's name inside a model's folder."""


@dataclass(frozen=True, kw_only=True)
class MMAWeights:
    """An MMA network as jobs hand it on: bytes for the workers, facts for the spec."""

    data: bytes
    """The checkpoint's file content."""
    descriptors: DescriptorSet
    crop: dict[str, Any]
    """The crop geometry that the weights were made for."""
    spec: dict[str, Any]
    """What a store's spec says of the weights: their digest, and that they are random where they are."""

    @property
    def random(self) -> bool:
        """Whether nobody trained them."""
        return "random" in self.spec


def load_weights(mma: str | None) -> MMAWeights:
    """The network that `--mma` names.

    Args:
        mma: URI of a checkpoint or of a model's folder, or `random:SEED` or `random:SEED:TRUNK` (ResNet-50 by default).

    Raises:
        InputError: nothing given, nothing there, no checkpoint, or crops of another geometry than this project cuts.
    """
    if mma is None:
        raise InputError(HOW_TO_GET_WEIGHTS)
    geometry = CropGeometry().spec()
    if mma.startswith("random:"):
        _, seed, *rest = mma.split(":")
        if not seed.isdigit() or len(rest) > 1:
            raise InputError(f"--mma {mma}: give random:SEED or random:SEED:TRUNK, such as random:0:tiny")
        with input_errors(ValueError, option="--mma"):
            config = MMAConfig(trunk=rest[0] if rest else "resnet50", crop=geometry)
        network, told = random_mma(config, seed=int(seed)), {"random": mma}
        data = dump_mma(network, told)
    else:
        with input_errors(ValueError, StorageError, option="--mma"):
            data = read(mma if mma.endswith(".safetensors") else f"{mma.rstrip('/')}/{MODEL_FILE}")
        told = {}
    with input_errors(ValueError, option=f"--mma {display(mma)}"):
        loaded = load_mma(data, name=display(mma))
    crop = dict(loaded.config.crop)
    if crop != geometry:
        raise InputError(
            f"--mma {display(mma)} was made for crops of another geometry ({crop or 'not recorded'}) than this version "
            f"cuts ({geometry}); use the version that trained it"
        )
    pixels = {"mean": list(loaded.config.pixel_mean), "std": list(loaded.config.pixel_std)}
    spec = {"sha256": loaded.weights_sha256, "trunk": loaded.config.trunk, "pixels": pixels, **told}
    return MMAWeights(data=data, descriptors=loaded.config.descriptors, crop=crop, spec=spec)
