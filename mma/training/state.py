"""The state of a training run between two epochs, as one safetensors file: what it takes to go on as if never stopped.

Tensors are weights, the best weights so far, the optimiser's moments and what else a stage has (a running mean of the
weights; the routed layer's moments); all numbers beside them are JSON in the metadata. Reading it executes no code.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
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

    def ended(self, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are done, or the score has not risen for `patience` of them."""
        stalled = self.best_score is not None and patience is not None
        return self.epochs_done >= epochs or (
            stalled and patience is not None and self.epochs_done - 1 - self.best_epoch >= patience
        )

    def is_best(self, score: float | None) -> bool:
        """Take note of this epoch's score; whether its weights are to be kept: none was better, or it has no score."""
        if score is not None and self.best_score is not None and score <= self.best_score:
            return False
        self.best_score, self.best_epoch = score, self.epochs_done
        return True


def dump_state(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    parts: Mapping[str, Mapping[str, torch.Tensor]],
) -> bytes:
    """The whole state as bytes; `parts` are named tensors beside the network's own, the `best` weights among them."""
    tensors: dict[str, torch.Tensor] = {}
    for part, state in {"network": network.state_dict(), **parts}.items():
        tensors |= {f"{part}/{name}": tensor for name, tensor in state.items()}
    for name, parameter in _named(optimiser, network):
        for key, value in optimiser.state.get(parameter, {}).items():
            if value is not None:  # SGD's momentum before the first step
                tensors[f"optimiser/{name}/{key}"] = torch.as_tensor(value)
    # Clones: the format refuses tensors that share memory, as a running mean of decay 0 does.
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(copies, {METADATA_KEY: json.dumps(vars(progress), allow_nan=False)})


def load_state(
    content: bytes,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    fill: Callable[[Mapping[str, dict[str, torch.Tensor]]], object],
) -> tuple[dict[str, torch.Tensor], Progress]:
    """Fills network and optimiser from the bytes; gives the best weights so far and the numbers.

    `fill` takes the other parts; its KeyError, RuntimeError or ValueError says that they do not fit.
    Raises ValueError where the state is of another network or damaged.
    """
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    try:
        parts: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in safetensors.torch.load(content).items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        length = int.from_bytes(content[:8], "little")
        progress = Progress(**json.loads(json.loads(content[8 : 8 + length])["__metadata__"][METADATA_KEY]))
        network.load_state_dict(parts["network"])
        if {name: tensor.shape for name, tensor in parts["best"].items()} != expected:
            raise RuntimeError("the best weights are of another network")
        fill(parts)
        for name, parameter in _named(optimiser, network):
            moments = {k.rpartition("/")[2]: v for k, v in parts["optimiser"].items() if k.startswith(f"{name}/")}
            optimiser.state[parameter] = {key: _laid_like(parameter, key, value) for key, value in moments.items()}
    except (safetensors.SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        words = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"the training's state does not fit: {words}") from None
    return parts["best"], progress


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
