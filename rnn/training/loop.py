"""The training of one masked RNN, epoch by epoch, in one of `World.size` equal processes.

Each process runs its share of every global batch through the recurrent part (`fair_shares`) and gathers the few numbers
a video that the readout gives; norm, output and loss are of the whole batch on every rank (PAPER.md, "Several
workers"). Gradients are averaged by one all-reduce; what unreached steps of the routed layer would get is not even
sent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from mma.training.draw import batch_count, batches
from mma.training.schedule import warmed_cosine
from mma.training.state import Progress, dump_state, load_state
from mma.training.world import World, gather_rows
from rnn.losses import reaction_loss, usable_reactions
from rnn.metrics import ReactionMetrics
from rnn.network import MaskedRNN
from rnn.routed import RoutedOptimiser
from rnn.sequences import Sequences
from rnn.training.options import FitOptions

EVAL_BATCH = 512
"""Videos that are scored at once."""
WARMUP = 0.05
"""Share of all steps over which a cosine schedule rises."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledSequences:
    """Sequences of N videos and what is known of their reactions."""

    sequences: Sequences
    labels: npt.NDArray[np.float32]
    """(N, 7), NaN where unknown."""

    def __len__(self) -> int:
        return len(self.labels)


class ReactionTraining:
    """One process's part of the training of one seed. `epochs()` does it; `state()` is what it takes to go on."""

    def __init__(
        self,
        network: MaskedRNN,
        train: LabelledSequences,
        val: LabelledSequences | None,
        options: FitOptions,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        bfloat16: bool = False,
        world: World = World(),  # noqa: B008  (frozen)
    ) -> None:
        """The network is taken over. `bfloat16` runs the recurrent part in mixed precision.

        Raises ValueError without training videos.
        """
        if not len(train):
            raise ValueError("no training video has a label and a face")
        self.train, self.val, self.options, self.seed, self.world = train, val, options, seed, world
        self.device, self.bfloat16 = torch.device(device), bfloat16
        self.network = network.to(self.device)
        routed = network.routed_parameters()
        self.routed_names = list(routed)
        self.routed = RoutedOptimiser(
            routed.values(), rule=options.optimiser, learning_rate=options.learning_rate
        )  # without decay: PAPER.md's table
        self.optimiser = _optimiser(network, set(routed), options)
        self.total_steps = options.epochs * batch_count(len(train), options.batch_size)
        self.best = _copied(network)
        self.progress = Progress()

    def state(self) -> bytes:
        """What `resume` takes."""
        parts = {"best": self.best, "routed": self.routed.state_tensors()}
        return dump_state(self.network, self.optimiser, self.progress, parts)

    def resume(self, state: bytes) -> None:
        """Go on from where `state` was taken. Raises ValueError where it is of another network."""
        self.best, self.progress = load_state(
            state, self.network, self.optimiser, lambda parts: self.routed.load_state_tensors(parts["routed"])
        )

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the score has not risen for `patience` of them."""
        return self.progress.ended(self.options.epochs, self.options.patience)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train and score epoch after epoch; yields each one's entry of the history, the same on every rank."""
        while not self.finished:
            started_s = time.monotonic()
            loss = self.train_epoch()
            trained_s = time.monotonic() - started_s
            entry: dict[str, Any] = {
                "epoch": self.progress.epochs_done,
                "seed": self.seed,
                "learning_rate": self.learning_rate(max(self.progress.steps_done - 1, 0)),
                **({} if loss is None else {"loss_total": loss}),
            }
            scores = self.score(self.val)
            if scores is not None:
                entry["val_mean_pearson"] = scores["mean_pearson"]
                entry["val_mean_ccc"] = scores["mean_ccc"]
            self._keep_best(entry.get("val_mean_pearson"))
            seconds = self.world.gather_objects((time.monotonic() - started_s, trained_s))[0]
            entry["seconds"], entry["samples_per_s"] = seconds[0], len(self.train) / max(seconds[1], 1e-9)
            self.progress.history.append(entry)
            self.progress.epochs_done += 1
            yield entry

    def train_epoch(self) -> float | None:
        """One epoch; the mean loss over the steps that had one, None where none had."""
        order = np.random.default_rng([self.seed, self.progress.epochs_done]).permutation(len(self.train))
        losses = [self.step(batch) for batch in batches(order.astype(np.int64), self.options.batch_size)]
        told = [loss for loss in losses if loss is not None]
        return float(np.mean(told)) if told else None

    def step(self, batch: npt.NDArray[np.int64]) -> float | None:
        """One update from a global batch; its loss, None where no reaction can be scored in it: nothing moves then.

        Raises FloatingPointError where the loss or the gradient is not finite, before the weights have moved.
        """
        labels = torch.from_numpy(self.train.labels[batch])
        if not usable_reactions(labels, self.options.loss).any():
            return None
        self.network.train()
        self.network.zero_grad(set_to_none=True)
        loss, _ = reaction_loss(self._predictions(batch), labels.to(self.device), self.options.loss)
        loss.backward()
        value = float(loss.detach())
        reached = self.network.reached(self.train.sequences.lengths[batch].tolist())
        norm = self._settle_gradients(reached)
        if not math.isfinite(value) or not math.isfinite(norm):
            raise FloatingPointError(
                f"the loss is {value}, its gradient's norm {norm}, at step {self.progress.steps_done}"
            )
        rate = self.learning_rate(self.progress.steps_done)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.routed.learning_rate = rate
        self.routed.reach(reached)
        self.optimiser.step()
        self.routed.step()
        self.progress.steps_done += 1
        return value

    def learning_rate(self, step: int) -> float:
        """Of a step of the optimiser."""
        if self.options.schedule == "constant":
            return self.options.learning_rate
        return self.options.learning_rate * warmed_cosine(step, self.total_steps, WARMUP)

    def score(self, split: LabelledSequences | None) -> dict[str, Any] | None:
        """The scores of the whole split, by every rank together; None where there is none, or no reaction in it varies:
        a score of 0 in every epoch would choose the first one."""
        if split is None or not _varies(split.labels):
            return None
        return ReactionMetrics.of(self.predict(split.sequences), split.labels).scores()

    def predict(self, sequences: Sequences) -> npt.NDArray[np.float64]:
        """Outputs of the network as it stands for all N sequences, (N, 7), by every rank together."""
        settings: Any = {"device": self.device, "groups": self.options.groups, "bfloat16": self.bfloat16}
        return predict_together(self.network, sequences, self.world, **settings)

    def best_network(self) -> MaskedRNN:
        """The network with the weights whose validation score was best; the last ones where nothing was scored."""
        self.network.load_state_dict(self.best)
        return self.network

    # --- parts of a step ---

    def _predictions(self, batch: npt.NDArray[np.int64]) -> torch.Tensor:
        """(B, 7) of the whole batch, of which this rank runs its share."""
        shares = fair_shares(self.train.sequences.lengths[batch], self.world.size)
        own = batch[shares[self.world.rank]]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            features = self.network.features(
                _tensors(self.train.sequences, own, self.device, self._dtype), groups=self.options.groups
            )
        features = gather_rows(features.to(self._dtype), self.world, [len(each) for each in shares])
        features = features[torch.from_numpy(np.argsort(np.concatenate(shares))).to(self.device)]
        dropout = torch.Generator().manual_seed(self.seed * 1_000_003 + self.progress.steps_done)
        return self.network.head(features, dropout=dropout)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def _settle_gradients(self, reached: int) -> float:
        """Average over ranks, scale down; the gradient's norm before that."""
        parts = []
        for name, parameter in self.network.named_parameters():
            if parameter.grad is None:  # a rank without videos in this batch
                parameter.grad = torch.zeros_like(parameter)
            parts.append(parameter.grad[:reached] if name in self.routed_names else parameter.grad)
        flat = torch.cat([part.reshape(-1) for part in parts])
        if self.world.size > 1:
            dist.all_reduce(flat)
            flat /= self.world.size
        norm = float(torch.linalg.vector_norm(flat))
        if self.options.clip_norm and norm > self.options.clip_norm:
            flat *= self.options.clip_norm / norm
        start = 0
        for part in parts:
            part.copy_(flat[start : start + part.numel()].view_as(part))
            start += part.numel()
        return norm

    def _keep_best(self, value: float | None) -> None:
        if self.progress.is_best(value):
            self.best = _copied(self.network)


