"""`evaluate` on frame sets: the training's own scores again, beside their floors, and a page that trusts nobody."""

import csv
import json
import shutil

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from trained_mma import Trained

from jobs.frame_report import COLUMNS, FILES
from mma.checkpoint import load_mma, save_mma
from mma.descriptors import MMA26

NO_DETECTOR = ("--detector", "none")


@pytest.fixture(scope="module")
def evaluated(run_job, trained: Trained, tmp_path_factory):
    """The trained network on the corpus's test split: the folder of its results, and what was said."""
    out = tmp_path_factory.mktemp("evaluated") / "scores"
    ran = evaluate(run_job, trained, out)
    assert ran.code == 0, ran.told
    return out, ran


def evaluate(run_job, trained: Trained, out, *more, model=None, labels=None):
    return run_job(
        "evaluate", "--model", model or trained.out, "--labels", labels or f"synth={trained.corpus}", "--out", out,
        "--crops", trained.out / "crops", *(more or NO_DETECTOR),
    )  # fmt: skip


def changed_model(trained: Trained, path, **record):
    """The checkpoint with other words in its record; None takes one away."""
    loaded = load_mma(trained.out / "mma.safetensors")
    told = {**loaded.record, **record}
    save_mma(loaded.network, path, {name: value for name, value in told.items() if value is not None})
    return path


def test_test_scores_are_those_that_the_training_ended_with(evaluated, trained: Trained):
    _, ran = evaluated
    summary = ran.summary
    assert (summary["job"], summary["split"]) == ("evaluate", "test")
    assert summary["samples"] == trained.ran.summary["samples"]["test"]["samples"]
    assert summary["metrics"] == pytest.approx(trained.ran.summary["metrics"], abs=1e-4)
    assert summary["threshold_choice"] == "chosen on the validation split when the model was trained"
    assert summary["metrics"].keys() == summary["floors"].keys()


def test_files_hold_the_scores_and_the_table_is_printed(evaluated):
    out, ran = evaluated
    assert {each.name for each in out.iterdir()} == set(FILES)
    whole = json.loads((out / "metrics.json").read_text())
    assert whole["metrics"] == ran.summary["metrics"]
    assert whole["sets"]["synth"]["scores"]["au_f1"] == whole["scores"]["au_f1"]
    with open(out / "scores.csv") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["name"] for row in rows] == list(MMA26.names)
    for row in rows:
        one = whole["scores"]["by_name"][row["name"]]
        assert int(row["n"]) == one["n"]
        assert row["value"] == (str(one[row["metric"]]) if one["n"] else "")
        assert row["threshold"] == (str(whole["thresholds"][row["name"]]) if row["family"] == "action_units" else "")
    assert all(name in ran.told for name in (*MMA26.names, "action units, mean F1", "thresholds: chosen on"))
    page = (out / "report.html").read_text()
    assert all(name in page for name in (*MMA26.names, str(whole["network"]["sha256"])))
    assert "http" not in page  # nothing to load


