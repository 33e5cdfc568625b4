"""The state of a training run between two epochs, as one safetensors file: what it takes to go on as if never stopped.

Tensors are weights, their running mean, the best weights so far and the optimiser's moments; all numbers beside them
are JSON in the metadata. Reading it executes no code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

METADATA_KEY = "mma_mrnnet.training"


@dataclass
class Progress:
    """The numbers of the state, plain JSON values all."""

    epochs_done: int = 0
    steps_done: int = 0
    best_score: float | None = None
    """The best validation score so far; None before the first."""
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    """An entry an epoch: its number, learning rate, losses by term, validation scores, seconds."""


def dump_state(
    network: nn.Module,
    average: nn.Module,
    best: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    progress: Progress,
) -> bytes:
    """The whole state as bytes."""
    tensors: dict[str, torch.Tensor] = {}
    parts = {"network": network.state_dict(), "average": average.state_dict(), "best": best}
    for part, state in parts.items():
        tensors |= {f"{part}/{name}": tensor for name, tensor in state.items()}
    for name, parameter in _named(optimiser, network):
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser/{name}/{key}"] = torch.as_tensor(value)
    # Clones: the format refuses tensors that share memory, as a running mean of decay 0 does.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, {METADATA_KEY: json.dumps(vars(progress), allow_nan=False)})


def load_state(
    content: bytes, network: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer
) -> tuple[dict[str, torch.Tensor], Progress]:
    """Fills networks and optimiser from the bytes; gives the best weights so far and the numbers.

    Raises ValueError where the state is of another network or damaged.
    """
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        progress = Progress(**json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA_KEY]))
        network.load_state_dict(_part(tensors, "network"))
        average.load_state_dict(_part(tensors, "average"))
        best, moments = _part(tensors, "best"), _part(tensors, "optimiser")
        if {name: tensor.shape for name, tensor in best.items()} != expected:
            raise RuntimeError("the best weights are of another network")
        for name, parameter in _named(optimiser, network):
            state = {key.rpartition("/")[2]: value for key, value in moments.items() if key.startswith(f"{name}/")}
            optimiser.state[parameter] = {key: _laid_like(parameter, key, value) for key, value in state.items()}
    except (safetensors.SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"the training's state does not fit: {words}") from None
    return best, progress


def _laid_like(parameter: nn.Parameter, key: str, value: torch.Tensor) -> torch.Tensor:
    if key == "step":  # the count stays on the CPU, where torch's optimisers look for it
        return value
    if value.shape != parameter.shape:
        raise RuntimeError(f"a moment of shape {list(value.shape)} for weights of {list(parameter.shape)}")
    # In the weights' memory format, or torch's fast paths over many tensors would be lost by a resumption.
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _named(optimiser: torch.optim.Optimizer, network: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    return [(name, parameter) for name, parameter in network.named_parameters() if id(parameter) in held]


def _part(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name[len(part) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
