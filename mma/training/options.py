"""The settings of a training run that decide its numbers; where it runs is the job's matter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from mma.losses import LossOptions
from mma.training.augment import AugmentOptions

Optimiser = Literal["adamw", "sgd"]


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How an MMA network is trained; equal options on equal data give equal runs, on any number of workers."""

    epochs: int = 20
    """Most epochs; an early stop may end sooner."""
    batch_size: int = 64
    """Samples of a global batch, over all workers. CCC and distribution matching are of the whole batch."""
    epoch_samples: int | None = None
    """Samples shown in an epoch; None: as many as there are."""
    learning_rate: float = 1e-3
    """At the top of the schedule; it rises over the warm-up, then falls as half a cosine to 0 after the last step."""
    warmup: float = 0.05
    """Share of all steps over which the learning rate rises."""
    weight_decay: float = 0.05
    """Decoupled, on weights of convolutions and heads; never on biases and norms."""
    optimiser: Optimiser = "adamw"
    """adamw, or sgd (momentum of none), for checks."""
    clip_norm: float = 5.0
    """The gradient is scaled down to this norm where it is longer; 0 leaves it."""
    average: float = 0.99
    """Decay a step of the running mean of the weights, which is what is scored and kept; 0 keeps the last weights."""
    balance: float = 0.0
    """Class-balanced sampling: samples are drawn by the rarity of their rarest label, to this power; 0 draws evenly."""
    patience: int | None = None
    """Epochs without a better validation score after which the run ends; None: all epochs are run."""
    seed: int = 0
    """Root of the weights' start, the order of samples and the augmentation."""
    loss: LossOptions = field(default_factory=LossOptions)
    """The terms of the loss."""
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    """How crops are changed."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "epoch_samples", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        for name in ("learning_rate", "weight_decay", "clip_norm", "balance", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}: give 0 or more")
        for name in ("warmup", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: give a share from 0 to below 1")
