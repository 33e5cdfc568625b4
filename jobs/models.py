"""From options to a network: a checkpoint at a URI, untrained weights for a trial, or the start of a training."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.storage import read
from cluster.uri import StorageError, display
from jobs.outcome import InputError, input_errors
from jobs.progress import say
from mma.checkpoint_header import read_description, seal_of, stored_sha256
from mma.config import HF_PREFIX, MMAConfig
from mma.descriptors import DescriptorSet
from mma.faces.alignment import CropGeometry
from mma.prior import prior_matrix
from mma.store.schema import spec_differences

if TYPE_CHECKING:
    from mma.network import MMANetwork

HOW_TO_GET_WEIGHTS = (
    "--mma is missing: give the URI of a trained MMA checkpoint (.safetensors), "
    "or --mma random:0 for a trial with untrained weights, whose descriptors mean nothing"
)

MODEL_FILE = "mma.safetensors"
"""A checkpoint's name inside a model's folder."""
RUN_FILE = "_run.json"
"""The record of the training run that a folder holds, done or not."""


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
    record: dict[str, Any]
    """What the checkpoint says of its training."""
    option: str
    name: str
    """What the option names, for errors."""
    sealed: bool
    """The weights are those that this project wrote with this configuration, and finite."""

    def check(self) -> None:
        """Whether the weights are whole, finite and those of their configuration; needs torch, which takes seconds to
        import, where they are not sealed. Raises InputError."""
        if self.sealed:
            return
        from mma.checkpoint import load_mma

        with input_errors(ValueError, option=f"{self.option} {self.name}"):
            load_mma(self.data, name=self.name)

    @property
    def random(self) -> bool:
        """Whether nobody trained them."""
        return "random" in self.spec


def load_weights(mma: str | None, *, option: str = "--mma", check: bool = True) -> MMAWeights:
    """The network that an option names.

    Args:
        mma: URI of a checkpoint or of a model's folder, or `random:SEED` or `random:SEED:TRUNK` (ResNet-50 by default).
        option: what the command line calls it, for errors.
        check: `MMAWeights.check` it too; without, no torch is needed for a checkpoint.

    Raises:
        InputError: nothing given, nothing there, no checkpoint, or crops of another geometry than this project cuts.
    """
    if mma is None:
        raise InputError(HOW_TO_GET_WEIGHTS)
    geometry = CropGeometry().spec()
    if mma.startswith("random:"):
        _, seed, *rest = mma.split(":")
        if not seed.isdigit() or len(rest) > 1:
            raise InputError(f"{option} {mma}: give random:SEED or random:SEED:TRUNK, such as random:0:tiny")
        with input_errors(ValueError, option=option):
            config = MMAConfig(trunk=rest[0] if rest else "resnet50", crop=geometry)
        from mma.checkpoint import dump_mma
        from mma.network import random_mma

        told: dict[str, Any] = {"random": mma}
        data = dump_mma(random_mma(config, seed=int(seed)), told)
    else:
        with input_errors(ValueError, StorageError, option=option):
            data = read(mma if mma.endswith(".safetensors") else f"{mma.rstrip('/')}/{MODEL_FILE}")
        told = {}
    name = display(mma)
    with input_errors(ValueError, option=f"{option} {name}"):
        config, record, seal = read_description(data, name)
        sha256 = stored_sha256(data, name)
    crop = dict(config.crop)
    if crop != geometry:
        raise InputError(
            f"{option} {name} was made for crops of another geometry ({crop or 'not recorded'}) than this "
            f"version cuts ({geometry}); use the version that trained it"
        )
    pixels = {"mean": list(config.pixel_mean), "std": list(config.pixel_std)}
    spec = {"sha256": sha256, "trunk": config.trunk, "pixels": pixels, **told}
    weights = MMAWeights(
        data=data,
        descriptors=config.descriptors,
        crop=crop,
        spec=spec,
        record=record,
        option=option,
        name=name,
        sealed=seal == seal_of(config, sha256) and not config.trunk.startswith(HF_PREFIX),
    )
    if check:
        weights.check()
    return weights


def weights_of_store(mma: str | None, spec: Mapping[str, Any], *, whose: str) -> MMAWeights:
    """The network that `--mma` names, which must be the one that a store of this spec was made with.

    Raises InputError as `load_weights` does, and for another network; `whose` says in words which store it is.
    """
    weights = load_weights(mma)
    if differences := spec_differences(weights.spec, spec["weights"]):
        raise InputError(
            f"--mma {display(mma or '')} is not the network of {whose} (given / its): {'; '.join(differences)}"
        )
    return weights


def read_prior(uri: str | None, descriptors: DescriptorSet) -> list[list[float]]:
    """`--prior` for one descriptor set, (num_expressions, num_action_units); None: Du's table.

    Raises:
        InputError: nothing there, or no such table.
    """
    if uri is None:
        return prior_matrix(descriptors).tolist()
    with input_errors(ValueError, StorageError, OSError, option=f"--prior {display(uri)}"):
        table = json.loads(read(uri))
        if not isinstance(table, dict):
            raise ValueError("a prior is a JSON object {expression: {AU: weight}}")
        return prior_matrix(descriptors, table).tolist()


def start_network(trunk: str, descriptor_set: str, init: str | None, *, seed: int) -> tuple[MMANetwork, dict[str, Any]]:
    """The network that a training starts from, and what is to be recorded of where its weights come from.

    Args:
        trunk: `--trunk`; an `hf:` one starts from its pretrained weights.
        descriptor_set: `--descriptor-set`.
        init: `--init`: weights over that start, told to people by what was loaded, skipped and missing.
        seed: of what is random.

    Raises:
        InputError: an unknown trunk, or weights that are not there, do not fit, or would run code.
    """
    from mma.init import initialise
    from mma.network import random_mma

    geometry = CropGeometry().spec()
    if trunk.startswith(HF_PREFIX):
        from mma.hf_trunk import hf_start

        with input_errors(ValueError, option="--trunk"):
            start = hf_start(trunk.removeprefix(HF_PREFIX))
            config = MMAConfig(
                trunk=trunk,
                trunk_config=start.trunk_config,
                descriptor_set=descriptor_set,
                crop=geometry,
                pixel_mean=start.pixel_mean,
                pixel_std=start.pixel_std,
            )
            network = random_mma(config, seed=seed)
            network.trunk.load_state_dict(start.state)
        told: dict[str, Any] = {"pretrained": trunk}
    else:
        with input_errors(ValueError, option="--trunk"):
            config = MMAConfig(trunk=trunk, descriptor_set=descriptor_set, crop=geometry)
            network = random_mma(config, seed=seed)
        told = {"random": seed}
    if init is not None:
        with input_errors(ValueError, StorageError, OSError, option=f"--init {display(init)}"):
            report = initialise(network, read(init), name=display(init))
        say(f"--init {display(init)}: {report.told()}")
        told["init"] = {"uri": display(init), **report.to_dict()}
    return network, told
