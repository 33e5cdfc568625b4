"""What a checkpoint says of itself, read without torch: its configuration, its record, and its weights' digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import safetensors
from safetensors import SafetensorError

from mma.config import MMAConfig

FORMAT_VERSION = 1
"""Raised when a file of the new form would be misread by the code before it."""
METADATA_KEY = "mma_mrnnet.mma"
NETWORKS = 1
"""To be raised whenever some trunk's or head's parameters change by name, shape or dtype: older seals hold no more."""
_MAX_HEADER_BYTES = 100_000_000  # the safetensors format's own limit
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "U8": "uint8", "BOOL": "bool"}
_DTYPES |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}


class Description(NamedTuple):
    """A checkpoint's metadata."""

    config: MMAConfig
    record: dict[str, Any]
    """What the writer noted beside the weights."""
    seal: str | None
    """As `seal_of` gave it when the file was written; None for weights that are not finite, and in older files."""


def seal_of(config: MMAConfig, weights_sha256: str) -> str:
    """A digest of a network's configuration and weights: where a file's own is that of its content, its tensors are
    those that its configuration asks for, all finite, and torch need not look at them; where this installation can
    build such a network at all (`hf:` trunks need another library)."""
    told = json.dumps([NETWORKS, config.to_dict(), weights_sha256], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()


def read_description(content: bytes, name: str) -> Description:
    """The metadata of a checkpoint's file content; `name` stands for it in errors.

    Raises ValueError, in one line, for what is no checkpoint of this project; whether its weights fit its configuration
    is `mma.checkpoint.load_mma`'s to say.
    """
    described = _described(read_header(content, name), name)
    seal = described.get("seal")
    return Description(_config(described, name), described["record"], seal if isinstance(seal, str) else None)


def stored_sha256(content: bytes, name: str) -> str:
    """`mma.checkpoint.weights_sha256` of the network that `load_mma` makes of this file content.

    Raises ValueError where the file is damaged.
    """
    with whole_file(name):
        tensors = safetensors.deserialize(content)
    return digest(
        (key, f"torch.{_DTYPES.get(each['dtype'], each['dtype'])}", tuple(each["shape"]), each["data"])
        for key, each in sorted(tensors, key=lambda item: item[0])
    )


def digest(tensors: Iterable[tuple[str, str, tuple[int, ...], Any]]) -> str:
    """sha256 over (name, dtype as torch writes it, shape, little-endian bytes) of tensors that come sorted by name."""
    sha256 = hashlib.sha256()
    for key, dtype, shape, data in tensors:
        sha256.update(f"{key} {dtype} {shape}\n".encode())
        sha256.update(data)
    return sha256.hexdigest()


@contextmanager
def whole_file(name: str) -> Iterator[None]:
    """A damaged file that safetensors finds in the block becomes a ValueError of one line, with the mend."""
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"{name} is a damaged safetensors file ({error}): fetch or copy it again") from None


def read_header(content: bytes, name: str) -> dict[str, Any]:
    """The safetensors header, as JSON: 8 bytes of length (little endian), then that many of JSON."""
    # The JSON's brace first: a header's length begins with 0x80 in one safetensors file of 32.
    if content[8:9] != b"{" and (content[:4] == b"PK\x03\x04" or content[:1] == b"\x80"):
        raise ValueError(
            f"{name} is a PyTorch pickle (.pt, .pth), and loading one can run code: "
            "give a .safetensors file that this project wrote"
        )
    length = int.from_bytes(content[:8], "little")
    try:
        if not 2 <= length <= min(len(content) - 8, _MAX_HEADER_BYTES):
            raise ValueError("its header is longer than the file")
        header = json.loads(content[8 : 8 + length])
        if not isinstance(header, dict):
            raise ValueError("its header is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not a safetensors file, or cut short ({error}): take the original file") from None
    return header


def _described(header: dict[str, Any], name: str) -> dict[str, Any]:
    metadata = header.get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if text is None:
        raise ValueError(f"{name} holds weights, but no MMA configuration in its metadata: give a file of train-mma")
    try:
        described = json.loads(text)
        newest = int(described["format_version"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError(f"{name} has unreadable MMA metadata: write it anew with save_mma") from None
    if newest > FORMAT_VERSION:
        raise ValueError(
            f"{name} is of checkpoint format {newest}, newer than the {FORMAT_VERSION} known here: update this project"
        )
    if not all(isinstance(described.get(key), dict) for key in ("config", "descriptors", "record")):
        raise ValueError(f"{name} has incomplete MMA metadata: write it anew with save_mma")
    return described


def _config(described: dict[str, Any], name: str) -> MMAConfig:
    try:
        config = MMAConfig(**described["config"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} has a configuration that does not fit this project's version: {error}") from None
    ours = {family: list(names) for family, names in config.descriptors.families.items()}
    if described["descriptors"] != ours:
        raise ValueError(
            f"{name} was written with other names or another order in descriptor set {config.descriptor_set!r}: "
            "use the project version that wrote it, or train anew"
        )
    return config
