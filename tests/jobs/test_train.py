"""`train`, `evaluate --store` and `predict` end to end: what they leave, what they refuse, kills, odd videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from trained_mma import Trained
from training_driver import Driver, mlflow_run, session_workers, steps_of

from jobs.prediction import read_model
from rnn.metrics import ReactionMetrics
from rnn.reactions import REACTIONS

SETTINGS = (
    "--seeds", 0, 1, "--network.units", 8, "--network.dense-width", 6, "--fit.epochs", 3, "--fit.batch-size", 32,
)  # fmt: skip
TWO_WORKERS = ("--num-workers", 2, "--worker-cpus", 1)


class Reactions(NamedTuple):
    corpus: Path
    out: Path
    options: tuple[object, ...]
    ran: Any


@pytest.fixture(autouse=True)
def tracked(monkeypatch, training_mlflow):
    """All trainings here go to one database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", training_mlflow)


@pytest.fixture(scope="module")
def reactions(run_job, tmp_path_factory, training_mlflow) -> Reactions:
    """True descriptors of 220 made videos, and a model of two seeds trained on them by two workers."""
    folder = tmp_path_factory.mktemp("reactions")
    ran = run_job("synth", "--no-video", "--out", folder / "corpus", "--videos", 220, "--seconds", "2,4")
    assert ran.code == 0, ran.told
    options = ("--store", folder / "corpus/store", "--labels", folder / "corpus", *SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", training_mlflow)
        ran = run_job("train", "--out", folder / "model", *options, *TWO_WORKERS)
    assert ran.code == 0, ran.told
    return Reactions(folder / "corpus", folder / "model", options, ran)


def history(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "metrics.json").read_text())["history"]


def test_a_training_leaves_a_model_its_scores_and_a_card(reactions):
    summary = reactions.ran.summary
    metrics = summary["metrics"]
    assert (summary["job"], summary["split"]) == ("train", "val")
    assert set(REACTIONS) < set(metrics)
    assert metrics["interval"][0] < metrics["mean_pearson"] < metrics["interval"][1]
    assert metrics["interval_by"] == "subject"  # a made corpus knows its people
    assert set(metrics["floors"]) == {"constant", "ridge_statistics", "best_descriptor", "ridge_metadata"}
    assert len(metrics["seeds"]["values"]) == 2
    assert {each.name for each in reactions.out.iterdir()} >= {
        *("mrnnet.safetensors", "last.safetensors", "metrics.json", "MODEL_CARD.md", "_run.json"),
    }
    model = read_model(str(reactions.out))
    assert model.seeds == (0, 1)
    assert model.step_s == 0.1
    assert model.record["scores"]["val"]["mean_pearson"] == pytest.approx(metrics["mean_pearson"])
    assert min(min(each.slope) for each in model.calibrations) > 0
    card = (reactions.out / "MODEL_CARD.md").read_text()
    assert "Trained on a made corpus" in card
    assert "hiring" in card
    assert f"{metrics['mean_pearson']:.3f}" in card
    assert "floors: constant 0.000, ridge statistics" in reactions.ran.told


def test_history_and_mlflow_hold_each_epoch_of_each_seed_once(reactions, training_mlflow):
    found = history(reactions.out)
    assert [(each["epoch"], each["seed"], each["seed_epoch"]) for each in found] == [
        *((0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 1, 0), (4, 1, 1), (5, 1, 2)),
    ]
    client, run = mlflow_run(training_mlflow, reactions.out)
    assert run.info.status == "FINISHED"
    assert steps_of(client, run, "val_mean_pearson") == [0, 1, 2, 3, 4, 5]
    assert run.data.params["network.units"] == "8"
    assert run.data.metrics["final_val_mean_pearson"] == pytest.approx(reactions.ran.summary["metrics"]["mean_pearson"])
    assert {each.path for each in client.list_artifacts(run.info.run_id)} >= {"mrnnet.safetensors", "metrics.json"}


@pytest.mark.slow
def test_one_worker_trains_as_two_do(run_job, reactions, tmp_path):
    ran = run_job("train", "--out", tmp_path / "m", *reactions.options, "--num-workers", 1, "--no-tracking")
    assert ran.code == 0, ran.told
    for one, two in zip(history(tmp_path / "m"), history(reactions.out), strict=True):
        assert one["loss_total"] == pytest.approx(two["loss_total"], abs=1e-3)
        assert one["val_mean_pearson"] == pytest.approx(two["val_mean_pearson"], abs=5e-3)


