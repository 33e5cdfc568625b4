"""From trained networks to a model and its scores: calibration, the fall-back row, floors, intervals.

Everything is chosen on validation; test, where it has labels, is only scored. Videos without a sequence are scored
too, with the fall-back row: somebody who asks for a prediction gets one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from rnn.bootstrap import group_scores, interval, paired_difference
from rnn.floors import Floors, fit_floors, summary_statistics
from rnn.grid import GridVideos
from rnn.metrics import ReactionMetrics
from rnn.model import NO_CALIBRATION, ReactionModel, fit_calibration
from rnn.network import MaskedRNN
from rnn.reactions import REACTIONS
from rnn.sequences import Normaliser, SequenceOptions, select
from rnn.training.data import SPLITS, LabelledVideos, SplitVideos

Outputs = Mapping[str, npt.NDArray[np.float64]]
"""A network's raw outputs by split, (m, 7) for the videos with a sequence."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedSeed:
    """One seed's best network."""

    seed: int
    network: MaskedRNN
    outputs: Outputs
    best_epoch: int
    epochs: int


def finished_model(
    trained: Sequence[TrainedSeed],
    splits: Mapping[str, SplitVideos],
    *,
    sequence: SequenceOptions,
    normaliser: Normaliser,
    step_s: float,
    spec: Mapping[str, Any],
    calibrate: bool,
    record: Mapping[str, Any],
) -> ReactionModel:
    """The model of all seeds; calibrated on validation, or on training where that has no labels."""
    judge = "val" if np.isfinite(splits["val"].labelled().labels).any() else "train"
    labels = splits[judge].labelled().labels
    calibrations = [fit_calibration(each.outputs[judge], labels) if calibrate else NO_CALIBRATION for each in trained]
    mapped = np.mean([calibration(each.outputs["train"]) for each, calibration in zip(trained, calibrations)], axis=0)
    return ReactionModel(
        networks=tuple(each.network for each in trained),
        seeds=tuple(each.seed for each in trained),
        calibrations=tuple(calibrations),
        sequence=sequence,
        normaliser=normaliser,
        step_s=step_s,
        fallback=tuple(mapped.mean(axis=0).tolist()),
        spec=spec,
        record={**record, "calibrated_on": judge if calibrate else None},
    )


def split_predictions(
    model: ReactionModel, trained: Sequence[TrainedSeed], split: str, videos: SplitVideos
) -> npt.NDArray[np.float64]:
    """(seeds, n, 7) for all videos of a split, from outputs that are known already."""
    values = np.tile(np.asarray(model.fallback), (len(trained), len(videos.samples), 1))
    for k, (each, calibration) in enumerate(zip(trained, model.calibrations)):
        values[k, videos.seen] = calibration(each.outputs[split])
    return values


def split_scores(
    by_seed: npt.NDArray[np.float64],
    labels: npt.NDArray[np.float32],
    groups: npt.NDArray[np.int64] | None,
    floors: Mapping[str, npt.NDArray[np.float64]],
    kinds: Mapping[str, Sequence[str | None]],
) -> dict[str, Any]:
    """The scores of a split as plain JSON: of the mean over seeds with intervals, of each seed, of each floor, of
    groups of videos, and how much the seeds' mean score lies over the ridge floor's, paired.

    `by_seed` (S, n, 7); labels (n, 7), NaN where unknown; floors by name, (n, 7); `kinds` as `group_scores` takes them.
    """
    values = by_seed.mean(axis=0)
    ridge = floors.get("ridge_statistics")
    each = [ReactionMetrics.of(one, labels).scores()["mean_pearson"] for one in by_seed]
    whole = ReactionMetrics.of(values, labels).scores()
    ends = interval(values, labels, groups)
    for name, own in zip(REACTIONS, ends.pop("by_reaction")):
        if name not in whole["absent"]:
            whole["by_reaction"][name]["interval"] = own
    return {
        **whole,
        "videos": len(labels),
        "labelled": int(np.isfinite(labels).any(axis=1).sum()),
        "interval": ends,
        "groups": group_scores(values, labels, kinds, groups),
        "seeds": {"values": each, "mean": float(np.mean(each)), "spread": float(np.std(each, ddof=len(each) > 1))},
        "floors": {name: ReactionMetrics.of(one, labels).scores() for name, one in floors.items()},
        "over_ridge": None if ridge is None else paired_difference(by_seed, ridge, labels, groups),
    }


def fitted_floors(grid: GridVideos, splits: Mapping[str, LabelledVideos], names: Sequence[str]) -> Floors:
    """Ridge on summary statistics and on metadata, the constant and the best descriptor, fitted on training."""
    train, val = (floor_inputs(grid, splits[each], names) for each in ("train", "val"))
    return fit_floors(train[0], train[1], splits["train"].labels, val[0], val[1], splits["val"].labels)


def floor_inputs(
    grid: GridVideos, videos: LabelledVideos, names: Sequence[str]
) -> tuple[npt.NDArray[np.float64], pa.Table]:
    """Summary statistics of the descriptors, (n, K), and what is known beside the picture, a table of n rows."""
    chosen = select(grid, videos.videos, names)
    return summary_statistics(chosen.values, chosen.offsets), metadata(chosen, videos.samples)


def metadata(chosen: GridVideos, samples: pa.Table) -> pa.Table:
    """Length, frame rate, size, size of the face, share of frames with a face, Age and Country of n videos."""
    facts = chosen.facts
    frames = facts["frames"].to_numpy().astype(np.float64)
    known = facts["frames_known"].to_numpy() / np.maximum(frames, 1)
    columns: dict[str, Any] = {"steps": np.diff(chosen.offsets).astype(np.float64), "face_share": known}
    for name in ("source_fps", "width_px", "height_px", "face_px"):
        columns[name] = facts[name].to_numpy(zero_copy_only=False).astype(np.float64)
    columns["age"] = samples["age"].to_numpy(zero_copy_only=False).astype(np.float64)
    columns["country"] = samples["country"].to_pylist()
    return pa.table(columns)


def copy_of(network: MaskedRNN, state: Mapping[str, torch.Tensor]) -> MaskedRNN:
    """A network of the same shape with these weights, on the CPU."""
    other = MaskedRNN(network.inputs, network.steps, network.config)
    other.load_state_dict({name: tensor.cpu() for name, tensor in state.items()})
    return other.eval()


def scored_splits(splits: Mapping[str, SplitVideos]) -> list[str]:
    """Those of validation and test that have labels."""
    return [each for each in SPLITS[1:] if np.isfinite(splits[each].labels).any()]


def summary_numbers(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores of one split as a job's summary tells them."""
    return {
        "mean_pearson": scores["mean_pearson"],
        "interval": [scores["interval"]["low"], scores["interval"]["high"]],
        "interval_by": scores["interval"]["by"],
        **{name: scores["by_reaction"][name]["pearson"] for name in REACTIONS},
        "mean_ccc": scores["mean_ccc"],
        "floors": {name: floor["mean_pearson"] for name, floor in scores["floors"].items()},
        "seeds": scores["seeds"],
    }
