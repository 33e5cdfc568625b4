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
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        progress = Progress(**json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA_KEY]))
        network.load_state_dict(_part(tensors, "network"))
        average.load_state_dict(_part(tensors, "average"))
        moments = _part(tensors, "optimiser")
        for name, parameter in _named(optimiser, network):
            state = {key.rpartition("/")[2]: value for key, value in moments.items() if key.startswith(f"{name}/")}
            device = parameter.device
            # The step's count stays on the CPU, where torch's optimisers look for it.
            optimiser.state[parameter] = {k: v if k == "step" else v.to(device) for k, v in state.items()}
    except (safetensors.SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"the training's state does not fit: {first[0]}") from None
    return _part(tensors, "best"), progress


def _named(optimiser: torch.optim.Optimizer, network: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    held = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
    return [(name, parameter) for name, parameter in network.named_parameters() if id(parameter) in held]


def _part(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name[len(part) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
