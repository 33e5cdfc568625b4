"""The GRU of our own is PyTorch's, states and gradients, over videos of any lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnn.packed import packed_gru

LENGTHS = ([5], [1, 1, 1], [3, 9, 1, 9], [17, 2, 8, 8, 1, 16, 3])


def both(layers: nn.GRU, videos: torch.Tensor, lengths: torch.Tensor, way):
    """States, and the gradients of a sum that weighs every state differently."""
    layers.zero_grad()
    inputs = videos.clone().requires_grad_()
    states, _ = pad_packed_sequence(way(pack_padded_sequence(inputs, lengths, True, False)), batch_first=True)
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
    lengths = torch.tensor(lengths)
    ours = both(layers, videos, lengths, lambda packed: packed_gru(layers, packed))
    theirs = both(layers, videos, lengths, lambda packed: layers(packed)[0])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=within)


def test_no_gradient_of_the_inputs_is_made_where_none_is_asked_for():
    layers = nn.GRU(4, 6).double()
    packed = pack_padded_sequence(torch.randn(2, 5, 4, dtype=torch.float64), torch.tensor([5, 2]), True)
    packed_gru(layers, packed).data.sum().backward()
    assert not packed.data.requires_grad
    assert layers.weight_hh_l0.grad is not None


def test_frozen_weights_get_no_gradient():
    layers = nn.GRU(4, 6).double().requires_grad_(False)
    inputs = torch.randn(1, 5, 4, dtype=torch.float64, requires_grad=True)
    packed_gru(layers, pack_padded_sequence(inputs, torch.tensor([5]), True)).data.sum().backward()
    assert inputs.grad is not None
    assert layers.weight_hh_l0.grad is None
