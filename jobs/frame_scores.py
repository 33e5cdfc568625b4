"""`evaluate` on labelled frame sets: the crops of `train-mma`, scored batch by batch in this process.

Thresholds of action units are the checkpoint's own, chosen on validation when it was trained; nothing is chosen here.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cluster.scratch import node_folder
from cluster.session import ray_session, stop_signals
from cluster.storage import Folder
from cluster.uri import StorageError, display
from jobs.cropping import CropReport, ensure_crops
from jobs.detector import face_settings
from jobs.evaluate import Options
from jobs.frame_report import FILES, METRICS_FILE, FrameScores, numbers, print_scores, trained_on, write_scores
from jobs.label_sets import NamedSet, read_sets, sample_table
from jobs.models import MODEL_FILE, RUN_FILE, MMAWeights, load_weights
from jobs.outcome import InputError, Outcome, input_errors, no_empty_folder
from jobs.progress import RunProgress, say
from mma.checkpoint import load_mma
from mma.crops import WITH_FACE, flat_faces, outcomes
from mma.floors import constant_floors, constant_predictions
from mma.metrics import DEFAULT_THRESHOLD, THRESHOLDS, Stage1Metrics
from mma.network import MMANetwork
from mma.store.schema import spec_differences
from mma.training.data import training_data
from mma.training.loop import score

BATCH_FACES = 2048
"""Faces between two looks at the progress."""
DEFAULT_CHOICE = ".5 for each: the checkpoint holds no thresholds"
OWN_CHOICE = "chosen on the validation split when the model was trained"
SAME_CHOICE = "chosen on rows that are among these when the model was trained, which flatters the action units' scores"


def evaluate_frames(options: Options) -> Outcome:
    """Read the model and the labels, cut the faces that are lacking, score, write and print.

    Raises:
        InputError: no such model, labels, split or place; another detector than the model's; results that stand there.
        JobFailedError: faces could not be cut.
    """
    out = _settle_out(options)
    with no_empty_folder(out):
        return _evaluate(options, out)


def _evaluate(options: Options, out: Folder) -> Outcome:
    started_s = time.monotonic()
    weights = load_weights(options.model, option="--model")
    thresholds = _thresholds(weights)
    faces = face_settings(options)
    _check_detector(weights, faces.spec, options)
    sets = [
        _of_split(each, options.split)
        for each in read_sets(options.labels, val_fraction=None, max_missing_fraction=options.max_missing_fraction)
    ]
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        out.check_writable()
    crops = _crops_folder(options, out)
    with stop_signals() as stop:
        report = ensure_crops(
            {each.name: each.table for each in sets},
            crops,
            faces.options,
            faces.weights,
            session=functools.partial(ray_session, options.address, num_cpus=options.num_cpus, stop=stop),
            stop=stop,
            scratch=options.scratch,
            scratch_bytes=options.scratch_bytes,
        )
        if stop.signal:
            say("stopped; the same command goes on from the faces that are cut")
            summary = {"job": "evaluate", "state": "interrupted", "out": out.display}
            return Outcome(summary=summary, exit_code=stop.exit_code)
        samples = _with_faces(sets, crops)
        bfloat16 = options.precision == "bfloat16" or (options.precision == "auto" and torch.cuda.is_available())
        network = load_mma(weights.data).network
        parts = _metrics_by_set(network, samples, crops, options.scratch, bfloat16=bfloat16)
    seen = _seen(sets, options.split, weights.record)
    every = functools.reduce(Stage1Metrics.merge, parts.values())
    told = FrameScores(
        model=display(options.model),
        split=options.split,
        seconds=round(time.monotonic() - started_s, 3),
        samples=samples.num_rows,
        scores=every.scores(thresholds),
        floors=constant_floors(every),
        sets={each.name: _of_set(each, report, parts.get(each.name), thresholds) for each in sets},
        thresholds={name: thresholds.get(name, DEFAULT_THRESHOLD) for name in weights.descriptors.action_units},
        threshold_choice=_choice(thresholds, options.split, seen),
        constant=constant_predictions(every, thresholds),
        seen=seen,
        detector=faces.spec,
        precision="bfloat16" if bfloat16 else "float32",
        network={
            "trunk": network.config.trunk,
            "descriptor_set": network.config.descriptor_set,
            "sha256": weights.spec["sha256"],
            "random": weights.random,
        },
        families={family: list(names) for family, names in weights.descriptors.families.items()},
        record=weights.record,
    )
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        write_scores(told, out)
    print_scores(told)
    return Outcome(summary=_summary(told, out))


# --- what is to be scored ---


def _settle_out(options: Options) -> Folder:
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        out = Folder(options.out)
        if out.exists(RUN_FILE) or out.exists(MODEL_FILE):
            raise InputError(f"--out {out.display} holds a training run, whose metrics stay: name another folder")
        if out.exists(METRICS_FILE) and not options.overwrite:
            raise InputError(f"--out {out.display} holds results already; name another folder, or give --overwrite")
    return out


def _crops_folder(options: Options, out: Folder) -> Folder:
    with input_errors(ValueError, StorageError, option="--crops"):
        return Folder(options.crops) if options.crops else out.child("crops")


def _thresholds(weights: MMAWeights) -> dict[str, float]:
    """Of the checkpoint's record, by action unit; {} where it has none."""
    found = weights.record.get("thresholds", {})
    if not isinstance(found, dict) or not all(value in THRESHOLDS for value in found.values()):
        raise InputError(
            "--model: the checkpoint's record holds thresholds that this version does not know: train anew"
        )
    return {str(name): float(value) for name, value in found.items()}