# --- what it refuses ---


def test_a_second_start_is_refused_and_a_done_run_told_again(run_job, reactions):
    ran = run_job("train", "--out", reactions.out, *reactions.options)
    assert (ran.code, ran.summary) == (2, {})
    assert "--resume goes on with it" in ran.told
    ran = run_job("train", "--out", reactions.out, *reactions.options, "--resume")
    assert (ran.code, ran.summary) == (0, reactions.ran.summary)
    ran = run_job("train", "--out", reactions.out, *reactions.options, "--resume", "--fit.learning-rate", 0.1)
    assert ran.code == 2
    assert "fit.learning_rate: 0.1 / 0.003" in ran.told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--store", "{tmp}/none", "--labels", "{corpus}"], "no feature store"),
        (["--store", "{corpus}/store", "--labels", "{tmp}/none.csv"], "--labels"),
        (["--store", "{corpus}/store", "--labels", "{tmp}/emi.csv"], "EMI challenge"),
        (["--store", "{corpus}/store", "--labels", "{tmp}/others.csv"], "no video of the store stands in the labels"),
        (["--store", "{corpus}/store", "--labels", "{tmp}/few.csv"], "7 videos of the split train"),
        (["--store", "{corpus}/store", "--labels", "{tmp}/unsplit.csv"], "no labelled video of the split train"),
        (["--store", "{corpus}/store", "--labels", "{corpus}", "--sequence.descriptors", "AU99"], "AU99"),
        (["--store", "{corpus}/store", "--labels", "{corpus}", "--preset", "best"], "--preset"),
        (["--store", "{corpus}/store", "--labels", "{corpus}", "--fit.batch-size", "4"], "--fit.batch-size 4"),
        (["--store", "{corpus}/store", "--labels", "{corpus}", "--seeds", "1", "1"], "--seeds 1 1"),
        (["--store", "{corpus}/store", "--labels", "{corpus}", "--num-workers", "99"], "--num-workers"),
        (["--store", "{corpus}/store", "--labels", "{tmp}/both.csv"], "subject 'P'"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(run_job, reactions, tmp_path, arguments, told):
    (tmp_path / "emi.csv").write_text(
        "File_ID,Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy\n1,0,0,0,0,0,0\n"
    )
    few = [f"{number:05d},{'0.5' if number < 7 else ''},train" for number in range(12)]
    (tmp_path / "few.csv").write_text("\n".join(["video_id,Fear,split", *few]))
    (tmp_path / "unsplit.csv").write_text("video_id,Fear\n00000,0.5\n00001,0.2\n")
    (tmp_path / "others.csv").write_text("video_id,Fear,split\nzzz,0.5,train\n")
    (tmp_path / "both.csv").write_text("video_id,Fear,split,subject\n00000,0.5,train,P\n00001,0.5,test,P\n")
    words = [each.format(tmp=tmp_path, corpus=reactions.corpus) for each in arguments]
    ran = run_job("train", "--out", tmp_path / "m", *words, "--no-tracking")
    assert (ran.code, ran.summary) == (2, {}), ran.told
    said = [
        line
        for line in ran.told.splitlines()
        if not line.startswith(("labels (", "220 videos have", "12 videos have", "2 videos have"))
    ]
    assert len(said) == 1, ran.told
    assert told in said[0]
    assert not (tmp_path / "m").exists()


def test_an_outlier_of_length_is_refused_for_weights_a_step_with_the_option(run_job, reactions, tmp_path):
    """One training video of 60 s among others of 2 to 4: its steps' weights would see it alone."""
    store = tmp_path / "store"
    ran = run_job("synth", "--no-video", "--out", tmp_path / "long", "--videos", 60, "--seconds", "60,60")
    assert ran.code == 0
    store.mkdir()
    for folder in (reactions.corpus / "store", tmp_path / "long/store"):
        for file in folder.glob("*.parquet"):
            table = pq.read_table(file)
            if folder.parent.name == "long":
                table = table.slice(0, 1)
                table = table.set_column(table.schema.get_field_index("video_id"), "video_id", [["outlier"]])
            pq.write_table(table, store / f"{folder.parent.name}-{file.name}")
    (store / "_spec.json").write_bytes((reactions.corpus / "store/_spec.json").read_bytes())
    labels = pd.read_parquet(reactions.corpus / "truth.parquet")
    labels = pd.concat([labels, labels[labels["split"] == "Train"].head(1).assign(video_id="outlier")])
    labels.to_parquet(tmp_path / "labels.parquet")
    words = ("--store", store, "--labels", tmp_path / "labels.parquet", "--preset", "paper", *SETTINGS, "--no-tracking")
    ran = run_job("train", "--out", tmp_path / "m", *words)
    assert ran.code == 2
    assert "the longest training video has 600 steps" in ran.told
    assert "--steps 4" in ran.told
    ran = run_job("train", "--out", tmp_path / "m", *words, "--steps", 40)
    assert ran.code == 0, ran.told
    assert "40 steps; training videos that reach each tenth of them: " in ran.told
    ran = run_job("predict", "--model", tmp_path / "m", "--store", store, "--out", tmp_path / "p")
    assert ran.summary["resampled"] == 1


# --- kills ---


def test_a_worker_killed_in_mid_seed_costs_an_epoch_at_most(run_job, reactions, tmp_path):
    out, killed = tmp_path / "m", []

    def kill() -> None:
        until = time.monotonic() + 150
        while not (out / "_train/train/checkpoint_manager_snapshot.json").exists() and time.monotonic() < until:
            time.sleep(0.02)
        killed.extend(session_workers())
        killed[-1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ran = run_job("train", "--out", out, *reactions.options, *TWO_WORKERS, "--no-tracking")
    killer.join()
    assert ran.code == 0, ran.told
    assert len(killed) == 2
    assert "workers are started again" in ran.told
    assert [each["epoch"] for each in history(out)] == [0, 1, 2, 3, 4, 5]
    assert read_model(str(out)).sha256() == read_model(str(reactions.out)).sha256()


@pytest.mark.timeout(420)
@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_driver_killed_goes_on_where_it_was(run_job, reactions, tmp_path, training_mlflow, stopped):
    import ray

    options = (*reactions.options, "--fit.epochs", 30, "--fit.patience", 30, "--num-workers", 1, "--worker-cpus", 2)
    driver = Driver(tmp_path, "train", *options)
    if stopped:
        driver.start("--num-cpus", "2")
        driver.wait_for("seed 0 (1 of 2)")
        driver.interrupt()
    driver.start(*(["--resume"] if stopped else []), "--address", ray.get_runtime_context().gcs_address)
    driver.wait_for("seed 1 (2 of 2)")
    driver.process.kill()
    driver.ended()
    assert not (driver.out / "mrnnet.safetensors").exists()
    ran = run_job("train", "--out", driver.out, *options, "--resume")
    assert ran.code == 0, ran.told
    assert [each["epoch"] for each in history(driver.out)] == list(range(60))
    client, run = mlflow_run(training_mlflow, driver.out)
    assert run.info.status == "FINISHED"
    assert steps_of(client, run, "loss_total") == list(range(60))


# --- evaluate and predict ---


def test_an_evaluation_is_of_the_asked_split_beside_floors_and_ceiling(run_job, reactions, tmp_path):
    words = ("--model", reactions.out, "--store", reactions.corpus / "store", "--out", tmp_path / "e")
    ran = run_job("evaluate", *words, "--labels", reactions.corpus, "--split", "test")
    assert ran.code == 2
    assert "truth.parquet" in ran.told  # the corpus hands out no test labels
    truth = reactions.corpus / "truth.parquet"
    ran = run_job("evaluate", *words, "--labels", truth, "--split", "test")
    assert ran.code == 0, ran.told
    written = json.loads((tmp_path / "e/metrics.json").read_text())
    model = read_model(str(reactions.out))
    assert (
        written["ceiling"]["mean"]
        == json.loads((reactions.corpus / "ceiling.json").read_text())["test"]["display"]["mean"]
    )
    assert written["model_sha256"] == model.sha256()
    # The same score from the table of predictions, joined by id.
    ran = run_job("predict", "--model", reactions.out, "--store", reactions.corpus / "store", "--out", tmp_path / "p")
    assert ran.code == 0, ran.told
    both = pd.read_parquet(truth).merge(pd.read_parquet(tmp_path / "p/predictions.parquet"), on="video_id")
    test = both[both["split"] == "Test"]
    values, labels = (test[[f"{name}_{side}" for name in REACTIONS]].to_numpy() for side in ("y", "x"))
    expected = ReactionMetrics.of(values, labels).scores()["mean_pearson"]
    assert written["mean_pearson"] == pytest.approx(expected, abs=1e-4)  # the table holds float32, of other batches
    assert written["over_ridge"]["low"] < written["over_ridge"]["difference"] < written["over_ridge"]["high"]
    page = (tmp_path / "e/report.html").read_text()
    assert page.count("data:image/png") == 2 + 8  # scatter, calibration, the best and worst videos' timelines
    assert "http" not in page.replace("http://www.w3.org", "")
    ran = run_job("evaluate", *words, "--labels", truth)
    assert ran.code == 2
    assert "--overwrite" in ran.told


def test_a_table_without_splits_is_scored_whole(run_job, reactions, tmp_path):
    """Any table of labels, of any videos; and a ceiling of 0, as a clip or two have, is none."""
    truth = pd.read_parquet(reactions.corpus / "truth.parquet")
    # No training video among them: the floors came with the model.
    test = truth[truth["split"] == "Test"]
    test[["video_id", *REACTIONS]].to_csv(tmp_path / "labels.csv", index=False)
    words = ("--model", reactions.out, "--store", reactions.corpus / "store", "--out", tmp_path / "e")
    ran = run_job("evaluate", *words, "--labels", tmp_path / "labels.csv")
    assert ran.code == 2
    assert "--split (all: also videos of no split)" in ran.told
    ran = run_job("evaluate", *words, "--labels", tmp_path / "labels.csv", "--split", "all")
    assert (ran.code, ran.summary["videos"], ran.summary["ceiling"]) == (0, len(test), None), ran.told
    by_themselves = ran.summary["metrics"]["floors"]
    ran = run_job("evaluate", *words, "--labels", reactions.corpus / "truth.parquet", "--overwrite")
    assert by_themselves == pytest.approx(ran.summary["metrics"]["floors"])
    assert set(by_themselves) == {"constant", "ridge_statistics", "ridge_metadata", "best_descriptor"}
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    truth.to_parquet(corpus / "truth.parquet")
    (corpus / "_corpus.json").write_text("{}")
    (corpus / "ceiling.json").write_text(json.dumps({"test": {"display": {"mean": 1e-17, "by_reaction": {}}}}))
    ran = run_job("evaluate", *words, "--labels", corpus / "truth.parquet", "--overwrite")
    assert (ran.code, ran.summary["ceiling"]) == (0, None), ran.told


def test_a_name_with_markup_stays_a_name(run_job, reactions, tmp_path):
    labels = pd.read_parquet(reactions.corpus / "truth.parquet")
    labels["country"] = "<script>alert(1)</script>"
    labels.to_parquet(tmp_path / "labels.parquet")
    ran = run_job(
        "evaluate", "--model", reactions.out, "--store", reactions.corpus / "store", "--out", tmp_path / "e",
        "--labels", tmp_path / "labels.parquet", "--split", "test",
    )  # fmt: skip
    assert ran.code == 0, ran.told
    page = (tmp_path / "e/report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_predictions_have_a_row_for_every_video_in_both_files(run_job, reactions, tmp_path):
    ran = run_job(
        "predict",
        "--model",
        reactions.out,
        "--store",
        reactions.corpus / "store",
        "--out",
        tmp_path / "p",
        "--brackets",
    )
    assert (ran.code, ran.summary["videos"], ran.summary["ok"], ran.summary["seeds"]) == (0, 220, 220, 2)
    sheet = pd.read_csv(tmp_path / "p/predictions.csv", dtype={"File_ID": str})
    assert list(sheet.columns) == ["File_ID", *REACTIONS]
    assert sheet["File_ID"].tolist() == [f"[{number:05d}]" for number in range(220)]
    table = pd.read_parquet(tmp_path / "p/predictions.parquet")
    np.testing.assert_allclose(sheet[list(REACTIONS)], table[list(REACTIONS)], rtol=1e-5)
    assert (table[[f"spread_{name}" for name in REACTIONS]] > 0).all().all()
    assert (table["face_share"] == 1).all()
    assert (table["steps_used"] == table["steps"]).all()
    assert table["steps"].between(20, 40).all()
    train = pd.read_parquet(reactions.corpus / "truth.parquet").set_index("video_id")["split"].eq("Train")
    inside = train.reindex(table["video_id"]).to_numpy()
    assert (table["outside_share"][inside] == 0).all()  # the range is theirs
    assert table["outside_share"][~inside].max() > 0
    assert b"model_sha256" in pq.read_schema(tmp_path / "p/predictions.parquet").metadata[b"mma_mrnnet.predictions"]
    ran = run_job("predict", "--model", reactions.out, "--store", reactions.corpus / "store", "--out", tmp_path / "p")
    assert ran.code == 2
    assert "--overwrite" in ran.told


@pytest.fixture(scope="module")
def from_videos(run_job, trained: Trained, tmp_path_factory) -> tuple[Path, Path]:
    """A store extracted from clips by the trained MMA, and a small model trained on it."""
    folder = tmp_path_factory.mktemp("videos")
    ran = run_job(
        "extract", "--videos", trained.corpus, "--store", folder / "store", "--mma", trained.out, "--detector", "none"
    )
    assert ran.code == 0, ran.told
    ran = run_job(
        "train", "--store", folder / "store", "--labels", trained.corpus, "--out", folder / "model", "--no-tracking",
        "--fit.batch-size", 8, "--fit.epochs", 2, "--network.units", 4,
    )  # fmt: skip
    assert ran.code == 0, ran.told
    return folder / "store", folder / "model"


def test_videos_are_predicted_through_a_store_that_resumes_and_goes(
    run_job, from_videos, trained: Trained, tmp_path, opened
):
    store, model = from_videos
    clips = sorted(trained.corpus.glob("*/mp4/*.mp4"))[:6]
    videos = tmp_path / "videos"
    videos.mkdir()
    for clip in clips:
        (videos / clip.name).write_bytes(clip.read_bytes())
    (videos / "broken.mp4").write_bytes(b"\x00" * 100)
    words = ("--model", model, "--videos", videos, "--mma", trained.out, "--out", tmp_path / "p")
    ran = run_job("predict", *words, "--keep-store", "--max-failed-fraction", 0.5)
    assert ran.code == 0, ran.told
    assert (ran.summary["videos"], ran.summary["failed"], ran.summary["ok"]) == (7, 1, 6)
    assert (tmp_path / "p/_store").is_dir()
    table = pd.read_parquet(tmp_path / "p/predictions.parquet").set_index("video_id")
    assert table.loc["broken", "status"] == "failed"
    assert table.loc["broken", "error_type"] == "NotAVideo"
    assert np.isfinite(table[list(REACTIONS)].to_numpy()).all()
    before = opened(clips[0].name)
    ran = run_job("predict", *words, "--overwrite", "--max-failed-fraction", 0.5)  # all is in the store already
    assert ran.code == 0, ran.told
    assert opened(clips[0].name) == before
    assert ran.summary["extract"]["skipped"] == 7
    assert not (tmp_path / "p/_store").exists()
    again = pd.read_parquet(tmp_path / "p/predictions.parquet").set_index("video_id")
    pd.testing.assert_frame_equal(table, again)
    # The same as from a store that was extracted by itself.
    ran = run_job("predict", "--model", model, "--store", store, "--out", tmp_path / "s")
    whole = pd.read_parquet(tmp_path / "s/predictions.parquet").set_index("video_id")
    ids = [clip.stem for clip in clips]
    np.testing.assert_allclose(whole.loc[ids, list(REACTIONS)], table.loc[ids, list(REACTIONS)], atol=1e-4)


def test_another_network_and_another_spec_are_refused(run_job, from_videos, reactions, trained: Trained, tmp_path):
    _, model = from_videos
    words = ("--model", model, "--videos", trained.corpus, "--out", tmp_path / "p")
    ran = run_job("predict", *words, "--mma", "random:0:tiny")
    assert ran.code == 2
    assert "is not the network of the model's store" in ran.told
    assert "sha256" in ran.told
    ran = run_job("predict", "--model", model, "--store", reactions.corpus / "store", "--out", tmp_path / "q")
    assert ran.code == 2
    assert "another spec" in ran.told
    assert not (tmp_path / "q/predictions.parquet").exists()
    ran = run_job(
        "predict", "--model", reactions.out, "--videos", trained.corpus, "--mma", trained.out, "--out", tmp_path / "r"
    )
    assert ran.code == 2
    assert "give --store" in ran.told


def test_thumbnails_are_shown_where_asked_and_blurred(run_job, from_videos, trained: Trained, tmp_path):
    store, model = from_videos
    words = ("--model", model, "--store", store, "--labels", trained.corpus / "truth.parquet", "--split", "test")
    pages = {}
    for name, more in {"plain": (), "blurred": ("--thumbnails",), "clear": ("--thumbnails", "--no-blur")}.items():
        ran = run_job("evaluate", *words, *more, "--out", tmp_path / name)
        assert ran.code == 0, ran.told
        pages[name] = (tmp_path / name / "report.html").read_text()
    assert "data:image/jpeg" not in pages["plain"]
    assert pages["blurred"].count("data:image/jpeg") == pages["clear"].count("data:image/jpeg") > 0
    assert len(pages["blurred"]) < len(pages["clear"])  # squares have less in them than faces


@pytest.mark.slow
def test_the_best_of_a_sweep_is_registered_under_an_alias(
    run_job, from_videos, trained: Trained, tmp_path, training_mlflow
):
    store, _ = from_videos
    (tmp_path / "space.yaml").write_text("network.units: [4, 8]\n")
    options = (
        "--store",
        store,
        "--labels",
        trained.corpus,
        "--out",
        tmp_path / "s",
        "--space",
        tmp_path / "space.yaml",
    )
    fit = ("--fit.batch-size", 8, "--fit.epochs", 2, "--trials", 2, "--search-seed", 3)
    ran = run_job("tune", *options, *fit, "--register", "swept-test", "--mma", trained.out)
    assert ran.code == 0, ran.told
    client, run = mlflow_run(training_mlflow, tmp_path / "s")
    version = client.get_model_version_by_alias("swept-test", "best")
    assert (int(version.version), version.run_id) == (1, run.info.run_id)
    assert "registered: models:/swept-test/1" in ran.told


def test_a_registered_model_predicts_videos_by_mlflow_alone(
    run_job, from_videos, trained: Trained, tmp_path, training_mlflow
):
    """Put into the registry without a pickle, then run by MLflow's own command in a process of its own."""
    store, _ = from_videos
    options = (
        "--store",
        store,
        "--labels",
        trained.corpus,
        "--out",
        tmp_path / "m",
        "--fit.batch-size",
        8,
        "--fit.epochs",
        1,
    )
    ran = run_job("train", *options, "--register", "reactions-test")
    assert ran.code == 2
    assert "--mma is missing" in ran.told
    ran = run_job("train", *options, "--register", "reactions-test", "--mma", "random:0:tiny")
    assert ran.code == 2
    assert "is not the network of the store" in ran.told
    assert not (tmp_path / "m").exists()
    ran = run_job("train", *options, "--register", "reactions-test", "--mma", trained.out)
    assert ran.code == 0, ran.told
    assert "registered: models:/reactions-test/1" in ran.told
    client, run = mlflow_run(training_mlflow, tmp_path / "m")
    files = [each.path for each in client.list_artifacts(run.info.run_id, "model")]
    assert not [name for name in files if name.endswith(".pkl")]
    clips = sorted((trained.corpus / "test/mp4").glob("*.mp4"))[:2]
    (tmp_path / "in.csv").write_text("uri\n" + "".join(f"{clip}\n" for clip in [*clips, tmp_path / "none.mp4"]))
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", "models:/reactions-test/1", "-i", tmp_path / "in.csv",
               "-t", "csv", "-o", tmp_path / "out.json", "--env-manager", "local"]  # fmt: skip
    environment = {**os.environ, "MLFLOW_TRACKING_URI": training_mlflow}
    done = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = pd.DataFrame(json.loads((tmp_path / "out.json").read_text())["predictions"])
    assert list(rows.columns) == list(REACTIONS)
    ran = run_job("predict", "--model", tmp_path / "m", "--store", store, "--out", tmp_path / "p")
    ours = pd.read_parquet(tmp_path / "p/predictions.parquet").set_index("video_id")[list(REACTIONS)]
    np.testing.assert_allclose(rows.iloc[:2], ours.loc[[clip.stem for clip in clips]], atol=1e-4)
    np.testing.assert_allclose(rows.iloc[2], read_model(str(tmp_path / "m")).fallback, atol=1e-6)
