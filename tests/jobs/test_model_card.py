"""`MODEL_CARD.md` of both stages, from records as the jobs write them, and the page on consent."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from reaction_worlds import WIDTH, made_network

from cluster.uri import StorageError
from jobs import evaluate, extract, forget, predict, train, train_mma
from jobs.card_facts import FROM_SCRATCH, MADE, TRUTH, UNTRAINED, mma_card, people_by_split, reaction_card
from jobs.model_card import model_card
from jobs.run_options import RunOptions
from mma.checkpoint import dump_mma, weights_sha256
from mma.config import MMAConfig
from mma.faces.alignment import CropGeometry
from mma.faces.options import FaceOptions
from mma.floors import constant_floors
from mma.init import InitReport
from mma.metrics import Stage1Metrics
from mma.network import random_mma
from mma.store import schema as s
from rnn.model import NO_CALIBRATION, ReactionModel
from rnn.network import NetworkConfig
from rnn.reactions import REACTIONS
from rnn.sequences import Normaliser, SequenceOptions
from rnn.training.final import split_scores

ROOT = Path(__file__).parents[2]
CONSENT = (ROOT / "docs/consent.md").read_text()
NETWORK = random_mma(MMAConfig(trunk="tiny", crop=CropGeometry().spec()), seed=0)
DESCRIPTORS = NETWORK.config.descriptors
CHECKPOINT = dump_mma(NETWORK, {})
THRESHOLDS = {name: 0.25 for name in DESCRIPTORS.action_units}
FIELDS: dict[str, Any] = {
    "name": "20260101T000000-abcdef",
    "weights_sha256": "0" * 64,
    "date": "2026-01-01",
    "versions": {"mma-mrnnet": "0.1.0"},
    "network": {"trunk": "tiny"},
    "sources": [{"set": "faces", "from": "/data/faces"}],
    "splits": [{"split": "train", "samples": "1,000"}],
    "preprocessing": {"detector": "haar"},
    "settings": {},
    "defaults": {},
}
HOSTILE = "a|b `c` <img src=x> [d](http://e.example) **f** _g_ ~~h~~ $i$ #j &lt; \\| ![k](l)\n\n# m\n| n |"


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=dataclasses.asdict))


def rendered(card: str) -> list[Any]:
    """The tokens of a card, the inner ones with their parents, as CommonMark with tables reads it."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card)
    return [each for token in tokens for each in (token, *(token.children or ()))]


def rows_of(card: str, first: str) -> dict[str, str]:
    """Column -> cell, of the only row whose first cell is this."""
    lines = card.splitlines()
    (at,) = [number for number, line in enumerate(lines) if line.startswith(f"| {first} |")]
    head = next(lines[k - 1] for k in range(at, 0, -1) if lines[k].startswith("| ---"))
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (head, lines[at])]
    return dict(zip(*cells, strict=True))


# --- records as the jobs leave them ---


def frame_metrics(*, units_known: bool = True) -> Stage1Metrics:
    """Of 400 made frames: AU26 never shows, AU25 five times, valence is predicted well."""
    rng = np.random.default_rng(0)
    classes, units = len(DESCRIPTORS.expressions), len(DESCRIPTORS.action_units)
    shown = (rng.random((400, units)) < 0.2).astype(np.float32)
    shown[:, -1] = 0
    shown[:, -2] = np.arange(400) < 5
    felt = rng.normal(size=(400, 2)).clip(-1, 1)
    return Stage1Metrics.of(
        DESCRIPTORS,
        valence_arousal=felt + [[0.0, 5.0]],
        expressions=rng.random((400, classes)),
        action_units=rng.random((400, units)),
        valence_arousal_label=felt,
        valence_arousal_known=np.ones((400, 2), bool),
        expression_label=rng.integers(-1, classes, 400),
        action_unit_label=shown,
        action_unit_known=np.full((400, units), units_known),
    )


def frame_record(**options: Any) -> dict[str, Any]:
    asked = train_mma.Options(labels=("rafdb=/data/rafdb",), out="model", trunk="tiny", **options)
    counts = {"samples": 1849, "valence_arousal": 0, "expressions": 1723, "action_units": 0}
    crops = {"rows": 2886, "cut": 2877, "given": 0, "by_points": 0, "by_box": 0, "no_face": 9, "failed": 0}
    return as_json(
        {
            "run_id": "20260101T000000-abcdef",
            "options": dataclasses.asdict(asked),
            "init": {"random": 0},
            "prepared": {
                "sets": [
                    {
                        "name": "rafdb",
                        "format": "rafdb",
                        "uri": "/data/rafdb",
                        "left_out": {"missing": 3},
                        "crops": crops,
                    }
                ],
                "samples": dict.fromkeys(("train", "val", "test"), counts),
                "crops": {"detected": 1.0, "points": 0.0, "box": 0.0, "given": 0.0},
                "detector": FaceOptions().spec(),
            },
        }
    )


