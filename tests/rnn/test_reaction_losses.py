"""The losses of stage 2 against plain NumPy and finite differences, and what they do where nothing can be said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rnn.losses import LEAST_CELLS, VARIANCE_FLOOR, reaction_loss

B = 16


def made(seed: int = 0, unknown: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random((B, 7))
    labels[rng.random(labels.shape) < unknown] = np.nan
    return rng.random((B, 7)), labels


def reference(p: np.ndarray, y: np.ndarray, name: str) -> float:
    values = []
    for column in range(7):
        known = ~np.isnan(y[:, column])
        a, b = p[known, column], y[known, column]
        if known.sum() < LEAST_CELLS or (name != "mse" and b.var() <= 1e-12):
            continue
        covariance = ((a - a.mean()) * (b - b.mean())).mean()
        if name == "mse":
            values.append(((a - b) ** 2).mean())
        elif name == "pearson":
            values.append(1 - covariance / np.sqrt((a.var() + VARIANCE_FLOOR) * (b.var() + VARIANCE_FLOOR)))
        else:
            below = a.var() + b.var() + (a.mean() - b.mean()) ** 2 + VARIANCE_FLOOR
            values.append(1 - 2 * covariance / below)
    return float(np.mean(values))


@pytest.mark.parametrize("name", ["pearson", "ccc", "mse"])
def test_a_loss_is_the_mean_over_reactions_of_known_cells(name):
    p, y = made()
    loss, used = reaction_loss(torch.from_numpy(p), torch.from_numpy(y), name)
    assert used == 7
    assert loss.item() == pytest.approx(reference(p, y, name), abs=1e-12)


@pytest.mark.parametrize("name", ["pearson", "ccc", "mse"])
def test_its_gradient_is_that_of_finite_differences(name):
    p, y = made(1)
    x = torch.from_numpy(p).requires_grad_()
    reaction_loss(x, torch.from_numpy(y), name)[0].backward()
    for row, column in [(0, 0), (3, 4), (9, 6)]:
        step = np.zeros_like(p)
        step[row, column] = 1e-6
        slope = (reference(p + step, y, name) - reference(p - step, y, name)) / 2e-6
        assert x.grad[row, column].item() == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["pearson", "ccc"])
def test_at_constant_predictions_the_gradient_is_finite_and_small(name, dtype):
    x = torch.full((B, 7), 0.3, dtype=dtype, requires_grad=True)
    loss, _ = reaction_loss(x, torch.from_numpy(made(2, 0.0)[1]).to(dtype), name)
    loss.backward()
    assert loss.item() == pytest.approx(1.0, abs=1e-3)
    assert torch.isfinite(x.grad).all()
    # The floor's own bound; without it the gradient would be infinite.
    assert 0 < x.grad.norm() <= 1.001 / (VARIANCE_FLOOR * 7 * B) ** 0.5


@pytest.mark.parametrize("name", ["pearson", "ccc", "mse"])
def test_reactions_that_say_nothing_leave_the_mean(name):
    """One never varies, one has too few known cells: the loss is that of the others, and they get no gradient."""
    p, y = made(3, 0.0)
    y[:, 1] = 0.5
    y[LEAST_CELLS - 1 :, 2] = np.nan
    x = torch.from_numpy(p).requires_grad_()
    loss, used = reaction_loss(x, torch.from_numpy(y), name)
    loss.backward()
    assert used == (6 if name == "mse" else 5)
    assert loss.item() == pytest.approx(reference(p, y, name), abs=1e-12)
    assert (x.grad[:, 2] == 0).all()
    if name != "mse":
        assert (x.grad[:, 1] == 0).all()


@pytest.mark.parametrize("labels", [torch.full((B, 7), torch.nan), torch.rand(3, 7)])
def test_with_nothing_to_say_the_loss_is_a_zero_of_the_graph(labels):
    x = torch.rand(len(labels), 7, requires_grad=True)
    loss, used = reaction_loss(x, labels, "pearson")
    loss.backward()
    assert (used, loss.item()) == (0, 0.0)
    assert (x.grad == 0).all()


def test_the_loss_is_taken_in_float32_whatever_comes_in():
    p, y = (torch.from_numpy(each) for each in made(4, 0.0))
    loss, _ = reaction_loss(p.bfloat16(), y.bfloat16(), "pearson")
    assert loss.dtype == torch.float32
