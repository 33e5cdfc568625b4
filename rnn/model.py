"""A trained model of stage 2: the networks of all its seeds with everything that prediction needs, as one file.

Weights lie in a safetensors file; its metadata holds, as JSON, the network's shape, how videos become sequences, the
normaliser, the calibration, the spec of the store it was trained on, and the record of the training. Loading executes
no code. `ReactionModel.predict` gives a row for every video, also for those that have no sequence.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from safetensors import SafetensorError

from mma.checkpoint import check_fit, project_version, tensors_sha256
from mma.checkpoint_header import read_header
from mma.store import schema as s
from rnn.grid import GridVideos
from rnn.network import MaskedRNN, NetworkConfig, network_settings
from rnn.reactions import REACTIONS
from rnn.sequences import Normaliser, SequenceOptions, select_seen, to_sequences
from rnn.training.loop import predict

FORMAT_VERSION = 1
METADATA_KEY = "mma_mrnnet.rnn"
RESAMPLED = "resampled"
"""A status of a prediction beside those of a store: the video is longer than the network's weights reach, and was
sampled evenly down to their number."""
PARTLY_KNOWN = 0.5
"""Under this share of frames with a face, a prediction is `partial` (PAPER.md, "Chunks and gaps" [ours])."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """An affine map a reaction, output -> intensity. The slope is positive, so that r does not change."""

    slope: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, outputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """(N, 7) -> (N, 7)."""
        return outputs * np.asarray(self.slope) + np.asarray(self.offset)


NO_CALIBRATION = Calibration(slope=(1.0,) * len(REACTIONS), offset=(0.0,) * len(REACTIONS))


def fit_calibration(outputs: npt.NDArray[np.float64], labels: npt.NDArray[np.float32]) -> Calibration:
    """Least squares over known labels, (N, 7) each (PAPER.md, "Scale" [ours]).

    Where outputs do not vary, or fall as labels rise, no positive slope fits: the mean label then, with a slope so
    small that it is the same everywhere to a thousandth.
    """
    slopes, offsets = [], []
    for column in range(len(REACTIONS)):
        known = np.isfinite(labels[:, column])
        x, y = outputs[known, column], labels[known, column].astype(np.float64)
        if not len(x):
            slopes.append(1.0)
            offsets.append(0.0)
            continue
        variance = x.var()
        slope = ((x - x.mean()) * (y - y.mean())).mean() / variance if variance > 1e-12 else 0.0
        slope = max(slope, 1e-3)
        slopes.append(float(slope))
        offsets.append(float(y.mean() - slope * x.mean()))
    return Calibration(slope=tuple(slopes), offset=tuple(offsets))


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a model says of N videos, in their order."""

    video_ids: list[str]
    values: npt.NDArray[np.float64]
    """(N, 7), the mean over seeds, always finite."""
    spread: npt.NDArray[np.float64]
    """(N, 7), the deviation over seeds; 0 for a single one, and for the fall-back row."""
    by_seed: npt.NDArray[np.float64]
    """(seeds, N, 7)."""
    status: list[str]
    """ok, partial, resampled, no_face or failed; of the last two the values are the fall-back row."""
    steps: npt.NDArray[np.int64]
    """(N,) true length on the grid."""
    steps_used: npt.NDArray[np.int64]
    """(N,) steps that the network saw."""
    face_share: npt.NDArray[np.float64]
    """(N,) share of the frames that should be there which show the face."""
    outside_share: npt.NDArray[np.float64]
    """(N,) share of the known steps with a descriptor outside the training's range; NaN without any."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReactionModel:
    """The networks of S seeds and what goes with them."""

    networks: tuple[MaskedRNN, ...]
    seeds: tuple[int, ...]
    calibrations: tuple[Calibration, ...]
    sequence: SequenceOptions
    normaliser: Normaliser
    step_s: float
    """Seconds a step."""
    fallback: tuple[float, ...]
    """The row for a video that cannot be read: the mean of the mapped training predictions."""
    spec: Mapping[str, Any]
    """Of the store it was trained on; another store's descriptors mean something else."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """How it was trained, on what, with which scores."""

    def predict(
        self,
        grid: GridVideos,
        people: npt.NDArray[np.int64] | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> Predictions:
        """A row for every video of a grid of this model's step. `people` (N,): numbers of persons, where known.

        Raises ValueError for a grid of another step, and without the model's descriptors.
        """
        if abs(grid.step_s - self.step_s) > 1e-9:
            raise ValueError(f"a grid of {grid.step_s} s does not fit a model of {self.step_s} s a step")
        if lacking := [name for name in self.normaliser.names if name not in grid.names]:
            raise ValueError(f"the store lacks the descriptors {', '.join(lacking)}, which the model was trained on")
        count = len(grid)
        seen, own = select_seen(grid, np.arange(count), self.normaliser.names)
        sequences = to_sequences(own, self.sequence, self.normaliser, None if people is None else people[seen])
        by_seed = np.tile(np.asarray(self.fallback), (len(self.networks), count, 1))
        for k, (network, calibration) in enumerate(zip(self.networks, self.calibrations)):
            by_seed[k, seen] = calibration(predict(network.to(device), sequences, device=device))
        steps = np.diff(grid.offsets)
        limited = self.networks[0].config.limits_steps()
        longest = self.networks[0].steps
        facts = grid.facts
        known = facts["frames_known"].to_numpy()
        face_share = known / np.maximum(facts["frames_expected"].to_numpy(), 1)
        outside = np.full(count, np.nan)
        outside[seen] = sequences.outside
        status = np.array(facts["status"].to_pylist(), object)
        has_row = np.zeros(count, bool)
        has_row[seen] = True
        status[has_row & (face_share < PARTLY_KNOWN)] = s.PARTIAL
        sampled = limited and self.networks[0].config.lengths in ("true", "even")
        status[(status == s.OK) & sampled & (steps > longest)] = RESAMPLED
        status[~has_row & (status != s.FAILED)] = s.NO_FACE
        used = np.where(has_row, np.minimum(steps, longest) if limited else steps, 0)
        return Predictions(
            video_ids=grid.video_ids,
            values=by_seed.mean(axis=0),
            spread=by_seed.std(axis=0),
            by_seed=by_seed,
            status=status.tolist(),
            steps=steps,
            steps_used=used,
            face_share=face_share,
            outside_share=outside,
        )

    def with_record(self, **more: Any) -> ReactionModel:
        """The same model that says more of its training."""
        return dataclasses.replace(self, record={**self.record, **more})

    def with_networks(self, networks: tuple[MaskedRNN, ...]) -> ReactionModel:
        """The same model with other weights."""
        return dataclasses.replace(self, networks=networks)

    def sha256(self) -> str:
        """The identity of all its weights."""
        return tensors_sha256(self._tensors())

    def dump(self) -> bytes:
        """The whole model as bytes. Raises ValueError where the record holds more than plain JSON values."""
        content = {
            "format_version": FORMAT_VERSION,
            "network": network_settings(self.networks[0]),
            "reactions": list(REACTIONS),
            "seeds": list(self.seeds),
            "calibrations": [vars(each) for each in self.calibrations],
            "sequence": vars(self.sequence),
            "normaliser": self.normaliser.to_dict(),
            "step_s": self.step_s,
            "fallback": list(self.fallback),
            "spec": dict(self.spec),
            "record": dict(self.record),
            "written_by": {"mma-mrnnet": project_version(), "torch": str(torch.__version__)},
        }
        try:
            metadata = {METADATA_KEY: json.dumps(content, allow_nan=False, sort_keys=True)}
        except (TypeError, ValueError) as error:
            raise ValueError(f"the model's record must hold plain JSON values without NaN: {error}") from None
        return safetensors.torch.save(self._tensors(), metadata)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {
            f"{seed}/{name}": tensor.detach().cpu().contiguous()
            for seed, network in zip(self.seeds, self.networks)
            for name, tensor in network.state_dict().items()
        }


def load_model(content: bytes, *, name: str) -> ReactionModel:
    """What `ReactionModel.dump` gave; `name` stands for it in errors.

    Raises ValueError, in one line, for whatever is no model of this project or does not fit its own configuration.
    """
    metadata = read_header(content, name).get("__metadata__")
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if text is None:
        raise ValueError(f"{name} holds no masked RNN in its metadata: give a file or folder that train wrote")
    try:
        told = json.loads(text)
        if int(told["format_version"]) > FORMAT_VERSION:
            raise ValueError(
                f"it is of format {told['format_version']}, newer than {FORMAT_VERSION}: update this project"
            )
        if tuple(told["reactions"]) != REACTIONS:
            raise ValueError(f"its reactions are {told['reactions']}, not {', '.join(REACTIONS)}")
        config = NetworkConfig(**told["network"]["config"])
        sequence = SequenceOptions(**{**told["sequence"], "descriptors": tuple(told["sequence"]["descriptors"])})
        normaliser = Normaliser.from_dict(told["normaliser"])
        calibrations = tuple(
            Calibration(slope=tuple(each["slope"]), offset=tuple(each["offset"])) for each in told["calibrations"]
        )
        seeds = tuple(told["seeds"])
        if {len(each) for each in vars(normaliser).values()} != {told["network"]["inputs"]}:
            raise ValueError("its normaliser is not of the descriptors that its network takes: take the original file")
        if not seeds or len(calibrations) != len(seeds):
            raise ValueError(f"it has {len(calibrations)} calibrations of {len(seeds)} seeds: take the original file")
        tensors = safetensors.torch.load(content)
        networks = []
        for seed in seeds:
            network = MaskedRNN(told["network"]["inputs"], told["network"]["steps"], config)
            own = {key[len(f"{seed}/") :]: each for key, each in tensors.items() if key.startswith(f"{seed}/")}
            check_fit(network.state_dict(), own, name, f"a {config.cell} with the readout {config.readout}")
            network.load_state_dict(own)
            networks.append(network.eval())
        return ReactionModel(
            networks=tuple(networks),
            seeds=seeds,
            calibrations=calibrations,
            sequence=sequence,
            normaliser=normaliser,
            step_s=float(told["step_s"]),
            fallback=tuple(told["fallback"]),
            spec=told["spec"],
            record=told["record"],
        )
    except (KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"{name} has unreadable metadata or weights ({error!r}): take the original file") from None
    except ValueError as error:
        raise ValueError(f"{error}" if str(error).startswith(name) else f"{name}: {error}") from None