def frame_scores(metrics: Stage1Metrics, **more: Any) -> dict[str, Any]:
    told = {"thresholds": THRESHOLDS, "split": "test", "threshold_choice": "val", "scores": metrics.scores(THRESHOLDS)}
    return {**told, "history": [{}] * 12, "best_epoch": 7, **more}


def reaction_model() -> bytes:
    names = DESCRIPTORS.names[:WIDTH]
    zeros = (0.0,) * WIDTH
    return ReactionModel(
        networks=(made_network(NetworkConfig(units=6, dense_width=4, readout="masked-statistics")),),
        seeds=(4,),
        calibrations=(NO_CALIBRATION,),
        sequence=SequenceOptions(fill="interpolate"),
        normaliser=Normaliser(names=names, mean=zeros, scale=(1.0,) * WIDTH, low=zeros, high=zeros),
        step_s=0.1,
        fallback=(0.3,) * 7,
        spec={},
        record={"calibrated_on": "val"},
    ).dump()


def reaction_record(labels: str, weights: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    asked = train.Options(store=("/data/store",), labels=labels, out="model", **options)
    spec = s.make_spec(
        descriptors=DESCRIPTORS,
        weights=weights or {"sha256": "ab" * 32, "trunk": "resnet50"},
        crop=CropGeometry().spec(),
        detector={"detector": "yunet", "detect_every": 5},
        sampling={"fps": 10.0},
        precision="float32",
    )
    counts = {"train": 1500, "val": 60, "test": 0}
    data = {
        "spec": spec,
        "stores": ["/data/store"],
        "labels": labels,
        "layout": "abaw5",
        "videos": counts,
        "with_sequence": {**counts, "val": 58},
        "subjects": {"train": 30, "val": None, "test": None},
        "countries": {"South Africa": 700, "United States": 860},
    }
    return as_json({"run_id": "20260101T000000-abcdef", "options": dataclasses.asdict(asked), "data": data})


def reaction_scores(*, beats_ridge: bool = True, people: bool = True, **kinds: list[str | None]) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    labels = rng.random((60, 7)).astype(np.float32)
    good, poor = labels + rng.normal(0, 0.1, labels.shape), rng.random(labels.shape)
    ours, ridge = (good, poor) if beats_ridge else (poor, good)
    groups = np.arange(60) // 3 if people else None
    return {
        "splits": {"val": split_scores(ours[None], labels, groups, {"ridge_statistics": ridge}, kinds)},
        "seeds": [],
    }


@pytest.fixture
def made_labels(tmp_path) -> Path:
    """The folder of a made corpus, as far as a card looks."""
    display = {"mean": 0.777, **dict.fromkeys(REACTIONS, 0.666)}
    (tmp_path / "_corpus.json").write_text("{}")
    (tmp_path / "ceiling.json").write_text(json.dumps({"val": {"display": display}}))
    return tmp_path


# --- stage 1 ---


def test_the_card_of_an_mma_network_says_what_it_is_and_what_of():
    card = mma_card(frame_record(), frame_scores(frame_metrics()), CHECKPOINT, {"train": "780", "val": "50"})
    assert f"`{weights_sha256(NETWORK)}`" in card
    assert "| epochs | 12, the best of them 8 |" in card
    assert rows_of(card, "rafdb")["left out"] == "missing 3"
    assert "no_face 9" in rows_of(card, "rafdb")["rows"]
    assert rows_of(card, "train") == {
        **{"split": "train", "samples": "1,849", "valence_arousal": "0", "expressions": "1,723", "action_units": "0"},
        "people": "780",
    }
    assert "detect_size_px 240" in card
    assert "template_px (38.2946, 51.6963)" in card
    for words in ("torch", "arXiv:2303.00180", "detected 100.0%"):
        assert words in card


def test_frame_scores_stand_beside_n_threshold_and_the_floors_of_evaluate():
    metrics = frame_metrics()
    card, floors, by_name = (
        mma_card(frame_record(), frame_scores(metrics), CHECKPOINT),
        constant_floors(metrics),
        metrics.scores(THRESHOLDS)["by_name"],
    )
    for name in (*DESCRIPTORS.expressions, *DESCRIPTORS.action_units[:-1]):
        row = rows_of(card, name)
        assert row["score"] == f"{by_name[name]['f1']:.3f}"
        assert row["floor"] == f"{floors['by_name'][name]:.3f}"
        assert row["n"] == str(by_name[name]["n"])
    assert rows_of(card, "AU01")["threshold"] == "0.25"
    assert rows_of(card, "AU26")["score"] == "–"  # it never shows, so nothing was scored
    assert rows_of(card, "action units, mean F1")["floor"] == f"{floors['au_f1']:.3f}"
    assert rows_of(card, "expressions, macro F1")["floor"] == f"{floors['expression_f1']:.3f}"


def test_settings_other_than_the_default_come_first():
    record = frame_record()
    record["options"]["training"]["epochs"] = 99
    card = mma_card(record, frame_scores(frame_metrics()), CHECKPOINT)
    changed, unchanged = card.split("Other than the default:")[1].split("As the default:")
    assert "| `training.epochs` | 99 | 20 |" in changed
    assert "`trunk`" in changed
    assert changed.count("\n| `") == 2
    assert "| `training.batch_size` | 64 |" in unchanged


def test_weak_places_of_a_training_stand_under_limits():
    record = frame_record()
    record["prepared"]["crops"] = {"detected": 0.75, "given": 0.25}
    scores = frame_scores(frame_metrics(units_known=False), split="val", threshold_choice="cross-fitted")
    limits = mma_card(record, scores, CHECKPOINT).split("## Limits")[1].split("## ")[0]
    assert "25% of the crops were taken as their sets give them" in limits
    assert "the scores are of validation" in limits
    assert "for want of labels: action units" in limits
    limits = mma_card(frame_record(), frame_scores(frame_metrics()), CHECKPOINT).split("## Limits")[1]
    assert re.search(r"fewer than 30 frames, which say little: .*AU25\.", limits)
    assert "the scores are of validation" not in limits


def test_a_network_that_nobody_could_score_says_so():
    card = mma_card(frame_record(), {"history": [{}], "best_epoch": 0}, CHECKPOINT)
    assert "nobody has measured how well it does" in card


def test_people_are_counted_by_set_and_split_and_the_unknown_told():
    rows = [("a", "train", "1"), ("a", "train", "1"), ("b", "train", "1"), ("a", "train", None), ("a", "val", "2")]
    samples = pa.table(dict(zip(("set", "split", "subject"), map(list, zip(*rows)))))
    assert people_by_split(samples) == {"train": "2, and 1 samples of people unknown", "val": "1", "test": "0"}


# --- stage 2 ---


def test_the_card_of_a_masked_rnn_has_scores_interval_floors_and_data():
    scores = reaction_scores()
    told = scores["splits"]["val"]
    card = reaction_card(reaction_record("/data/labels.csv"), scores, reaction_model())
    top = rows_of(card, "mean Pearson r")
    assert top["value"] == f"{told['mean_pearson']:.3f}"
    assert top["95 %"] == f"{told['interval']['low']:.3f} to {told['interval']['high']:.3f}"
    assert top["floor: ridge statistics"] == f"{told['floors']['ridge_statistics']['mean_pearson']:.3f}"
    fear = rows_of(card, "Fear")
    assert (fear["r"], fear["n"]) == (f"{told['by_reaction']['Fear']['pearson']:.3f}", "60")
    assert "ceiling" not in top  # nobody knows one of real faces
    assert rows_of(card, "train") == {"split": "train", "videos": "1,500", "with a face": "1,500", "people": "30"}
    assert rows_of(card, "val")["people"] == "unknown"
    assert "Country, videos: South Africa 700, United States 860." in card
    for line in (
        "| steps | 0.1 s each, in training at most 14 |",
        "| steps without a face | interpolate |",
        "| normalised by | corpus |",
        "| the store's detector | detector yunet, detect_every 5 |",
        "| calibrated on | val |",
    ):
        assert line in card


def test_ages_intervals_by_reaction_and_subgroups_are_shown_where_they_are_known():
    scores, record = reaction_scores(country=["Here"] * 40 + ["There"] * 20), reaction_record("/data/labels.csv")
    told = scores["splits"]["val"]
    record["data"]["ages"] = {"18 to 29": 41}
    card = reaction_card(record, scores, reaction_model())
    ends = told["by_reaction"]["Fear"]["interval"]
    assert 0.5 < ends["low"] < told["by_reaction"]["Fear"]["pearson"] < ends["high"] < 1
    assert rows_of(card, "Fear")["95 %"] == f"{ends['low']:.3f} to {ends['high']:.3f}"
    here = told["groups"]["country"]["scored"]["Here"]
    assert rows_of(card, "country: Here") == {
        **{"group": "country: Here", "videos": "40", "mean r": f"{here['mean_pearson']:.3f}"},
        "95 %": f"{here['low']:.3f} to {here['high']:.3f}",
    }
    assert rows_of(card, "country: There")["mean r"] == "–"  # under 30 videos: not scored
    assert "Age, videos: 18 to 29 41." in card


def test_settings_are_held_against_the_preset_that_they_start_from():
    for preset, changed in (("recommended", []), ("paper", ["`preset`"])):
        record = reaction_record("/data/labels.csv")
        record["options"]["preset"] = preset
        for group, settings in train.Options.presets[preset].items():
            record["options"][group] |= settings
        card = reaction_card(record, reaction_scores(), reaction_model())
        above = card.split("As the default:")[0]
        assert re.findall(r"^\| (`[a-z_.]+`) \|", above.split("## Training settings")[1], re.M) == changed


def test_what_is_to_be_held_against_the_scores_stands_under_limits():
    def limits(**how: bool) -> str:
        card = reaction_card(reaction_record("/data/labels.csv"), reaction_scores(**how), reaction_model())
        return card.split("## Limits")[1].split("## ")[0]

    assert "epochs and calibration were chosen there" in limits()
    assert "ridge" not in limits()
    assert "not shown to do better than ridge" in limits(beats_ridge=False)
    assert "interval is by video" not in limits()
    assert "interval is by video" in limits(people=False)


# --- what must be known first ---


def head(card: str) -> str:
    return card.split("## What it is")[0]


def test_random_weights_and_a_made_corpus_are_said_at_the_top_of_stage_1():
    record = frame_record()
    card = mma_card(record, frame_scores(frame_metrics()), CHECKPOINT)
    assert FROM_SCRATCH in head(card)
    assert MADE not in card
    record["prepared"]["sets"][0]["format"] = "synth"
    assert f"> **{MADE}**" in head(mma_card(record, frame_scores(frame_metrics()), CHECKPOINT))


def test_a_start_from_somebodys_weights_is_told_in_a_line():
    record = frame_record()
    report = InitReport(loaded=("trunk.a", "trunk.b"), skipped=(("fc.weight", "no such layer"),), missing=("trunk.c",))
    record["init"]["init"] = {"uri": "s3://me:secret@bucket/imagenet.safetensors", **report.to_dict()}
    card = mma_card(record, frame_scores(frame_metrics()), CHECKPOINT)
    assert FROM_SCRATCH not in card
    assert "bucket/imagenet.safetensors: took 2 of 3 trunk tensors" in card
    assert "secret" not in card


@pytest.mark.parametrize("labels", ["", "/truth.parquet", "/"])
def test_a_made_corpus_is_known_by_its_folder_and_brings_its_ceiling(made_labels, labels):
    """Also where the store is of a trained network, which says nothing of drawn faces (`make demo`)."""
    card = reaction_card(reaction_record(f"{made_labels}{labels}"), reaction_scores(), reaction_model())
    assert f"> **{MADE}**" in head(card)
    assert TRUTH not in card
    assert rows_of(card, "mean Pearson r")["ceiling"] == "0.777"
    assert rows_of(card, "Fear")["ceiling"] == "0.666"


def test_descriptors_of_no_trained_network_are_said_at_the_top_of_stage_2(tmp_path):
    def top(weights: dict[str, Any]) -> str:
        record = reaction_record(str(tmp_path), weights)
        return head(reaction_card(record, reaction_scores(), reaction_model()))

    assert UNTRAINED in top({"sha256": "ab", "random": "random:0"})
    assert TRUTH in top({"truth": "made corpus"})
    assert MADE in top({"truth": "made corpus"})
    assert "**" not in top({"sha256": "ab"})


def test_a_trained_network_is_not_lost_to_storage_that_fails_at_its_card(monkeypatch, capsys):
    def fails(uri: str) -> Any:
        raise StorageError("the server says no", retryable=True)

    monkeypatch.setattr("jobs.reaction_labels.Folder", fails)
    card = reaction_card(reaction_record("s3://bucket/labels"), reaction_scores(), reaction_model())
    assert "Whether its labels are of a made corpus could not be seen" in card
    assert "the server says no" in capsys.readouterr().err


# --- strangers' strings ---


def test_strangers_strings_stay_text_wherever_they_stand():
    plain, hostile = (model_card("mma", with_everywhere(words)) for words in ("zzz", HOSTILE))
    # Escapes cut texts into pieces, and what could end a code span is none: the rest of the structure is the same.
    texts = {"text", "text_special", "code_inline"}
    expected, found = (
        [(each.type, each.tag) for each in rendered(card) if each.type not in texts] for card in (plain, hostile)
    )
    assert found == expected
    html = [MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(card) for card in (plain, hostile)]
    shown = "a|b `c` &lt;img src=x&gt; [d](http://e.example) **f** _g_ ~~h~~ $i$ #j &amp;lt; \\| ![k](l) # m | n |"
    assert html[1].count(shown) == html[0].count("zzz") > 8


def with_everywhere(words: str) -> dict[str, Any]:
    row = {"what": words, "from": words}
    return {
        **FIELDS,
        "name": words,
        "network": {"trunk": words, "start": {words: [words]}},
        "sources": [row],
        "splits": [{"split": words}],
        "groups": {words: {words: 1}},
        "data_notes": [f"Note: {words}"],
        "preprocessing": {words: words},
        "settings": {"x": words, "y": 1},
        "defaults": {"y": 1},
        "scores": [{"split": words, "notes": [f"Note: {words}"], "headlines": [row], "rows": [row]}],
        "limits": [f"Limit: {words}"],
        "warnings": [f"Warning: {words}"],
    }


@pytest.mark.parametrize(
    "uri",
    [
        "s3://me:hush@bucket/x",
        "synth=s3://me:hush@bucket/x",
        "https://host/x?X-Amz-Signature=hush",
        "s3://a/b, s3://me:hush@bucket/x",
        "s3://me:two hush words@bucket/x",
    ],
)
def test_secrets_of_uris_never_reach_a_card(uri):
    card = model_card("mma", {**with_everywhere(uri), "settings": {"labels": [uri], "nested": {"uri": uri}}})
    assert "hush" not in card
    assert "/x" in card  # the place itself is told


# --- the facts and the template ---


def test_wrong_facts_are_refused_by_name():
    with pytest.raises(ValueError, match="kind 'rnn': give mma or reactions"):
        model_card("rnn", FIELDS)
    with pytest.raises(TypeError, match="colour"):
        model_card("mma", {**FIELDS, "colour": "red"})
    with pytest.raises(TypeError, match="weights_sha256"):
        model_card("mma", {name: value for name, value in FIELDS.items() if name != "weights_sha256"})


@pytest.mark.parametrize("kind", ["mma", "reactions"])
@pytest.mark.parametrize("use", ["hiring", "grading", "policing", "lie detection", "diagnosis"])
def test_every_card_and_the_page_on_consent_name_what_it_is_not_for(kind, use):
    line = re.compile(rf"^- \*\*{use}[^*]*\*\*: .{{20,}}\.$", re.I | re.M)
    assert line.search(model_card(kind, FIELDS).split("## Not for")[1])
    assert line.search(CONSENT.split("## Not for")[1])


def test_the_templates_are_installed_with_the_package():
    (globs,) = re.findall(r"package-data = \{ jobs = \[(.*)\] \}", (ROOT / "pyproject.toml").read_text())
    patterns = re.findall(r'"([^"]+)"', globs)
    files = [each.relative_to(ROOT / "jobs").as_posix() for each in (ROOT / "jobs/templates").iterdir()]
    assert "templates/model_card.md" in files
    assert not [file for file in files if not any(fnmatch.fnmatch(file, each) for each in patterns)]


# --- consent ---


def test_the_page_on_consent_names_every_column_that_a_store_keeps():
    columns = [*s.VIDEO_COLUMNS, *s.FRAME_COLUMNS]
    assert not [name for name in columns if f"`{name}`" not in CONSENT]


def test_the_page_on_consent_gives_commands_and_options_that_exist():
    given = re.findall(r"^mma-mrnnet forget (.*)$", CONSENT, re.M)
    assert len(given) == 2
    own = {each.name for each in dataclasses.fields(forget.Options)}
    assert {word[2:].replace("-", "_") for line in given for word in line.split() if word[:2] == "--"} <= own
    jobs = (extract.Options, predict.Options, evaluate.Options, train_mma.Options, RunOptions)
    known = own | {each.name for options in jobs for each in dataclasses.fields(options)}
    told = {word.replace("-", "_") for word in re.findall(r"--(?:no-)?([a-z][a-z-]+)", CONSENT)} - {"recursive"}
    assert told
    assert not told - known