def test_sets_are_scored_apart_and_pooled(run_job, trained: Trained, tmp_path):
    frames = pq.read_table(trained.corpus / "frames.parquet")
    rows = frames.filter(pc.is_in(frames["frame"], pc.unique(frames["frame"]).slice(0, 2)))
    paths = [
        f"{split.lower()}/mp4/{name}.mp4"
        for split, name in zip(rows["split"].to_pylist(), rows["video_id"].to_pylist())
    ]
    part = trained.corpus / "few.parquet"
    columns = ["frame", "subject", "valence", "arousal"]
    pq.write_table(rows.select(columns).append_column("uri", [paths]), part)
    try:
        ran = evaluate(
            run_job, trained, tmp_path / "s", "--labels", f"frames={part}", "--split", "all", *NO_DETECTOR
        )  # fmt: skip
    finally:
        part.unlink()
    assert ran.code == 0, ran.told
    whole = json.loads((tmp_path / "s" / "metrics.json").read_text())
    sizes = {name: each["samples"] for name, each in whole["sets"].items()}
    assert sizes == {"synth": frames.num_rows, "frames": rows.num_rows}
    assert whole["scores"]["by_name"]["valence"]["n"] == sum(sizes.values())
    assert whole["sets"]["frames"]["scores"]["absent"] == ["expressions", "action_units"]
    assert whole["seen"] == ["synth"]
    assert "no measure of how well it does on other people" in ran.told
    assert "By set" in (tmp_path / "s" / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((), "detector: \"haar\" / \"none\""),
        (("--detector", "none", "--detect-every", "2"), "detect_every: 2 / 1"),
        (("--detector", "none", "--model", "{out}/none"), "--model"),
        (("--detector", "none", "--labels", "frames={tmp}"), "--labels frames="),
        (("--detector", "none", "--labels", "frames={tmp}/own.csv", "--split", "val"), "--split val: frames"),
        (("--detector", "none", "--out", "{out}"), "holds a training run"),
        (("--detector", "none", "--out", "{out}", "--overwrite"), "holds a training run"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line_and_leaves_nothing(run_job, trained: Trained, tmp_path, more, told):
    (tmp_path / "own.csv").write_text(f"image,valence,split\n{trained.corpus}/x.jpg,0.5,test\n")
    words = [each.format(out=trained.out, tmp=tmp_path) for each in more] or ["--precision", "float32"]
    before = (trained.out / "metrics.json").read_bytes()
    ran = evaluate(run_job, trained, tmp_path / "s", *words)
    assert (ran.code, ran.summary) == (2, {}), ran.told
    said = [line for line in ran.told.splitlines() if not line.startswith("labels of ")]
    assert len(said) == 1, ran.told
    assert told in said[0]
    assert not (tmp_path / "s").exists()
    assert (trained.out / "metrics.json").read_bytes() == before


def test_results_are_replaced_on_demand_alone(run_job, evaluated, trained: Trained, tmp_path):
    out = tmp_path / "scores"
    shutil.copytree(evaluated[0], out)
    before = {each.name: each.read_bytes() for each in out.iterdir()}
    ran = evaluate(run_job, trained, out)
    assert ran.code == 2
    assert "--overwrite" in ran.told
    assert {each.name: each.read_bytes() for each in out.iterdir()} == before
    assert evaluate(run_job, trained, out, "--overwrite", "--split", "val", *NO_DETECTOR).code == 0
    assert json.loads((out / "metrics.json").read_text())["split"] == "val"


def test_scores_on_the_training_s_validation_split_are_said_to_flatter(run_job, trained: Trained, tmp_path):
    ran = evaluate(run_job, trained, tmp_path / "s", "--split", "val", *NO_DETECTOR)
    assert ran.code == 0, ran.told
    assert "flatters" in ran.summary["threshold_choice"]
    assert ran.summary["metrics"]["au_f1"] == pytest.approx(
        json.loads((trained.out / "metrics.json").read_text())["val"]["au_f1"], abs=1e-4
    )


def test_what_others_wrote_is_escaped(run_job, trained: Trained, tmp_path):
    hostile = tmp_path / "<img src=x onerror=alert(1)>&'\""
    shutil.copytree(trained.corpus, hostile)
    model = changed_model(
        trained, tmp_path / "m.safetensors",
        sets=[{"name": "<script>1</script>", "format": 1, "uri": "{{ 7 * 7 }}"}, 3], run_id="</dd><script>",
        samples={"<b>": {"samples": "many"}, "train": 7}, crops=["x"], epochs="three",
    )  # fmt: skip
    ran = run_job(
        "evaluate", "--model", model, "--labels", f"synth={hostile}", "--out", tmp_path / "s", *NO_DETECTOR
    )  # fmt: skip
    assert ran.code == 0, ran.told
    page = (tmp_path / "s" / "report.html").read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "&lt;script&gt;1&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "<img" not in page
    assert "<script" not in page


def test_a_checkpoint_without_thresholds_or_detector_says_so(run_job, trained: Trained, tmp_path):
    model = changed_model(trained, tmp_path / "m.safetensors", thresholds=None, detector=None)
    ran = evaluate(run_job, trained, tmp_path / "s", *NO_DETECTOR, model=model)
    assert ran.code == 0, ran.told
    assert ran.summary["threshold_choice"].startswith(".5 for each")
    assert "a threshold of .5" in ran.told
    assert "does not say which detector" in ran.told


def test_unknown_thresholds_are_refused(run_job, trained: Trained, tmp_path):
    for k, thresholds in enumerate(([0.5], {"AU01": 0.123}, {"AU01": "low"})):
        model = changed_model(trained, tmp_path / f"{k}.safetensors", thresholds=thresholds)
        ran = evaluate(run_job, trained, tmp_path / "s", *NO_DETECTOR, model=model)
        assert (ran.code, "thresholds" in ran.told) == (2, True), ran.told


def test_constant_predictions_are_flagged(run_job, trained: Trained, tmp_path):
    loaded = load_mma(trained.out / "mma.safetensors")
    with torch.no_grad():
        for name, parameter in loaded.network.named_parameters():
            if parameter.ndim == 2 and not name.startswith("trunk"):
                parameter.zero_()  # heads then give their bias for every face
    save_mma(loaded.network, tmp_path / "m.safetensors", loaded.record)
    ran = evaluate(run_job, trained, tmp_path / "s", *NO_DETECTOR, model=tmp_path / "m.safetensors")
    assert ran.code == 0, ran.told
    assert ran.summary["metrics"]["valence_ccc"] == 0
    assert {"valence", "arousal", "expression"} <= set(ran.summary["constant"])
    assert "Constant predictions: valence always" in ran.told
    assert "Constant predictions" in (tmp_path / "s" / "report.html").read_text()