def _check_detector(weights: MMAWeights, ours: Mapping[str, Any], options: Options) -> None:
    theirs = weights.record.get("detector")
    if theirs is None:
        say("the checkpoint does not say which detector cut its faces; --detector is taken as it stands")
    elif differences := spec_differences(ours, theirs):
        raise InputError(
            f"--detector: the model was trained on faces cut otherwise (here / there): {'; '.join(differences)}; "
            "give --detector and its companions as they were in the training"
        )


def _of_split(named: NamedSet, split: str) -> NamedSet:
    """The set's rows of the split. Raises InputError where there are none."""
    if split == "all":
        return named
    own = named.table["split"]
    rows = named.table.filter(pc.fill_null(pc.equal(own, split), False))
    if not rows.num_rows:
        counts = {name or "no split": count for name, count in _counts(own).items()}
        there = ", ".join(f"{count:,} of {name}" for name, count in counts.items()) or "none"
        raise InputError(
            f"--split {split}: {named.name} ({named.uri}) has no such row (there are {there}); "
            "give another split, or --split all"
        )
    return replace(named, table=rows)


def _counts(column: pa.ChunkedArray) -> dict[str | None, int]:
    return {each["values"]: each["counts"] for each in pc.value_counts(column.combine_chunks()).to_pylist()}


def _with_faces(sets: list[NamedSet], crops: Folder) -> pa.Table:
    """The rows of all sets that have a face, each with a split."""
    samples = sample_table(sets)
    outcome = outcomes(crops, samples)
    samples = samples.filter(pa.array((outcome >= 0) & (outcome < WITH_FACE)))
    if not samples.num_rows:
        raise InputError("--labels: no labelled frame shows a face; see the counts above")
    place = samples.schema.get_field_index("split")
    return samples.set_column(place, "split", pc.fill_null(samples["split"], "test"))


# --- scoring ---


def _metrics_by_set(
    network: MMANetwork, samples: pa.Table, crops: Folder, scratch: str | None, *, bfloat16: bool
) -> dict[str, Stage1Metrics]:
    """Counts by set, in the sets' order; sets without a face are left out."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = network.to(device)
    with input_errors(ValueError, OSError, StorageError, option="--crops"):
        pixels = flat_faces(crops, samples, node_folder(scratch, "faces"))
    data = training_data(samples, pixels, network.config.descriptors)
    names = np.asarray(samples["set"].to_pylist())
    batches = [
        (name, rows[start : start + BATCH_FACES])
        for name in dict.fromkeys(names.tolist())
        for rows in [np.flatnonzero(names == name)]
        for start in range(0, len(rows), BATCH_FACES)
    ]
    parts: dict[str, Stage1Metrics] = {}
    say(f"scoring {samples.num_rows:,} faces on {torch.cuda.get_device_name() if device == 'cuda' else 'CPUs'}")
    with RunProgress(len(batches), unit="batches") as progress:
        for name, rows in batches:
            part = score(network, data, rows, device=device, bfloat16=bfloat16)
            parts[name] = parts[name].merge(part) if name in parts else part
            progress.advance(frames=len(rows))
            progress.tick()
    return parts


def _of_set(
    named: NamedSet, report: CropReport, part: Stage1Metrics | None, thresholds: Mapping[str, float]
) -> dict[str, Any]:
    crops = report.sets[named.name]
    return {
        "format": named.format,
        "uri": named.uri,
        "samples": crops.cut + crops.given + crops.by_points + crops.by_box,
        "crops": asdict(crops),
        "left_out": dict(named.notes),
        "scores": part.scores(thresholds) if part else None,
        "floors": constant_floors(part) if part else None,
    }


def _seen(sets: list[NamedSet], split: str, record: Mapping[str, Any]) -> list[str]:
    """Sets, by their URI, that the record says were trained on, unless their test split alone is scored."""
    trained = {(each["format"], each["uri"]) for each in trained_on(record)}
    return [each.name for each in sets if split != "test" and (each.format, each.uri) in trained]


def _choice(thresholds: Mapping[str, float], split: str, seen: list[str]) -> str:
    if not thresholds:
        return DEFAULT_CHOICE
    return SAME_CHOICE if split in ("val", "all") and seen else OWN_CHOICE


def _summary(told: FrameScores, out: Folder) -> dict[str, Any]:
    return {
        "job": "evaluate",
        "seconds": told.seconds,
        "model": told.model,
        "split": told.split,
        "samples": told.samples,
        "metrics": numbers(told.scores),
        "floors": numbers(told.floors),
        "constant": told.constant,
        "threshold_choice": told.threshold_choice,
        "out": out.display,
        "files": list(FILES),
    }
