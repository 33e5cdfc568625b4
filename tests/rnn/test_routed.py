"""The routed layer's optimiser: block t moves as under a dense optimiser that saw only the steps which reached t."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reaction_worlds import made_batches, made_training

from rnn.routed import RoutedDense, RoutedOptimiser

T, UNITS, WIDTH = 9, 3, 2
DENSE = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
}


def gradients(count: int = 30) -> list[tuple[int, torch.Tensor]]:
    """Steps as (how far they reach, the gradient, zero beyond)."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(count):
        reached = int(rng.integers(1, T))  # block T - 1 is never reached
        gradient = torch.from_numpy(rng.normal(size=(T, UNITS, WIDTH)))
        gradient[reached:] = 0
        found.append((reached, gradient))
    return found


@pytest.mark.parametrize("rule", DENSE)
def test_each_block_follows_a_dense_optimiser_of_the_steps_that_reach_it(rule):
    start = torch.randn(T, UNITS, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.nn.Parameter(start.clone())
    routed = RoutedOptimiser([weight], rule=rule, learning_rate=0.01, weight_decay=0.1 if rule == "adamw" else 0.0)
    blocks = [torch.nn.Parameter(start[t].clone()) for t in range(T)]
    dense = [DENSE[rule]([block]) for block in blocks]
    for reached, gradient in gradients():
        weight.grad = gradient.clone()
        routed.reach(reached)
        routed.step()
        for t in range(reached):
            blocks[t].grad = gradient[t].clone()
            dense[t].step()
    for t in range(T):
        torch.testing.assert_close(weight[t].detach(), blocks[t].detach(), rtol=0, atol=1e-13)
    assert torch.equal(weight[T - 1].detach(), start[T - 1])
    assert (weight[0].detach() != start[0]).all()


def test_what_no_step_reached_keeps_weights_moments_and_counters_to_the_bit():
    weight = torch.nn.Parameter(torch.randn(T, UNITS, WIDTH))
    routed = RoutedOptimiser([weight], rule="adamw", learning_rate=0.1, weight_decay=0.5)
    before = weight.detach().clone()
    for _ in range(3):
        weight.grad = torch.randn_like(weight)  # even a gradient beyond must not move them
        routed.reach(4)
        routed.step()
    assert torch.equal(weight[4:].detach(), before[4:])
    assert all((tensor[4:] == 0).all() for tensor in routed.state_tensors().values())
    assert (routed.state_tensors()["0/count"][:4] == 3).all()


def test_micro_batches_count_as_one_step_of_the_longest():
    weight = torch.nn.Parameter(torch.zeros(T, UNITS, WIDTH))
    routed = RoutedOptimiser([weight], rule="sgd", learning_rate=1.0)
    weight.grad = torch.ones_like(weight)
    routed.reach(5)
    routed.reach(2)
    routed.step()
    assert (weight[:5] == -1).all()
    assert (weight[5:] == 0).all()
    routed.step()  # nothing reached since
    assert (weight[:5] == -1).all()


@pytest.mark.parametrize("rule", DENSE)
def test_a_training_moves_only_what_its_batches_reach_also_after_a_resumption(rule):
    """Real steps: the largest true length of each batch decides, and the state carries the counters over."""
    through, first, second = (made_training(rule=rule, rate=0.01) for _ in range(3))
    batches = made_batches(8, 12)
    short = np.flatnonzero(first.train.sequences.lengths <= 6)[:12].astype(np.int64)
    start = first.network.readout.dense.weight.detach().clone()
    for training in (through, first):
        training.step(short)
    longest = int(first.train.sequences.lengths[short].max())
    assert torch.equal(first.network.readout.dense.weight[longest:].detach(), start[longest:])
    assert not torch.equal(first.network.readout.dense.weight[:longest].detach(), start[:longest])
    for batch in batches[:4]:
        first.step(batch)
    second.resume(first.state())
    for batch in batches[4:]:
        second.step(batch)
    for batch in batches:
        through.step(batch)
    for name, weights in through.network.state_dict().items():
        torch.testing.assert_close(second.network.state_dict()[name], weights, rtol=0, atol=1e-12, msg=name)
    for name, moments in through.routed.state_tensors().items():
        torch.testing.assert_close(second.routed.state_tensors()[name], moments, rtol=0, atol=1e-12, msg=name)


@pytest.mark.parametrize("rule", DENSE)
def test_in_a_training_each_block_follows_a_dense_optimiser_of_the_batches_that_reach_it(rule):
    """On the gradients that real steps leave, clipped as they are; batches of short videos between the others."""
    training = made_training(rule=rule, rate=0.01)
    weight, lengths = training.network.readout.dense.weight, training.train.sequences.lengths
    blocks = [torch.nn.Parameter(block.clone()) for block in weight.detach()]
    settings = {"sgd": {"momentum": 0.9}, "adam": {}, "adamw": {"weight_decay": 0.0}}[rule]
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rule]
    dense = [kind([block], lr=0.01, **settings) for block in blocks]
    short = np.flatnonzero(lengths <= 7).astype(np.int64)
    reached = set()
    for number, batch in enumerate(made_batches(12, 12)):
        own = np.random.default_rng(number).permutation(short)[:10] if number % 2 else batch
        training.step(own)
        longest = int(lengths[own].max())
        reached.add(longest)
        for t in range(longest):
            blocks[t].grad = weight.grad[t].clone()
            dense[t].step()
    assert len(reached) > 1
    torch.testing.assert_close(weight.detach(), torch.stack([each.detach() for each in blocks]), rtol=0, atol=1e-12)


def test_the_layer_is_a_dense_one_over_the_steps_that_are_there():
    layer = RoutedDense(T, UNITS, WIDTH).double()
    states = torch.randn(4, 6, UNITS, dtype=torch.float64)
    expected = torch.einsum("btu,tuw->bw", states, layer.weight[:6]) + layer.bias
    torch.testing.assert_close(layer(states), expected, rtol=0, atol=1e-13)


def test_a_state_of_other_parameters_is_refused():
    routed = RoutedOptimiser([torch.nn.Parameter(torch.zeros(3, 2, 2))])
    other = RoutedOptimiser([torch.nn.Parameter(torch.zeros(4, 2, 2))])
    with pytest.raises(ValueError, match="other parameters"):
        routed.load_state_tensors(other.state_tensors())
