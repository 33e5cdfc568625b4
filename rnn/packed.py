"""A GRU layer over packed sequences, for the CPU: at each step of time only the videos that still run.

The same function as `torch.nn.GRU`'s, of the same parameters, with the gradient written out: one product of matrices a
step and direction of time, and all that does not depend on the step before (the inputs' share, the gates' slopes, the
gradients of the weights) once for all steps. Padding then costs nothing but the room it takes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def gru_states(layers: nn.GRU, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The states of a GRU of any number of layers, one direction and no dropout.

    Args:
        layers: its parameters; `batch_first`.
        inputs: float (B, l, D); what it holds beyond the lengths is never read.
        lengths: int64 (B,), each from 1 to l.

    Returns:
        (B, l, units), exactly 0 beyond the lengths; float32 under autocast.
    """
    count, most, width = inputs.shape
    order = torch.argsort(lengths, descending=True)
    running = torch.arange(most)[:, None] < lengths[order]
    # Places in the flattened batch of all that is there, step by step, the longest video first.
    places = (torch.arange(most)[:, None] + most * order)[running]
    sizes = [size for size in running.sum(dim=1).tolist() if size]
    data = inputs.reshape(-1, width)[places]
    for number in range(layers.num_layers):
        weights = [getattr(layers, f"{name}_l{number}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        data = _GRULayer.apply(data, *weights, sizes)
    return data.new_zeros((count * most, data.shape[1])).index_copy(0, places, data).view(count, most, -1)


class _GRULayer(torch.autograd.Function):
    """As PyTorch has it: h' = n + z (h - n), n = tanh(W x + b + r (U h + c)); the gates r, z, n in this order."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(
        context: Any,
        data: torch.Tensor,
        weight_ih: torch.Tensor,
        weight_hh: torch.Tensor,
        bias_ih: torch.Tensor,
        bias_hh: torch.Tensor,
        sizes: list[int],
    ) -> torch.Tensor:
        units = weight_hh.shape[1]
        gates = torch.addmm(bias_ih, data, weight_ih.t())
        recurrent = torch.empty_like(gates)
        states = gates.new_empty((len(data), units))
        before = gates.new_zeros((sizes[0], units))
        recurrent_weights = weight_hh.t().contiguous()
        for gate, own, state, size in zip(gates.split(sizes), recurrent.split(sizes), states.split(sizes), sizes):
            before = before[:size]
            torch.addmm(bias_hh, before, recurrent_weights, out=own)
            reset_update, candidate = gate[:, : 2 * units], gate[:, 2 * units :]
            reset_update.add_(own[:, : 2 * units]).sigmoid_()
            candidate.addcmul_(reset_update[:, :units], own[:, 2 * units :]).tanh_()
            torch.lerp(candidate, before, reset_update[:, units:], out=state)
            before = state
        context.sizes = sizes
        context.save_for_backward(data, weight_ih, weight_hh, gates, recurrent[:, 2 * units :], states)
        return states

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        data, weight_ih, weight_hh, gates, recurrent, states = context.saved_tensors
        sizes = context.sizes
        units = states.shape[1]
        reset, update, candidate = gates.split(units, dim=1)
        earlier = _earlier(states, sizes)
        # What a state's gradient is multiplied by on its way to each gate, for all steps at once.
        rest = 1 - update
        to_update = (earlier - candidate).mul_(update).mul_(rest)
        to_candidate = torch.addcmul(rest, rest * candidate, candidate, value=-1)
        to_reset = torch.addcmul(reset, reset, reset, value=-1).mul_(recurrent)
        # The gradients of U h + c, gate by gate; those of W x + b are the same but for the candidate's.
        of_gates = torch.empty_like(gates)
        of_candidate = rest
        carried = states.new_zeros((0, units))
        whole = (gradients[0], update, reset, to_update, to_candidate, to_reset, of_candidate)
        gates_by_step = (each.split(sizes) for each in of_gates.split(units, dim=1))
        for incoming, z, r, a, b, c, own_candidate, own, own_reset, own_update, own_recurrent in reversed(
            list(zip(*(each.split(sizes) for each in whole), of_gates.split(sizes), *gates_by_step))
        ):
            total = incoming.clone()
            total[: len(carried)].add_(carried)
            torch.mul(total, b, out=own_candidate)
            torch.mul(own_candidate, c, out=own_reset)
            torch.mul(total, a, out=own_update)
            torch.mul(own_candidate, r, out=own_recurrent)
            carried = torch.addmm(total.mul_(z), own, weight_hh)
        of_weight_hh, of_bias_hh = of_gates.t() @ earlier, of_gates.sum(dim=0)
        of_gates[:, 2 * units :] = of_candidate
        of_data = of_gates @ weight_ih if context.needs_input_grad[0] else None
        return of_data, of_gates.t() @ data, of_weight_hh, of_gates.sum(dim=0), of_bias_hh, None


def _earlier(states: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Of each packed step the state before it; 0 before the first."""
    earlier = torch.zeros_like(states)
    blocks = states.split(sizes)
    for own, before in zip(earlier.split(sizes)[1:], blocks):
        own.copy_(before[: len(own)])
    return earlier
