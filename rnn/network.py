"""The masked RNN of stage 2: descriptors of a video, step by step, to 7 reaction intensities.

A recurrent network runs over the true steps of each video; a Mask layer sets what lies beyond the true length to
exactly 0; a readout makes one vector of the rest; norm, activation and a linear output follow. The parts up to that
vector (`features`) are of each video by itself, and the parts after it (`head`) of the whole global batch, so that
workers gather in between (PAPER.md, "Several workers").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rnn.packed import gru_states
from rnn.reactions import REACTIONS
from rnn.routed import RoutedDense

Cell = Literal["gru", "lstm", "rnn"]
Readout = Literal[
    "routed-dense", "masked-statistics", "masked-maximum", "masked-mean", "unmasked-dense", "last", "attention"
]
Lengths = Literal["true", "cut", "repeat", "even"]

STEP_WEIGHTS = ("routed-dense", "unmasked-dense")
"""Readouts with weights of their own for each step of time: no video may be longer than these."""
GROUPS, PACKED_GROUPS = 4, 2
"""Groups of like length that a batch runs through the RNN in: padding costs time alone; where the RNN itself
skips it (`RecurrentLayers.packs`), it costs the readout alone."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of a masked RNN. The defaults are the preset `paper`: PAPER.md, "Stage 2"."""

    cell: Cell = "gru"
    """gru, lstm, or rnn (tanh)."""
    layers: int = 1
    """Recurrent layers on top of each other."""
    bidirectional: bool = False
    """Also backwards, from each video's own last step."""
    units: int = 128
    """Units of a layer and direction."""
    readout: Readout = "routed-dense"
    """routed-dense: weights a step of time, masked. masked-statistics: maximum, mean and deviation of the states over
    the true length. For comparison: masked-maximum, masked-mean, unmasked-dense (what runs on beyond the true length
    counts too), last, attention."""
    lengths: Lengths = "true"
    """true: each video's own. For comparison, all videos brought to `steps`: cut (what is shorter holds its last step),
    repeat (played again from the start), even (sampled or stretched evenly)."""
    dense_width: int = 32
    """Width of the dense layer."""
    batch_norm: bool = True
    """Batch norm after the dense layer."""
    activation: Literal["relu", "gelu", "tanh"] = "relu"
    """After the norm."""
    dropout: float = 0.0
    """Of the dense layer's outputs, while training."""

    def __post_init__(self) -> None:
        for name in ("layers", "units", "dense_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"--network.{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--network.dropout {self.dropout}: give a share from 0 to below 1")
        if self.lengths != "true" and self.readout != "routed-dense":
            raise ValueError(f"--network.lengths {self.lengths} is for --network.readout routed-dense alone")

    def limits_steps(self) -> bool:
        """Whether no sequence may be longer than the network's `steps`."""
        return self.readout in STEP_WEIGHTS


def brought_to(lengths: npt.NDArray[np.int64], steps: int, config: NetworkConfig) -> list[npt.NDArray[np.int64] | None]:
    """For each true length, which of a video's steps the network sees, in order; None: all as they are."""
    if not config.limits_steps():
        return [None] * len(lengths)
    return [_seen(int(length), steps, config.lengths) for length in lengths]


def _seen(length: int, steps: int, how: Lengths) -> npt.NDArray[np.int64] | None:
    if how == "cut":
        return np.minimum(np.arange(steps), length - 1)
    if how == "repeat":
        return np.arange(steps) % length
    if how == "even" or length > steps:  # a true length beyond the weights' reach is sampled evenly too
        return np.round(np.linspace(0, length - 1, steps)).astype(np.int64)
    return None


class RecurrentLayers(nn.Module):
    """The recurrent layers: (B, l, D) with true lengths -> states (B, l, directions * units), for a Mask to cut."""

    def __init__(self, inputs: int, config: NetworkConfig) -> None:
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}[config.cell]
        self.layers = kind(inputs, config.units, config.layers, batch_first=True, bidirectional=config.bidirectional)
        self.bidirectional = config.bidirectional

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Lengths int64 (B,) on the CPU, each at least 1; what inputs hold beyond them never matters."""
        if self.bidirectional:  # packed: the way back begins at each video's own end
            packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
            states = self.layers(packed)[0]
            return nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=inputs.shape[1])[0]
        if self.packs(inputs.device):
            return gru_states(self.layers, inputs, lengths)
        return self.layers(inputs.masked_fill(_beyond(lengths, inputs.shape[1], inputs.device), 0))[0]

    def packs(self, device: torch.device) -> bool:
        """Whether `rnn.packed` runs the layers, at no cost for padding."""
        return isinstance(self.layers, nn.GRU) and not self.bidirectional and device.type == "cpu"


def _beyond(lengths: torch.Tensor, steps: int, device: torch.device) -> torch.Tensor:
    """Which steps lie beyond the true lengths, (B, steps, 1)."""
    return (torch.arange(steps)[None] >= lengths[:, None]).to(device)[:, :, None]


class ReadoutLayer(nn.Module):
    """States and true lengths to one vector a video, (B, l, units) -> (B, num_features)."""

    def __init__(self, units: int, steps: int, config: NetworkConfig) -> None:
        super().__init__()
        self.how = config.readout
        self.steps = steps
        self.attention = nn.Linear(units, 1) if self.how == "attention" else None
        # Batch norm takes a bias out again; what is left of its gradient is rounding, which Adam would blow up to whole
        # steps, others on each number of workers.
        width, bias = config.dense_width, not config.batch_norm
        if self.how in STEP_WEIGHTS:
            self.dense: nn.Module = RoutedDense(steps, units, width, bias=bias)
        else:
            self.dense = nn.Linear(units * (3 if self.how == "masked-statistics" else 1), width, bias=bias)

    def forward(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Lengths int64 (B,) on the CPU."""
        if self.how == "unmasked-dense":
            return self.dense(states)
        beyond = _beyond(lengths, states.shape[1], states.device)
        # The Mask layer: exactly 0, whatever the state was.
        kept = states.masked_fill(beyond, 0)
        if self.how == "routed-dense":
            return self.dense(kept)
        count = lengths.to(states.device, states.dtype)[:, None]
        if self.how == "last":
            return self.dense(states[torch.arange(len(states)), (lengths - 1).to(states.device)])
        if self.attention is not None:
            scores = self.attention(kept).masked_fill(beyond, -torch.inf)
            return self.dense((torch.softmax(scores, dim=1) * kept).sum(dim=1))
        mean = kept.sum(dim=1) / count
        if self.how == "masked-mean":
            return self.dense(mean)
        maximum = states.masked_fill(beyond, -torch.inf).amax(dim=1)
        if self.how == "masked-maximum":
            return self.dense(maximum)
        spread = (states - mean[:, None]).masked_fill(beyond, 0)
        # The floor keeps the root's gradient finite for a video of one step, whose deviation is 0.
        deviation = ((spread**2).sum(dim=1) / count + 1e-8).sqrt()
        return self.dense(torch.cat([maximum, mean, deviation], dim=1))


class MaskedRNN(nn.Module):
    """Descriptors to reactions. `steps` is T, the longest sequence that a readout with weights a step can take."""

    def __init__(self, inputs: int, steps: int, config: NetworkConfig) -> None:
        super().__init__()
        self.inputs, self.steps, self.config = inputs, steps, config
        self.recurrent = RecurrentLayers(inputs, config)
        self.readout = ReadoutLayer(config.units * (2 if config.bidirectional else 1), steps, config)
        self.norm = nn.BatchNorm1d(config.dense_width) if config.batch_norm else nn.Identity()
        self.activation = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}[config.activation]()
        self.output = nn.Linear(config.dense_width, len(REACTIONS))

    def features(self, sequences: Sequence[torch.Tensor], *, groups: int | None = None) -> torch.Tensor:
        """Each video by itself: B sequences (l, D) on the network's device -> (B, dense_width), before the norm.

        They run in groups of like length and return to their order; what a video gives depends on no other.
        """
        if not sequences:
            # Connected to the graph all the same: every rank's backward passes the gather.
            return next(self.parameters()).sum() * next(self.parameters()).new_zeros((0, self.config.dense_width))
        true = np.array([len(each) for each in sequences])
        picks = brought_to(true, self.steps, self.config)
        sequences = [
            each if pick is None else each[torch.from_numpy(pick).to(each.device)]
            for each, pick in zip(sequences, picks)
        ]
        if groups is None:
            groups = PACKED_GROUPS if self.recurrent.packs(sequences[0].device) else GROUPS
        lengths = torch.tensor([len(each) for each in sequences])
        order = torch.argsort(lengths, stable=True)
        results, places = [], []
        for group in torch.tensor_split(order, max(1, min(groups, len(order)))):
            own = lengths[group]
            if self.config.readout == "unmasked-dense":
                own_steps = self.steps  # the network runs on over nothing, and that counts
                padded = sequences[0].new_zeros((len(group), own_steps, self.inputs))
                for k, place in enumerate(group.tolist()):
                    padded[k, : len(sequences[place])] = sequences[place]
                states = self.recurrent(padded, torch.full_like(own, own_steps))
            else:
                padded = nn.utils.rnn.pad_sequence([sequences[place] for place in group.tolist()], batch_first=True)
                states = self.recurrent(padded, own)
            results.append(self.readout(states, own))
            places.append(group)
        back = torch.argsort(torch.cat(places)).to(results[0].device)
        return torch.cat(results)[back]

    def head(self, features: torch.Tensor, *, dropout: torch.Generator | None = None) -> torch.Tensor:
        """(B, dense_width) of the whole batch -> (B, 7) in (0, 1).

        While training, batch norm takes the batch's statistics, and `dropout` draws what is dropped, alike on all
        ranks (None: nothing is).
        """
        hidden = self.activation(self.norm(features))
        if self.training and self.config.dropout and dropout is not None:
            keep = torch.rand(hidden.shape, generator=dropout, dtype=torch.float64) >= self.config.dropout
            hidden = hidden * keep.to(hidden.device, hidden.dtype) / (1 - self.config.dropout)
        return torch.sigmoid(self.output(hidden))

    def forward(self, sequences: Sequence[torch.Tensor]) -> torch.Tensor:
        """B sequences (l, D) -> (B, 7), as a notebook wants it."""
        return self.head(self.features(sequences))

    def reached(self, lengths: Sequence[int]) -> int:
        """The largest step of time that these true lengths reach in the network."""
        if self.config.lengths != "true" or self.config.readout == "unmasked-dense":
            return self.steps
        return min(max(lengths, default=0), self.steps)

    def routed_parameters(self) -> dict[str, nn.Parameter]:
        """By name, those with an axis of time, which `RoutedOptimiser` moves."""
        dense = self.readout.dense
        return {"readout.dense.weight": dense.weight} if isinstance(dense, RoutedDense) else {}


def random_rnn(inputs: int, steps: int, config: NetworkConfig, *, seed: int) -> MaskedRNN:
    """Fresh weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MaskedRNN(inputs, steps, config)


def network_settings(network: MaskedRNN) -> dict[str, Any]:
    """What `MaskedRNN` is built from, as plain JSON."""
    return {"inputs": network.inputs, "steps": network.steps, "config": vars(network.config)}
