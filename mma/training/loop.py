"""The training of an MMA network, epoch by epoch, in one of `World.size` equal processes.

Each process computes its slice of every global batch, gathers the heads' outputs, and takes the loss of the whole batch
(`mma.training.world`). Scores are of the whole validation split, merged exactly. Between two epochs the whole state is
a handful of bytes that any other number of processes can go on from.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from mma.config import HF_PREFIX
from mma.losses import FrameLabels, stage1_loss
from mma.metrics import Stage1Metrics
from mma.network import MMANetwork, MMAOutputs
from mma.training.augment import NO_AUGMENTATION, NUMBERS, augment
from mma.training.data import TrainingData
from mma.training.draw import (
    batch_count,
    batches,
    epoch_length,
    epoch_order,
    keyed_uniforms,
    rarity_weights,
    repeats,
)
from mma.training.options import TrainingOptions
from mma.training.schedule import warmed_cosine
from mma.training.state import Progress, dump_state, load_state
from mma.training.world import World, gather_rows

EVAL_BATCH = 256
"""Faces that are scored at once."""


class Training:
    """One process's part of a training run. `epochs()` does it; `state()` is what it takes to go on from there."""

    def __init__(
        self,
        network: MMANetwork,
        data: TrainingData,
        options: TrainingOptions,
        *,
        shares: Mapping[str, float] | None = None,
        device: torch.device | str = "cpu",
        bfloat16: bool = False,
        world: World = World(),  # noqa: B008  (frozen)
        prior: torch.Tensor | None = None,
    ) -> None:
        """`shares`: set -> its share of the samples shown; None: as many as it has. The network is taken over.

        `prior`: float (num_expressions, num_action_units) for the terms that use one; None: Du's table.

        `bfloat16` runs the trunk in mixed precision. Batch norms of several processes are synchronised on GPUs, and
        on CPUs, where torch cannot, held at their running statistics (PAPER.md, "Several workers"). Raises ValueError
        without training samples, and for shares or an `epoch_samples` that leave an epoch without any.
        """
        self.data, self.options, self.world, self.prior = data, options, world, prior
        self.device, self.bfloat16 = torch.device(device), bfloat16
        self.freeze_norms = world.size > 1 and self.device.type == "cpu" and has_batch_norm(network)
        self.members = data.members["train"]
        if not self.members:
            raise ValueError("no sample of the split train has labels and a face")
        self.shares = shares or {name: len(rows) for name, rows in self.members.items()}
        self.epoch_samples = options.epoch_samples or sum(len(rows) for rows in self.members.values())
        if not sum(self.shares.get(name, 0.0) for name in self.members) > 0:
            raise ValueError(
                f"the shares {dict(self.shares)} leave nothing to train on: name {', '.join(self.members)}"
            )
        if self.epoch_samples < len(self.members):
            raise ValueError(f"--epoch-samples {self.epoch_samples} is under the {len(self.members)} sets: give more")
        self.total_steps = sum(
            batch_count(epoch_length(self.members, self.shares, self.epoch_samples, epoch), options.batch_size)
            for epoch in range(options.epochs)
        )
        self.descriptors = network.config.descriptors
        if world.size > 1 and self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(self.device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.parallel: nn.Module = self.network
        if world.size > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.parallel = nn.parallel.DistributedDataParallel(
                self.network,
                device_ids=devices,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,
                find_unused_parameters=network.config.trunk.startswith(HF_PREFIX),  # poolers that are not asked for
            )
        self.optimiser = _optimiser(self.network, options)
        self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}
        self.progress = Progress()
        self.weights = self._sampling_weights()

    def state(self) -> bytes:
        """What `resume` takes."""
        parts = {"average": self.average.state_dict(), "best": self.best}
        return dump_state(self.network, self.optimiser, self.progress, parts)

    def resume(self, state: bytes) -> None:
        """Go on from where `state` was taken. Raises ValueError where it is of another network."""
        self.best, self.progress = load_state(
            state, self.network, self.optimiser, lambda parts: self.average.load_state_dict(parts["average"])
        )

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or the score has not risen for `patience` of them."""
        return self.progress.ended(self.options.epochs, self.options.patience)

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train and score epoch after epoch; yields each one's entry of the history, the same on every rank."""
        while not self.finished:
            started_s = time.monotonic()
            losses = self.train_epoch()
            trained_s = time.monotonic() - started_s
            entry: dict[str, Any] = {
                "epoch": self.progress.epochs_done,
                "learning_rate": self.learning_rate(self.progress.steps_done - 1),
                **{f"loss_{name}": value for name, value in losses.items()},
            }
            metrics = self.evaluate(self.data.of_split("val"))
            if metrics is not None:
                scores = metrics.scores(metrics.action_units.best_thresholds())
                entry |= {f"val_{name}": value for name, value in scores.items() if isinstance(value, float)}
            self._keep_best(entry.get("val_abaw_score"))
            seconds = self.world.gather_objects((time.monotonic() - started_s, trained_s))[0]
            entry["seconds"], entry["samples_per_s"] = seconds[0], self.epoch_samples / max(seconds[1], 1e-9)
            self.progress.history.append(entry)
            self.progress.epochs_done += 1
            yield entry

    def train_epoch(self) -> dict[str, float]:
        """One epoch; the mean over its steps of the loss (`total`) and of each of its terms."""
        sums: defaultdict[str, float] = defaultdict(float)
        steps = self._batches(self.progress.epochs_done)
        turns = np.split(repeats(np.concatenate(steps)), np.cumsum([len(batch) for batch in steps])[:-1])
        for batch, turn in zip(steps, turns):
            for name, value in self.step(batch, turn).items():
                sums[name] += value / len(steps)
        return dict(sums)

    def step(self, batch: npt.NDArray[np.int64], turn: npt.NDArray[np.int64] | None = None) -> dict[str, float]:
        """One update from a global batch; the loss and its terms.

        `turn`: how often each sample was shown in this epoch before; None: never.
        Raises FloatingPointError where the loss or the gradient is not finite, before the weights have moved.
        """
        self.parallel.train()
        if self.freeze_norms:
            _freeze(self.network)
        self.optimiser.zero_grad(set_to_none=True)
        outputs = self._outputs(batch, np.zeros_like(batch) if turn is None else turn)
        labels = _frame_labels(self.data, batch, self.device)
        total, terms = stage1_loss(outputs, labels, self.options.loss, self.descriptors, self.prior)
        total.backward()
        values = {"total": float(total.detach()), **{name: float(term) for name, term in terms.items()}}
        if not math.isfinite(values["total"]):
            raise FloatingPointError(f"the loss is {values['total']} at step {self.progress.steps_done}: {values}")
        norm = float(nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip_norm or math.inf))
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient's norm is {norm} at step {self.progress.steps_done}: {values}")
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate(self.progress.steps_done)
        self.optimiser.step()
        self.progress.steps_done += 1
        self._average()
        return values

    def learning_rate(self, step: int) -> float:
        """Rises linearly over the warm-up, then falls as half a cosine, towards 0 after the last step."""
        return self.options.learning_rate * warmed_cosine(step, self.total_steps, self.options.warmup)

    def evaluate(self, rows: npt.NDArray[np.int64], network: MMANetwork | None = None) -> Stage1Metrics | None:
        """The scores' counts over all of `rows`, by every rank together; None where there are none."""
        if not len(rows):
            return None
        own = rows[self.world.slice_of(len(rows))]
        part = score(network or self.average, self.data, own, device=self.device, bfloat16=self.bfloat16)
        first, *others = (Stage1Metrics.from_state(state) for state in self.world.gather_objects(part.state()))
        for other in others:
            first = first.merge(other)
        return first

    def best_network(self) -> MMANetwork:
        """The network whose validation score was best; the last one's running mean where nothing was scored."""
        network = copy.deepcopy(self.average)
        network.load_state_dict(self.best)
        return network

    # --- parts of a step ---

    def _batches(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        order = epoch_order(
            self.members,
            self.shares,
            self.epoch_samples,
            seed=self.options.seed,
            epoch=epoch,
            weights=self.weights,
        )
        return batches(order, self.options.batch_size)

    def _outputs(self, batch: npt.NDArray[np.int64], turn: npt.NDArray[np.int64]) -> MMAOutputs:
        """The heads' outputs for the whole batch, of which this rank computes its slice."""
        here = self.world.slice_of(len(batch))
        own = batch[here]
        crops = _crops(self.data, own, self.network, self.device)
        if getattr(self.network.trunk, "grey", False):  # a third of the augmentation's work
            crops = crops.mean(dim=1, keepdim=True)
        if self.options.augment != NO_AUGMENTATION:
            uniforms = keyed_uniforms(
                own, NUMBERS, seed=self.options.seed, epoch=self.progress.epochs_done, turn=turn[here]
            )
            crops = augment(crops, uniforms, self.options.augment)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bfloat16):
            outputs = self.parallel(crops)
        sizes = self.world.sizes(len(batch))
        return MMAOutputs(*(gather_rows(head, self.world, sizes) for head in outputs))

    def _average(self) -> None:
        # Early on the running mean follows closely: it would hold the random start otherwise.
        steps = self.progress.steps_done
        decay = min(self.options.average, (1 + steps) / (10 + steps)) if self.options.average else 0.0
        ours, theirs = self.average.state_dict(), self.network.state_dict()
        with torch.no_grad():
            for name, tensor in ours.items():
                if tensor.is_floating_point():
                    tensor.lerp_(theirs[name], 1 - decay)
                else:
                    tensor.copy_(theirs[name])

    def _keep_best(self, value: float | None) -> None:
        if self.progress.is_best(value):
            self.best = {name: tensor.clone() for name, tensor in self.average.state_dict().items()}

    def _sampling_weights(self) -> npt.NDArray[np.float64] | None:
        if not self.options.balance:
            return None
        labels, train = self.data.labels, self.data.of_split("train")
        weights = np.zeros(len(labels.expression))
        own = labels.take(train)
        weights[train] = rarity_weights(own.expression, own.action_units, own.action_units_known, self.options.balance)
        return weights


