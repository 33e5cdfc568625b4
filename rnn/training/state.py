"""The state of one seed's training between two epochs, as one safetensors file; reading it executes no code."""

from __future__ import annotations

import json
from collections.abc import Mapping

import safetensors
import safetensors.torch
import torch
from torch import nn

from mma.training.state import METADATA_KEY, Progress
from rnn.routed import RoutedOptimiser


def dump_state(
    network: nn.Module,
    best: Mapping[str, torch.Tensor],
    optimiser: torch.optim.Optimizer,
    routed: RoutedOptimiser,
    progress: Progress,
) -> bytes:
    """The whole state as bytes."""
    tensors = {f"network/{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"routed/{name}": tensor for name, tensor in routed.state_tensors().items()}
    for number, parameter in enumerate(_parameters(optimiser)):
        for key, value in optimiser.state.get(parameter, {}).items():
            if value is not None:  # SGD before its first step
                tensors[f"optimiser/{number}/{key}"] = torch.as_tensor(value)
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, {METADATA_KEY: json.dumps(vars(progress), allow_nan=False)})


def load_state(
    content: bytes, network: nn.Module, optimiser: torch.optim.Optimizer, routed: RoutedOptimiser
) -> tuple[dict[str, torch.Tensor], Progress]:
    """Fills network and optimisers from the bytes; gives the best weights so far and the numbers.

    Raises ValueError where the state is of another network or damaged.
    """
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        progress = Progress(**json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA_KEY]))
        network.load_state_dict(_part(tensors, "network"))
        routed.load_state_tensors(_part(tensors, "routed"))
        moments = _part(tensors, "optimiser")
        for number, parameter in enumerate(_parameters(optimiser)):
            own = {k.partition("/")[2]: v for k, v in moments.items() if k.startswith(f"{number}/")}
            # The count stays on the CPU, where torch's optimisers look for it.
            optimiser.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in own.items()}
    except (safetensors.SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"the training's state does not fit: {words}") from None
    return _part(tensors, "best"), progress


def _parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def _part(tensors: Mapping[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    return {name[len(part) + 1 :]: tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
