"""What the card of a checkpoint says of it: facts from the record of the run of `train-mma` or `train` that made it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cluster.uri import StorageError
from jobs import train, train_mma
from jobs.frame_report import FAMILIES, HEADLINES
from jobs.model_card import Row, in_words, model_card
from jobs.progress import say
from jobs.reaction_labels import made_corpus_ceilings
from jobs.training_run import flat
from mma.checkpoint import load_mma, project_version
from mma.descriptors import DescriptorSet
from mma.floors import constant_floors
from mma.init import InitReport
from mma.labels.table import SPLITS
from rnn.bootstrap import LEAST_VIDEOS
from rnn.model import load_model
from rnn.reactions import REACTIONS
from rnn.training.options import PRESETS

CARD_FILE = "MODEL_CARD.md"

MADE = "Trained on a made corpus of drawn faces: its scores say nothing of real faces."
TRUTH = "Its descriptors are the made corpus's own truth: no network has looked at a picture."
UNTRAINED = "Its descriptors are of untrained (random) MMA weights, and mean nothing."
FROM_SCRATCH = "Its weights started at random: it knows no pictures but those counted under Data."

NOT_SETTINGS = {"labels", "store", "out", "resume", "run", "crops", "register", "mma", "scratch_bytes"}
"""Options that stand elsewhere in the card, or change no number; so do those of the detector."""


def _score(value: float | None) -> str | None:
    """To three places; None stays None."""
    return None if value is None or math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"


def _interval(ends: Row | None) -> str | None:
    return f"{_score(ends['low'])} to {_score(ends['high'])}" if ends and "low" in ends else None


def mma_card(
    record: Mapping[str, Any], scores: Mapping[str, Any], model: bytes, people: Mapping[str, str] | None = None
) -> str:
    """Of a run of `train-mma`: its record, what `metrics.json` holds, the checkpoint, and `people_by_split`."""
    loaded, prepared, start = load_mma(model), record["prepared"], dict(record["init"])
    config, crops, limits = loaded.config, prepared["crops"], list[str]()
    warnings = [MADE] if any(each["format"] == "synth" for each in prepared["sets"]) else []
    if init := start.pop("init", None):
        took = InitReport(**{key: tuple(init[key]) for key in ("loaded", "missing", "notes")},
                          skipped=tuple(init["skipped"].items()))  # fmt: skip
        start["file"] = f"{in_words(init['uri'])}: {took.told()}"
    elif "random" in start:
        warnings.append(FROM_SCRATCH)
    if crops.get("given"):
        limits.append(f"{crops['given']:.0%} of the crops were taken as their sets give them, not cut by this project.")
    facts = {
        "warnings": warnings,
        "weights_sha256": loaded.weights_sha256,
        "network": {
            "trunk": config.trunk,
            f"{len(config.descriptors)} descriptors": config.descriptors.names,
            "descriptor set": config.descriptor_set,
            "start of the weights": start,
            "epochs": f"{len(scores['history'])}, the best of them {scores['best_epoch'] + 1}",
        },
        "sources": [
            {"set": s["name"], "format": s["format"], "from": s["uri"], "left out": s["left_out"], "rows": s["crops"]}
            for s in prepared["sets"]
        ],
        "splits": [
            {"split": name, **{key: f"{count:,}" for key, count in counts.items()}, "people": (people or {}).get(name)}
            for name, counts in prepared["samples"].items()
        ],
        "data_notes": [
            "Rows without a face, or whose picture could not be read, are left out as well.",
            f"How the crops came about: {', '.join(f'{how} {share:.1%}' for how, share in crops.items())}.",
        ],
        "preprocessing": {
            "crop": config.crop,
            "pixels": {"mean": config.pixel_mean, "deviation": config.pixel_std},
            "detector": {name: value for name, value in prepared["detector"].items() if name != "crop"},
        },
        "defaults": _defaults(train_mma.Options),
        "scores": [_frame_scores(scores, config.descriptors, limits)] if scores.get("scores") else [],
        "limits": limits,
    }  # fmt: skip
    return model_card("mma", _common(record) | facts)


def people_by_split(samples: pa.Table) -> dict[str, str]:
    """Split -> how many people are in it, in words, of rows of `set`, `split` and `subject` alone."""
    told = {}
    for split in SPLITS:
        rows = samples.filter(pc.equal(samples["split"], split))
        lacking = rows["subject"].null_count
        count = rows.drop_null().group_by(["set", "subject"]).aggregate([]).num_rows
        told[split] = f"{count:,}" + (f", and {lacking:,} samples of people unknown" if lacking else "")
    return told


def _frame_scores(told: Mapping[str, Any], descriptors: DescriptorSet, limits: list[str]) -> Row:
    """The scores that a training ends with, beside their floors; what they lack goes into `limits`."""
    scores, by_name = told["scores"], told["scores"]["by_name"]
    floors = _constant_floors(by_name, descriptors)
    labelled = sum(by_name[name]["n"] for name in descriptors.expressions)
    rows, low, rare = [], [], []
    for name in descriptors.names:
        one, floor = by_name[name], floors["by_name"][name]
        metric = "ccc" if "ccc" in one else "f1"
        known = one.get("known", labelled if metric == "f1" else one["n"])
        rows.append({
            "descriptor": name, "metric": metric.upper(), "score": _score(one[metric] if one["n"] else None),
            "floor": _score(floor), "n": f"{one['n']:,}", "of": f"{known:,}", "threshold": told["thresholds"].get(name),
        })  # fmt: skip
        low += [name] if one["n"] and one[metric] <= floor else []
        rare += [name] if 0 < one["n"] < LEAST_VIDEOS else []
    absent = [FAMILIES[name].lower() for name in scores["absent"]]
    found = {
        "No test person had a label: the scores are of validation, by which the epoch was chosen.": told["split"]
        != "test",
        f"Never scored, for want of labels: {', '.join(absent)}.": absent,
        f"Scored on fewer than {LEAST_VIDEOS} frames, which say little: {', '.join(rare)}.": rare,
        f"No better than a constant: {', '.join(low)}.": low,
    }
    limits += [line for line, holds in found.items() if holds]
    return {
        "split": told["split"],
        "notes": [
            f"Thresholds of action units were chosen on: {told['threshold_choice']}. Floor: the best that a constant "
            "does. n: labelled frames; of expressions and action units those that show it, of so many with a label."
        ],
        "headlines": [{"score": words, "value": _score(scores[name]), "floor": _score(floors[name])}
                      for name, words in HEADLINES.items()],
        "rows": rows,
    }  # fmt: skip


def _constant_floors(by_name: Mapping[str, Any], descriptors: DescriptorSet) -> dict[str, Any]:
    """`mma.floors.constant_floors`, which asks for counts alone, of those in a `metrics.json`."""
    classes, units = descriptors.expressions, descriptors.action_units
    positives = np.array([by_name[name]["n"] for name in units])
    known = np.array([by_name[name]["known"] for name in units])
    counted: Any = SimpleNamespace(
        valence_arousal=SimpleNamespace(names=descriptors.valence_arousal),
        expressions=SimpleNamespace(names=classes, support=np.array([by_name[name]["n"] for name in classes])),
        action_units=SimpleNamespace(names=units, positives=positives, negatives=known - positives),
    )
    return constant_floors(counted)


def reaction_card(record: Mapping[str, Any], scores: Mapping[str, Any], model: bytes) -> str:
    """Of a run of `train`: its record, what `metrics.json` holds, the checkpoint; and, where the labels are those of a
    made corpus, its ceiling, which is read from there."""
    loaded, data, options = load_model(model, name="the model"), record["data"], record["options"]
    network, spec, limits = loaded.networks[0], data["spec"], list[str]()
    ceilings = _ceilings(options["labels"], limits)
    truth, reach = "truth" in spec["weights"], "at most" if network.config.limits_steps() else "in training at most"
    warnings = {MADE: truth or ceilings is not None, TRUTH: truth, UNTRAINED: "random" in spec["weights"]}
    facts = {
        "warnings": [line for line, holds in warnings.items() if holds],
        "weights_sha256": loaded.sha256(),
        "network": {**vars(network.config), "seeds": loaded.seeds, "calibrated on": loaded.record.get("calibrated_on")},
        "sources": [
            *({"what": "feature store", "from": store} for store in data["stores"]),
            {"what": f"labels ({data['layout']})", "from": data["labels"]},
        ],
        "splits": [
            {"split": name, "videos": f"{count:,}", "with a face": f"{data['with_sequence'][name]:,}",
             "people": data["subjects"][name] or ("unknown" if count else "0")}
            for name, count in data["videos"].items()
        ],
        "groups": {name: data[key] for name, key in (("Country", "countries"), ("Age", "ages")) if data.get(key)},
        "preprocessing": {
            f"{len(loaded.normaliser.names)} descriptors": loaded.normaliser.names,
            "steps": f"{loaded.step_s:g} s each, {reach} {network.steps}",
            "steps without a face": loaded.sequence.fill,
            "normalised by": loaded.sequence.normalise,
            "probabilities": loaded.sequence.probabilities,
            "smoothing, s": loaded.sequence.smooth_s,
            **{f"the store's {name}": spec[name] for name in ("weights", "detector", "crop", "sampling", "precision")},
        },
        "defaults": _defaults(train.Options) | flat(PRESETS[options["preset"]]),
        "scores": [_reaction_scores(split, told, (ceilings or {}).get(split, {}).get("display", {}), limits)
                   for split, told in scores["splits"].items()],
        "limits": limits,
    }  # fmt: skip
    return model_card("reactions", _common(record) | facts)


def _reaction_scores(split: str, told: Mapping[str, Any], ceiling: Row, limits: list[str]) -> Row:
    """The scores of one split; what is to be held against them goes into `limits`."""
    by, by_reaction, seeds, over = told["interval"]["by"], told["by_reaction"], told["seeds"], told["over_ridge"]
    floors = {f"floor: {name.replace('_', ' ')}": each for name, each in told["floors"].items()}
    rows = []
    for name in REACTIONS:
        one = by_reaction[name]
        rows.append({
            "reaction": name, "r": _score(one["pearson"]), "95 %": _interval(one.get("interval")),
            "ceiling": _score(ceiling.get(name)), "CCC": _score(one["ccc"]),
            "absolute error": _score(one["absolute_error"]), "n": f"{one['n']:,}",
            **{floor: _score(each["by_reaction"][name]["pearson"]) for floor, each in floors.items()},
        })  # fmt: skip
    groups: list[Row] = []
    for grouping, each in told.get("groups", {}).items():
        rest = {value: {"videos": count} for value, count in each["not_scored"].items()}
        groups += [
            {"group": f"{grouping}: {value}", "videos": one["videos"], "mean r": _score(one.get("mean_pearson")),
             "95 %": _interval(one)}
            for value, one in {**each["scored"], **rest}.items()
        ]  # fmt: skip
    constant = [name for name in REACTIONS if by_reaction[name]["constant"]]
    found = {
        f"Scores on {split} flatter: epochs and calibration were chosen there.": split == "val",
        f"People of {split} are not known: its interval is by video, narrower than one by person.": by != "subject",
        f"On {split} it is not shown to do better than ridge on summary statistics.": over and over["low"] <= 0,
        f"Constant predictions or labels on {split}, which score 0: {', '.join(constant)}.": constant,
        f"Without labels on {split}, and without a score: {', '.join(told['absent'])}.": told["absent"],
    }
    limits += [line for line, holds in found.items() if holds]
    notes = [f"Over {told['labelled']:,} labelled videos of {told['videos']:,}; intervals are by {by}."]
    if len(seeds["values"]) > 1:
        notes.append(f"Its seeds by themselves: {_score(seeds['mean'])}, deviation {_score(seeds['spread'])}.")
    headline = {
        "score": "mean Pearson r", "value": _score(told["mean_pearson"]), "95 %": _interval(told["interval"]),
        "ceiling": _score(ceiling.get("mean")),
        **{name: _score(each["mean_pearson"]) for name, each in floors.items()},
    }  # fmt: skip
    return {"split": split, "notes": notes, "headlines": [headline], "rows": rows, "groups": groups}


def _ceilings(labels: str, limits: list[str]) -> Row | None:
    """Of the made corpus that the labels lie in; None where they lie in none."""
    try:
        return made_corpus_ceilings(labels)
    except (StorageError, ValueError, OSError) as error:  # a training that is done must not be lost to its card
        say(f"{CARD_FILE}: whether the labels are of a made corpus could not be seen: {error}")
        limits.append("Whether its labels are of a made corpus could not be seen when this card was written.")
        return None


def _common(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a card of either kind takes from the record."""
    settings = flat({name: value for name, value in record["options"].items() if name not in NOT_SETTINGS})
    return {
        "name": record["run_id"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {"mma-mrnnet": project_version(), "torch": str(torch.__version__)},
        "settings": {name: value for name, value in settings.items() if not name.startswith("detect")},
    }


def _defaults(options: type) -> dict[str, Any]:
    """What a job's options are where nobody gives any, as JSON has them, by dotted name."""
    made = {each.name: each.default_factory() for each in fields(options) if each.default_factory is not MISSING}
    given = {each.name: each.default for each in fields(options) if each.default is not MISSING}
    return flat(json.loads(json.dumps(made | given, default=asdict)))