def predict(
    network: MaskedRNN,
    sequences: Sequences,
    rows: npt.NDArray[np.int64] | None = None,
    *,
    device: torch.device | str = "cpu",
    groups: int | None = None,
    bfloat16: bool = False,
) -> npt.NDArray[np.float64]:
    """A network's outputs for these sequences (None: all), float64 (N, 7) in (0, 1), nothing calibrated."""
    rows = np.arange(len(sequences)) if rows is None else rows
    dtype = next(network.parameters()).dtype
    network.eval()
    results = [np.zeros((0, network.output.out_features))]
    # By length, so that padding is short; each video's result depends on no other.
    by_length = np.argsort(sequences.lengths[rows], kind="stable")
    order = rows[by_length]
    with torch.inference_mode():
        for start in range(0, len(order), EVAL_BATCH):
            batch = _tensors(sequences, order[start : start + EVAL_BATCH], torch.device(device), dtype)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
                features = network.features(batch, groups=groups)
            results.append(network.head(features.to(dtype)).double().cpu().numpy())
    outputs = np.concatenate(results)
    back = np.empty_like(outputs)
    back[by_length] = outputs
    return back


def predict_together(
    network: MaskedRNN, sequences: Sequences, world: World, **settings: Any
) -> npt.NDArray[np.float64]:
    """What `predict` gives for all sequences, each rank running its share of them."""
    shares = fair_shares(sequences.lengths, world.size)
    outputs = world.gather_objects(predict(network, sequences, shares[world.rank], **settings))
    return np.concatenate(outputs)[np.argsort(np.concatenate(shares))]


