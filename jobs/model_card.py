"""`MODEL_CARD.md`: what a checkpoint was made of, how well it does on whom, and what it must not be used for.

`model_card` fills one template for both stages from plain facts (`CardFacts`); `mma_card` and `reaction_card` take
these from a run's own record. Whatever is printed is escaped, and loses the secrets of its URIs: names are strangers'.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import SimpleNamespace
from typing import Any, Literal, cast

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cluster.uri import StorageError, display
from jobs import train, train_mma
from jobs.frame_report import FAMILIES, HEADLINES
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
Row = Mapping[str, Any]

MADE = "Trained on a made corpus of drawn faces: its scores say nothing of real faces."
TRUTH = "Its descriptors are the made corpus's own truth: no network has looked at a picture."
UNTRAINED = "Its descriptors are of untrained (random) MMA weights, and mean nothing."
FROM_SCRATCH = "Its weights started at random: it knows no pictures but those counted under Data."

NOT_SETTINGS = {"labels", "store", "out", "resume", "run", "crops", "register", "mma", "scratch_bytes"}
"""Options that stand elsewhere in the card, or change no number; so do those of the detector."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says. Values are plain: text, numbers, bools, None, lists and mappings of these.

    A row maps columns to values. A table has the columns in which some of its rows has a value.
    """

    kind: Literal["mma", "reactions"]
    name: str
    """The run's id."""
    weights_sha256: str
    date: str
    """Of the card, YYYY-MM-DD."""
    versions: Mapping[str, str]
    """Package -> version that wrote the weights."""
    warnings: Sequence[str] = ()
    """What must be known before anything else: a made corpus, untrained weights."""
    network: Row
    """Its shape, and what its weights started from."""
    sources: Sequence[Row]
    """A row a label set or store; the column `from` holds a URI."""
    splits: Sequence[Row]
    """A row a split: how many samples or videos, labelled how, of how many people."""
    groups: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Such as Country or Age -> value -> videos."""
    data_notes: Sequence[str] = ()
    preprocessing: Row
    """Crops and detector; or descriptors, grid, filling and normalisation, with the store's spec."""
    settings: Row
    """Of the training, by dotted name."""
    defaults: Row
    """What they are where nobody gives any, under the same names."""
    scores: Sequence[Row] = ()
    """By split: `split`, `notes` (sentences), and as rows `headlines`, `rows` (with n, and interval, floors and ceiling
    where known) and perhaps `groups` (of subgroups)."""
    limits: Sequence[str] = ()
    """Beside those that hold for every network."""

    def __post_init__(self) -> None:
        if self.kind not in ("mma", "reactions"):
            raise ValueError(f"there is no model card of kind {self.kind!r}: give mma or reactions")


def model_card(kind: str, facts: Mapping[str, Any]) -> str:
    """The card as Markdown; `facts` are the other fields of `CardFacts`.

    Raises ValueError for another kind, and TypeError, with its name, for a fact that is missing or unknown.
    """
    card = CardFacts(kind=cast(Any, kind), **facts)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs", "templates"),
        finalize=_escaped,  # everything that is printed, so that nothing can be forgotten
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _code, "table": _table, "rows": _two_columns}
    changed = {name: value for name, value in card.settings.items() if value != card.defaults.get(name)}
    text = environment.get_template("model_card.md").render(
        card=card,
        changed=[{"setting": name, "value": changed[name], "default": card.defaults.get(name)} for name in changed],
        unchanged=[{"setting": name, "value": card.settings[name]} for name in card.settings if name not in changed],
    )
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


# --- from values to Markdown ---


class _Markdown(str):
    """Escaped already."""


def _words(value: Any) -> str:
    """A value in one line, without secrets, not escaped yet."""
    if isinstance(value, Mapping):
        told = [f"{_words(name)} {_words(each)}" for name, each in value.items() if each is not None]
        return ", ".join(told) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"({_words(each)})" if isinstance(each, list) else _words(each) for each in value) or "–"
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, (bool, float)):
        return f"{value:g}" if isinstance(value, float) else "yes" if value else "no"
    # Each URI by itself: one may stand behind a sign, as in synth=s3://bucket/corpus.
    parts = re.split(r"(?<![A-Za-z0-9+.-])(?=[A-Za-z][A-Za-z0-9+.-]*://)", " ".join(str(value).split()))
    return "".join(display(part) for part in parts)


def _escaped(value: Any) -> _Markdown:
    """Without anything that Markdown or HTML would read; a `_` inside a word is nothing of that kind."""
    if isinstance(value, _Markdown):
        return value
    signs = r"[\\`*{}\[\]<>|#~$&]|(?<![^\W_])_|_(?![^\W_])|:(?=//)"
    return _Markdown(re.sub(signs, r"\\\g<0>", _words(value)))


def _code(value: Any) -> _Markdown:
    """As a code span, where nothing in it could end the span or its cell."""
    words = _words(value)
    return _escaped(value) if re.search(r"[`|]", words) or words == "–" else _Markdown(f"`{words}`")


def _table(rows: Sequence[Row], code: Sequence[str] = ()) -> _Markdown:
    """Rows under their columns; `code`: columns whose cells are code spans."""
    columns = list(dict.fromkeys(name for row in rows for name, value in row.items() if value is not None))
    lines: list[list[str]] = [[_escaped(name) for name in columns], ["---"] * len(columns)]
    lines += [[(_code if name in code else _escaped)(row.get(name)) for name in columns] for row in rows]
    return _Markdown("\n".join(f"| {' | '.join(line)} |" for line in lines) if columns else "")


def _two_columns(facts: Row) -> _Markdown:
    told = {name: value for name, value in facts.items() if value not in (None, "", {}, [])}
    return _Markdown("\n".join(f"| {_escaped(name)} | {_escaped(value)} |" for name, value in told.items()))


def _score(value: float | None) -> str | None:
    """To three places; None stays None."""
    return None if value is None or math.isnan(value) else f"{round(value, 3) + 0.0:.3f}"


def _interval(ends: Row | None) -> str | None:
    return f"{_score(ends['low'])} to {_score(ends['high'])}" if ends and "low" in ends else None


# --- from records to facts ---


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
        start["file"] = f"{_words(init['uri'])}: {took.told()}"
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
