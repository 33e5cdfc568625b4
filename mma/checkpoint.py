"""MMA checkpoints: one safetensors file that holds the weights and, as JSON in its metadata, all that goes with them.

Loading executes no code, and refuses in one line whatever does not fit: a checkpoint that loads is one whose every
number has its place. Files on object stores go through the bytes forms, `dump_mma` and `load_mma`.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

from mma.checkpoint_header import FORMAT_VERSION, METADATA_KEY, digest, read_description, seal_of, whole_file
from mma.config import MMAConfig
from mma.network import MMANetwork, new_mma


class LoadedMMA(NamedTuple):
    """A checkpoint that was read."""

    network: MMANetwork
    """On the CPU, in evaluation mode."""
    config: MMAConfig
    """The same as `network.config`."""
    record: dict[str, Any]
    """What the writer noted beside the weights: how they were trained, on what, with which scores."""
    weights_sha256: str
    """See the function of this name; computed from the loaded weights, never taken from the file."""


def weights_sha256(network: MMANetwork) -> str:
    """The network's identity: `tensors_sha256` of all parameters and buffers."""
    return tensors_sha256(network.state_dict())


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes, by name; of the file's layout, the memory format and the device it
    depends on none."""
    return digest(
        (
            name,
            str(tensor.dtype),
            tuple(tensor.shape),
            tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data,
        )
        for name, tensor in sorted(tensors.items())
    )


def dump_mma(network: MMANetwork, record: Mapping[str, Any]) -> bytes:
    """The whole checkpoint as bytes. `record`: any plain JSON values; else ValueError."""
    descriptors = network.config.descriptors
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    finite = all(bool(torch.isfinite(each).all()) for each in tensors.values() if each.is_floating_point())
    content = {
        "format_version": FORMAT_VERSION,
        "config": network.config.to_dict(),
        "descriptors": {family: list(names) for family, names in descriptors.families.items()},
        "written_by": {"mma-mrnnet": project_version(), "torch": str(torch.__version__)},
        "record": dict(record),
        "seal": seal_of(network.config, tensors_sha256(tensors)) if finite else None,
    }
    try:
        metadata = {METADATA_KEY: json.dumps(content, allow_nan=False, sort_keys=True)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"the checkpoint's record must hold plain JSON values without NaN: {error}") from None
    return safetensors.torch.save(tensors, metadata)


def save_mma(network: MMANetwork, path: str | Path, record: Mapping[str, Any]) -> None:
    """Writes the checkpoint at a local path, whole or not at all; a file that is there is replaced."""
    path = Path(path)
    content = dump_mma(network, record)
    # Not tempfile: its files are readable by their owner alone, and a checkpoint is read by other people's jobs.
    temporary = path.with_name(f"_tmp-{uuid.uuid4().hex}-{path.name}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # the new name itself is on disk only once its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load_mma(source: str | Path | bytes, *, name: str | None = None) -> LoadedMMA:
    """Reads a checkpoint from a local path or from a file's bytes.

    `name` stands for the source in error messages (a URI, where only bytes are at hand). What is no checkpoint of
    this project, or does not fit its own configuration, raises a ValueError of one line; a file that is not there,
    FileNotFoundError.
    """
    if isinstance(source, bytes):
        content, name = source, name or "the given bytes"
    else:
        content, name = Path(source).read_bytes(), name or str(source)
    config, record, _ = read_description(content, name)
    with whole_file(name):
        tensors = safetensors.torch.load(content)
    network = new_mma(config)
    check_fit(network.state_dict(), tensors, name, f"trunk {config.trunk} with {config.descriptor_set}")
    network.load_state_dict(tensors)
    return LoadedMMA(network.eval(), config, record, weights_sha256(network))


def project_version() -> str:
    """Of this project, as installed."""
    try:
        return version("mma-mrnnet")
    except PackageNotFoundError:  # code sent to a cluster as a folder is not installed there
        return "not installed"


def check_fit(expected: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], name: str, what: str) -> None:
    """Raises ValueError unless the tensors have the expected names, shapes and dtypes, and are finite.

    `what` describes, in errors, the network that they should be of.
    """
    mend = "the file was changed or mixed up; take the original"
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing:
        raise ValueError(f"{name} lacks {_some(missing)}, which {what} has: {mend}")
    if unknown:
        raise ValueError(f"{name} holds {_some(unknown)}, which {what} has not: {mend}")
    for key, ours in expected.items():
        theirs = tensors[key]
        if theirs.shape != ours.shape or theirs.dtype != ours.dtype:
            raise ValueError(
                f"{name} holds {key} as {theirs.dtype} {tuple(theirs.shape)}, "
                f"where {what} has {ours.dtype} {tuple(ours.shape)}: {mend}"
            )
        # Such weights give NaN descriptors, and in a feature store NaN says that no face was found.
        if theirs.is_floating_point() and not torch.isfinite(theirs).all():
            raise ValueError(
                f"{name} holds NaN or infinity in {key}: its training diverged; take an earlier checkpoint"
            )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
