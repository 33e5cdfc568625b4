"""`--init`: the start of a training from weights that exist: an earlier MMA checkpoint, or published trunk weights.

Heads are taken over by descriptor name, so that a network of one descriptor set starts another's; trunks by parameter
name. Loading executes no code: safetensors, or PyTorch files read with `weights_only=True`. What was taken, what was
left and what keeps its initial values is told, since a start that silently took nothing looks like a bad training.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from mma.checkpoint import LoadedMMA, load_mma
from mma.checkpoint_header import METADATA_KEY
from mma.config import HF_PREFIX, MMAConfig
from mma.network import MMANetwork

PREFIXES = ("module.", "backbone.", "encoder.", "model.")
"""What training code puts before a trunk's own names."""
NESTED_UNDER = ("state_dict", "model")
"""Where a PyTorch checkpoint keeps its weights, beside its optimiser's and others."""


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """What a network took over. Names are the network's: `trunk.*` and, a descriptor each, `heads.<family>.<name>`."""

    loaded: tuple[str, ...]
    """Taken from the file."""
    skipped: tuple[tuple[str, str], ...]
    """In the file, by its own names, and not taken: (name, reason)."""
    missing: tuple[str, ...]
    """Of the network, and not in the file: keeps its initial values."""
    notes: tuple[str, ...] = ()
    """What makes the weights fit less well than their names do: other pixel scaling, other crops."""

    def told(self) -> str:
        """One or two lines for people."""
        trunk = [sum(name.startswith("trunk.") for name in names) for names in (self.loaded, self.missing)]
        heads = [sum(name.startswith("heads.") for name in names) for names in (self.loaded, self.missing)]
        line = f"took {trunk[0]} of {sum(trunk)} trunk tensors and {heads[0]} of {sum(heads)} descriptors"
        if self.missing:
            line += f"; new: {_some(self.missing)}"
        rest = list(self.notes)
        if self.skipped:
            reasons: dict[str, list[str]] = {}
            for name, reason in self.skipped:
                reasons.setdefault(re.sub(r"\(.*\)", "", reason).strip(), []).append(name)
            rest.insert(0, "left: " + "; ".join(f"{_some(names)} ({reason})" for reason, names in reasons.items()))
        return "\n".join([line, "; ".join(rest)] if rest else [line])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, for a checkpoint's record and a run's summary."""
        return {
            "loaded": list(self.loaded),
            "skipped": dict(self.skipped),
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


def initialise(network: MMANetwork, content: bytes, *, name: str) -> InitReport:
    """Fills the network, in place and where it lies, with what fits of a file's weights.

    Args:
        network: the network to start; what the file does not hold keeps its values.
        content: an MMA checkpoint, or weights with the trunk's own names (torchvision's for ResNets) as safetensors,
            .pth, .pt or zip; prefixes of `PREFIXES` and one nesting of `NESTED_UNDER` are seen through.
        name: stands for the file in messages.

    Raises:
        ValueError: in one line, the network unchanged: no file of weights, one that would run code, another trunk,
            nothing that fits, or NaN.
    """
    if _is_ours(content):
        return _from_checkpoint(network, load_mma(content, name=name), name)
    return _from_published(network, _read_published(content, name), name)


def _from_checkpoint(network: MMANetwork, start: LoadedMMA, name: str) -> InitReport:
    ours, theirs = network.config, start.config
    if _architecture(ours) != _architecture(theirs):
        raise ValueError(
            f"{name} has the trunk {theirs.trunk}, and this network {ours.trunk}: train with --trunk {theirs.trunk}, "
            f"or start from a checkpoint of {ours.trunk}"
        )
    trunk = start.network.trunk.state_dict()
    loaded = [f"trunk.{key}" for key in trunk]
    missing, skipped = [], []
    network.trunk.load_state_dict(trunk)
    for family, names in ours.descriptors.families.items():
        head, other, others = network.heads[family], start.network.heads[family], theirs.descriptors.families[family]
        rows = [(row, others.index(each)) for row, each in enumerate(names) if each in others]
        if rows:
            to, origin = (list(each) for each in zip(*rows, strict=True))
            with torch.no_grad():
                for parameter in ("weight", "bias"):
                    target = getattr(head, parameter)
                    target[to] = getattr(other, parameter)[origin].to(target)
        loaded += [f"heads.{family}.{each}" for each in names if each in others]
        missing += [f"heads.{family}.{each}" for each in names if each not in others]
        reason = f"not a descriptor of {ours.descriptor_set}"
        skipped += [(f"heads.{family}.{each}", reason) for each in others if each not in names]
    notes = []
    if (ours.pixel_mean, ours.pixel_std) != (theirs.pixel_mean, theirs.pixel_std):
        notes.append(f"its pixels were scaled by {theirs.pixel_mean} and {theirs.pixel_std}, this network's are not")
    if ours.crop != theirs.crop:
        notes.append("its faces were cropped in another way than this network's")
    return InitReport(loaded=tuple(loaded), skipped=tuple(skipped), missing=tuple(missing), notes=tuple(notes))


def _from_published(network: MMANetwork, tensors: Mapping[str, torch.Tensor], name: str) -> InitReport:
    expected = network.trunk.state_dict()
    matched: dict[str, str] = {}  # the trunk's name -> the file's; of several, the one with the fewest prefixes
    for key in sorted(tensors, key=lambda each: (len(each), each)):
        if (own := _own_name(key, expected)) is not None:
            matched.setdefault(own, key)
    skipped = []
    fitting: dict[str, torch.Tensor] = {}
    origin = {key: own for own, key in matched.items()}
    for key, tensor in tensors.items():
        own = origin.get(key)
        if own is None:
            skipped.append((key, _reason_left(key, expected, network.config)))
        elif tensor.shape != expected[own].shape:
            skipped.append((key, f"another shape ({tuple(tensor.shape)}, not {tuple(expected[own].shape)})"))
        elif tensor.is_floating_point() != expected[own].is_floating_point():
            skipped.append((key, f"another kind of number ({tensor.dtype}, not {expected[own].dtype})"))
        else:
            fitting[own] = tensor
    if not any(_trained(own) for own in fitting):
        raise ValueError(
            f"{name} holds no weight that fits the trunk {network.config.trunk}: it has {_some(tuple(tensors), 3)}, "
            f"expected are {_some(tuple(expected), 3)}"
            + (f"; {skipped[0][0]} is left as {skipped[0][1]}" if matched else "")
        )
    for own, tensor in fitting.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{name} holds NaN or infinity in {matched[own]}: its training diverged; take another file"
            )
    network.trunk.load_state_dict(fitting, strict=False)
    heads = [
        f"heads.{family}.{each}" for family, names in network.config.descriptors.families.items() for each in names
    ]
    missing = [f"trunk.{own}" for own in expected if own not in fitting and _trained(own)]
    return InitReport(
        loaded=tuple(f"trunk.{own}" for own in expected if own in fitting),
        skipped=tuple(skipped),
        missing=(*missing, *heads),
    )


def _architecture(config: MMAConfig) -> object:
    # The same model of transformers may have been named by its folder on one machine and its Hub name on another.
    return dict(config.trunk_config) if config.trunk.startswith(HF_PREFIX) else config.trunk


def _own_name(key: str, expected: Mapping[str, Any]) -> str | None:
    """The trunk's name for a file's, with as few prefixes taken off as needed; None: the trunk has no such name."""
    while key not in expected:
        prefix = next((each for each in PREFIXES if key.startswith(each)), None)
        if prefix is None:
            return None
        key = key.removeprefix(prefix)
    return key


def _trained(own: str) -> bool:
    return not own.endswith("num_batches_tracked")  # a count that published files of old lack, and nothing depends on


def _reason_left(key: str, expected: Mapping[str, Any], config: MMAConfig) -> str:
    if _own_name(key, expected) is not None:
        return "the same name without its prefix is there already"
    if re.search(r"(^|\.)(fc|classifier|head)\.(weight|bias)$", key):
        return "the classifier, whose place the heads take"
    return f"no such name in the trunk {config.trunk}"


def _is_ours(content: bytes) -> bool:
    length = int.from_bytes(content[:8], "little")
    if not 2 <= length <= len(content) - 8 or content[8:9] != b"{":
        return False
    try:
        return METADATA_KEY in json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (ValueError, RecursionError, AttributeError):
        return False


def _read_published(content: bytes, name: str) -> dict[str, torch.Tensor]:
    """The file's tensors by name, on the CPU."""
    # A safetensors file begins with 8 bytes of length, which may read as a pickle's first; its JSON follows.
    if content[8:9] != b"{" and (content[:4] == b"PK\x03\x04" or content[:1] == b"\x80"):
        found: Any = _read_pytorch(content, name)
    else:
        try:
            found = safetensors.torch.load(content)
        except SafetensorError as error:
            raise ValueError(
                f"{name} is neither safetensors nor a PyTorch file, or cut short ({error}): fetch or copy it again"
            ) from None
    while isinstance(found, Mapping):
        inner = next((found[key] for key in NESTED_UNDER if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    tensors = {key: each for key, each in found.items() if _plain(each)} if isinstance(found, Mapping) else {}
    tensors = {key: tensors[key].detach() for key in sorted(key for key in tensors if isinstance(key, str))}
    if not tensors:
        raise ValueError(f"{name} holds no tensors by name: save a state dict, torch.save(model.state_dict(), file)")
    return tensors


def _plain(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _read_pytorch(content: bytes, name: str) -> Any:
    """A PyTorch file's content, read with `weights_only=True`: tensors and plain containers, nothing that runs."""
    mend = "in its own project, write it anew with torch.save(model.state_dict(), file)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        what = f"more than weights ({wanted[1]})" if wanted else "what is no plain weights"
        raise ValueError(f"{name} holds {what}, and loading that could run code: {mend}") from None
    except Exception as error:  # torch has no class of its own for damaged files and archives of another kind
        first = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise ValueError(f"{name} is a PyTorch file that cannot be read as weights ({first}): {mend}") from None


def _some(names: tuple[str, ...] | list[str], most: int = 2) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
