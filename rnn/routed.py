"""The dense layer with weights a step of time, and the optimiser that moves only those which some video reached.

"Weights are updated according to the true length" [fact]; how, is ours (PAPER.md, "Routed updates"): a step of the
optimiser touches weights, moments and counters of the first L steps of time alone, L the longest true length that a
global batch holds. The weights of step t then move exactly as under a dense optimiser that was only ever run on the
batches that reached t.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

RoutedRule = Literal["adam", "adamw", "sgd"]


class RoutedDense(nn.Module):
    """A dense layer over the concatenated states of T steps: (B, l, units) with l <= T -> (B, width).

    Steps beyond a video's true length must be exactly 0 (`rnn.network`'s mask); what no step reaches adds nothing.
    """

    def __init__(self, steps: int, units: int, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(steps, units, width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        # As nn.Linear draws over all its inputs; of a video only the reached ones count, but T is what is known.
        bound = (steps * units) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """float (B, l, units) -> (B, width)."""
        length = states.shape[1]
        summed = states.flatten(1) @ self.weight[:length].flatten(0, 1)
        return summed if self.bias is None else summed + self.bias


class RoutedOptimiser:
    """Adam, AdamW or SGD with momentum for parameters whose first axis is steps of time, (T, ...).

    Call `reach(l)` for each (micro-)batch with its largest true length; `step` then moves the first L = max(l) steps.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        rule: RoutedRule = "adam",
        learning_rate: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        """`weight_decay` is decoupled (adamw), or added to the gradient as torch does (adam, sgd)."""
        self.parameters = list(parameters)
        self.rule, self.learning_rate, self.weight_decay = rule, learning_rate, weight_decay
        self.betas, self.epsilon, self.momentum = betas, epsilon, momentum
        self.reached = 0
        self.state: list[dict[str, torch.Tensor]] = [self._fresh(each) for each in self.parameters]

    def _fresh(self, parameter: nn.Parameter) -> dict[str, torch.Tensor]:
        moments = ("momentum",) if self.rule == "sgd" else ("mean", "square")
        state = {name: torch.zeros_like(parameter, requires_grad=False) for name in moments}
        return {**state, "count": torch.zeros(len(parameter), dtype=torch.int64, device=parameter.device)}

    def reach(self, length: int) -> None:
        """Note that a (micro-)batch of this step holds a video of so many steps."""
        self.reached = max(self.reached, length)

    @torch.no_grad()
    def step(self) -> None:
        """Move what was reached since the last one."""
        reached, self.reached = self.reached, 0
        if not reached:
            return
        for parameter, state in zip(self.parameters, self.state):
            if parameter.grad is None:
                continue
            weight, gradient = parameter[:reached], parameter.grad[:reached]
            state["count"][:reached] += 1
            count = state["count"][:reached].to(weight.dtype).view(-1, *[1] * (weight.ndim - 1))
            if self.weight_decay and self.rule == "adamw":
                weight.mul_(1 - self.learning_rate * self.weight_decay)
            elif self.weight_decay:
                gradient = gradient + self.weight_decay * weight
            if self.rule == "sgd":
                moment = state["momentum"][:reached].mul_(self.momentum).add_(gradient)
                weight.sub_(moment, alpha=self.learning_rate)
                continue
            first, second = self.betas
            mean = state["mean"][:reached].lerp_(gradient, 1 - first)
            square = state["square"][:reached].mul_(second).addcmul_(gradient, gradient, value=1 - second)
            deviation = (square / (1 - second**count)).sqrt_().add_(self.epsilon)
            weight.sub_(self.learning_rate * (mean / (1 - first**count)) / deviation)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Moments and counters by `<number of the parameter>/<name>`."""
        return {f"{k}/{name}": tensor for k, state in enumerate(self.state) for name, tensor in state.items()}

    def load_state_tensors(self, tensors: dict[str, Any]) -> None:
        """What `state_tensors` gave. Raises ValueError where it is of other parameters."""
        own = self.state_tensors()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in tensors.items()}:
            raise ValueError("the routed optimiser's state is of other parameters")
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