def fair_shares(lengths: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    """Which of the sequences each of `size` ranks runs: as many as any other, and as many steps of time, but for one
    sequence.

    Dealt from the longest to the shortest, to and fro: all ranks wait for the one that is last.
    """
    if size == 1:
        return [np.arange(len(lengths))]
    order = np.argsort(-lengths, kind="stable")
    turn = np.arange(len(order)) % (2 * size)
    rank = np.minimum(turn, 2 * size - 1 - turn)
    return [order[rank == each] for each in range(size)]


def _tensors(
    sequences: Sequences, rows: npt.NDArray[np.int64], device: torch.device, dtype: torch.dtype
) -> list[torch.Tensor]:
    taken = sequences.take(rows)
    if not taken:
        return []
    flat = torch.from_numpy(np.concatenate(taken)).to(device, dtype)
    return list(torch.split(flat, [len(each) for each in taken]))


def _optimiser(network: nn.Module, routed: set[str], options: FitOptions) -> torch.optim.Optimizer:
    """Of everything but the routed layer; decay on matrices alone."""
    own = [parameter for name, parameter in network.named_parameters() if name not in routed]
    groups: list[dict[str, Any]] = [
        {"params": [each for each in own if each.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [each for each in own if each.ndim <= 1], "weight_decay": 0.0},
    ]
    if options.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate, momentum=0.9)
    kind = torch.optim.AdamW if options.optimiser == "adamw" else torch.optim.Adam
    return kind(groups, lr=options.learning_rate)


def _varies(labels: npt.NDArray[np.float32]) -> bool:
    """Whether some reaction has two known labels or more that are no constant, as its score takes them."""
    moments = ReactionMetrics.of(np.nan_to_num(labels), labels).moments
    return bool(((moments.count >= 2) & ~moments.constant).any())


def _copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
