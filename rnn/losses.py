"""The losses of stage 2, over the global batch: correlation, concordance, squared error.

Labels may be unknown (NaN) cell by cell. Moments are population moments over known cells, in float32 also under
autocast (float64 stays float64).
"""

from __future__ import annotations

from typing import Literal

import torch

LossName = Literal["pearson", "ccc", "mse"]

VARIANCE_FLOOR = 1e-6
"""Added to each variance: the gradient at constant predictions is finite and small (PAPER.md, "Pearson loss")."""
LEAST_CELLS = 8
"""A reaction with fewer known labels in a batch leaves the mean."""


def usable_reactions(labels: torch.Tensor, name: LossName) -> torch.Tensor:
    """bool (7,): reactions of a batch's labels (B, 7) that `reaction_loss` is of."""
    known = ~torch.isnan(labels)
    enough = known.sum(dim=0) >= LEAST_CELLS
    if name == "mse":
        return enough
    inf = torch.full_like(labels, torch.inf)
    lowest, highest = torch.where(known, labels, inf).amin(dim=0), torch.where(known, labels, -inf).amax(dim=0)
    return enough & (highest - lowest > 1e-6)


def reaction_loss(predictions: torch.Tensor, labels: torch.Tensor, name: LossName) -> tuple[torch.Tensor, int]:
    """The loss and how many reactions it is of; with none, a zero that is connected to the graph.

    Args:
        predictions: float (B, 7).
        labels: float (B, 7), NaN where unknown.
        name: `pearson` (1 - mean r, PAPER.md, "Stage 2" [ours, consistent with fact]), `ccc` (1 - mean CCC), or `mse`.

    A reaction takes part that has `LEAST_CELLS` known labels, and for the correlations, labels that differ.
    """
    if predictions.dtype != torch.float64:
        predictions = predictions.float()
    labels = labels.to(predictions.dtype)
    known = ~torch.isnan(labels)
    weight = known.to(predictions.dtype)
    count = weight.sum(dim=0)
    y = torch.where(known, labels, torch.zeros_like(labels))
    p = torch.where(known, predictions, torch.zeros_like(predictions))
    usable = usable_reactions(labels, name)
    safe = count.clamp(min=1)
    if name == "mse":
        values = ((p - y) ** 2).sum(dim=0) / safe
    else:
        mean_p, mean_y = p.sum(dim=0) / safe, y.sum(dim=0) / safe
        dp, dy = (p - mean_p) * weight, (y - mean_y) * weight
        covariance = (dp * dy).sum(dim=0) / safe
        variance_p, variance_y = (dp**2).sum(dim=0) / safe, (dy**2).sum(dim=0) / safe
        if name == "pearson":
            agreement = covariance / ((variance_p + VARIANCE_FLOOR) * (variance_y + VARIANCE_FLOOR)).sqrt()
        else:
            agreement = 2 * covariance / (variance_p + variance_y + (mean_p - mean_y) ** 2 + VARIANCE_FLOOR)
        values = 1 - agreement
    used = int(usable.sum())
    if not used:
        return (predictions * 0).sum(), 0
    return torch.where(usable, values, torch.zeros_like(values)).sum() / used, used
