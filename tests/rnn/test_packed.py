"""The GRU of our own is PyTorch's, states and gradients, over videos of any lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rnn.packed import gru_states

LENGTHS = ([5], [1, 1, 1], [3, 9, 1, 9], [17, 2, 8, 8, 1, 16, 3])


def found(layers: nn.GRU, videos: torch.Tensor, way):
    """States, and the gradients of a sum that weighs every state differently."""
    layers.zero_grad()
    inputs = videos.clone().requires_grad_()
    states = way(inputs)
    weights = torch.from_numpy(np.random.default_rng(5).normal(size=states.shape)).to(states)
    (states * weights).sum().backward()
    return [states.detach(), inputs.grad, *[each.grad.clone() for each in layers.parameters()]]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_states_and_gradients_are_those_of_torch(lengths, num_layers, dtype, within):
    torch.manual_seed(0)
    layers = nn.GRU(4, 6, num_layers, batch_first=True).to(dtype)
    videos = torch.randn(len(lengths), max(lengths), 4, dtype=dtype)
    there = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, :, None]
    ours = found(layers, videos, lambda inputs: gru_states(layers, inputs, torch.tensor(lengths)))
    theirs = found(layers, videos, lambda inputs: layers(inputs)[0] * there)
    assert not ours[0][~there.expand_as(ours[0])].any()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=within)


def test_gradients_are_made_of_what_asks_for_them():
    layers = nn.GRU(4, 6, batch_first=True).double()
    inputs, lengths = torch.randn(2, 5, 4, dtype=torch.float64), torch.tensor([5, 2])
    gru_states(layers, inputs, lengths).sum().backward()
    assert layers.weight_hh_l0.grad is not None
    layers.requires_grad_(False).zero_grad()
    gru_states(layers, inputs.requires_grad_(), lengths).sum().backward()
    assert inputs.grad is not None
    assert layers.weight_hh_l0.grad is None
    assert not inputs.grad[1, 2:].any()


def test_mixed_precision_leaves_it_in_float32():
    layers, lengths = nn.GRU(4, 6, batch_first=True), torch.tensor([5, 2])
    inputs = torch.randn(2, 5, 4)
    plain = found(layers, inputs, lambda given: gru_states(layers, given, lengths))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = found(layers, inputs, lambda given: gru_states(layers, given, lengths))
    for one, other in zip(plain, mixed, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
