"""The settings of a stage-2 training that decide its numbers, and the two presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rnn.losses import LossName
from rnn.routed import RoutedRule

LEAST_BATCH, SMALL_BATCH = 8, 32
"""A correlation over fewer videos than the first is refused, over fewer than the second warned of."""


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a masked RNN is trained; equal options on equal data give equal runs, on any number of workers.

    The defaults are the preset `paper` where PAPER.md names one.
    """

    loss: LossName = "pearson"
    """pearson (1 - mean correlation over the batch), ccc, or mse."""
    epochs: int = 60
    """Most epochs; an early stop may end sooner."""
    patience: int | None = 15
    """Epochs without a better validation score after which a seed ends; None: all epochs are run."""
    batch_size: int = 128
    """Videos of a global batch, over all workers, drawn uniformly: the correlation is of the whole batch."""
    optimiser: RoutedRule = "adam"
    """adam, adamw, or sgd (momentum .9)."""
    learning_rate: float = 1e-4
    """At its highest."""
    schedule: Literal["constant", "cosine"] = "constant"
    """constant, or half a cosine towards 0 over all epochs after a warm-up over their first twentieth."""
    weight_decay: float = 0.0
    """On matrices other than the routed layer's; decoupled with adamw."""
    clip_norm: float = 5.0
    """The gradient is scaled down to this norm where it is longer; 0 leaves it."""
    groups: int | None = None
    """Groups of like length that a batch runs through the RNN in; default: 2 for a GRU on CPUs, which skips padding by
    itself, else 4. Changes the time, not the result."""

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "groups"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--fit.{name} {value}: give 1 or more")
        if self.batch_size < LEAST_BATCH:
            raise ValueError(
                f"--fit.batch-size {self.batch_size}: fewer than {LEAST_BATCH} videos give no correlation; "
                "give 128, or at least 32"
            )
        for name in ("learning_rate", "weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--fit.{name.replace('_', '-')} {getattr(self, name)}: give 0 or more")


PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "recommended": {
        "network": {"readout": "masked-statistics", "units": 64, "dropout": 0.2},
        "fit": {"optimiser": "adamw", "learning_rate": 3e-3, "schedule": "cosine", "weight_decay": 1e-2, "epochs": 40},
    },
    "paper": {},
}
"""What each preset sets away from the defaults, by group of options; the first is the default. `paper`: PAPER.md's
tables exactly, which the defaults are."""