def score(
    network: MMANetwork,
    data: TrainingData,
    rows: npt.NDArray[np.int64],
    *,
    device: torch.device | str = "cpu",
    bfloat16: bool = False,
) -> Stage1Metrics:
    """What the scores of these rows need, counted; any number of rows, none included."""
    descriptors = network.config.descriptors
    network.eval()
    parts = []
    with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
        for start in range(0, max(len(rows), 1), EVAL_BATCH):
            batch = rows[start : start + EVAL_BATCH]
            widths = [len(names) for names in descriptors.families.values()]
            values = np.zeros((0, sum(widths)), np.float32)
            if len(batch):
                values = network.descriptors(_crops(data, batch, network, device)).float().cpu().numpy()
            valence_arousal, expressions, action_units = np.split(values, np.cumsum(widths)[:-1], axis=1)
            labels = data.labels.take(batch)
            parts.append(
                Stage1Metrics.of(
                    descriptors,
                    valence_arousal=valence_arousal,
                    expressions=expressions,
                    action_units=action_units,
                    valence_arousal_label=labels.valence_arousal,
                    valence_arousal_known=labels.valence_arousal_known,
                    expression_label=labels.expression,
                    action_unit_label=labels.action_units,
                    action_unit_known=labels.action_units_known,
                )
            )
    first, *others = parts
    for other in others:
        first = first.merge(other)
    return first


def _crops(
    data: TrainingData, rows: npt.NDArray[np.int64], network: MMANetwork, device: torch.device | str
) -> torch.Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(data.faces[rows])).to(device, non_blocking=True)
    dtype = next(network.parameters()).dtype
    return network.normalise(pixels).to(dtype)


def _frame_labels(data: TrainingData, rows: npt.NDArray[np.int64], device: torch.device) -> FrameLabels:
    return FrameLabels(*(torch.from_numpy(each).to(device) for each in data.labels.take(rows)))


def _optimiser(network: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    """Decay on matrices and kernels alone; norms and biases are one-dimensional."""
    matrices = [each for each in network.parameters() if each.requires_grad and each.ndim > 1]
    vectors = [each for each in network.parameters() if each.requires_grad and each.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if options.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=options.learning_rate)
    return torch.optim.AdamW(groups, lr=options.learning_rate)


def has_batch_norm(network: nn.Module) -> bool:
    """Whether some layer takes statistics over the batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())


def _freeze(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
