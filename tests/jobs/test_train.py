"""`train` end to end: what it leaves, what it refuses, kills."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from trained_mma import TWO_WORKERS
from trained_reactions import SETTINGS
from training_driver import Driver, mlflow_run, session_workers, steps_of

from cluster.training import ALLOCATION
from jobs.prediction import read_model
from rnn.reactions import REACTIONS


@pytest.fixture(autouse=True)
def tracked(monkeypatch, training_mlflow):
    """All trainings here go to one database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", training_mlflow)


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
    # Beside each epoch's score, too, the ridge floor of the same videos.
    ridge = metrics["floors"]["ridge_statistics"]
    assert [each["val_ridge_pearson"] for each in history(reactions.out)] == [pytest.approx(ridge)] * 6
    assert f" (ridge {ridge:.3f}), " in reactions.ran.told


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


@pytest.mark.slow
def test_the_last_weights_are_kept_beside_those_that_validation_chose(run_job, reactions, tmp_path):
    """With validation labels turned round the first epochs score best; what is trained stays the same."""
    labels = pd.read_parquet(reactions.corpus / "truth.parquet")
    turned = labels["split"] == "Val"
    labels.loc[turned, list(REACTIONS)] = 1 - labels.loc[turned, list(REACTIONS)]
    labels.to_parquet(tmp_path / "labels.parquet")
    options = (*reactions.options, "--labels", tmp_path / "labels.parquet", "--fit.patience", 9)
    ran = run_job("train", "--out", tmp_path / "m", *options, *TWO_WORKERS, "--no-tracking")
    assert ran.code == 0, ran.told

    def weights(out: Path, name: str) -> list[dict[str, Any]]:
        return [network.state_dict() for network in read_model(str(out / name)).networks]

    def equal(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[bool]:
        return [all(bool((a[key] == b[key]).all()) for key in a) for a, b in zip(one, other, strict=True)]

    best = [each["best_epoch"] for each in read_model(str(reactions.out)).record["seeds"]]
    assert best == [2, 2]  # of three: here the last is the best
    assert max(each["best_epoch"] for each in read_model(str(tmp_path / "m")).record["seeds"]) < 2
    last = weights(tmp_path / "m", "last.safetensors")
    assert equal(last, weights(reactions.out, "last.safetensors")) == [True, True]
    assert equal(last, weights(reactions.out, "mrnnet.safetensors")) == [True, True]
    assert equal(last, weights(tmp_path / "m", "mrnnet.safetensors")) == [False, False]


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
    words = (
        "--store", store, "--labels", tmp_path / "labels.parquet", "--preset", "paper", *SETTINGS, "--seeds", 0,
        "--fit.epochs", 1, "--no-tracking",
    )  # fmt: skip
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
    out, killed, environment = tmp_path / "m", [], {}

    def kill() -> None:
        until = time.monotonic() + 150
        while not (out / "_train/train/checkpoint_manager_snapshot.json").exists() and time.monotonic() < until:
            time.sleep(0.02)
        killed.extend(session_workers())
        environment.update(killed[-1].environ())
        killed[-1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ran = run_job("train", "--out", out, *reactions.options, *TWO_WORKERS, "--no-tracking")
    killer.join()
    assert ran.code == 0, ran.told
    assert len(killed) == 2
    assert ALLOCATION.items() <= environment.items()  # a tenth of a training's time
    assert "workers are started again" in ran.told
    assert [each["epoch"] for each in history(out)] == [0, 1, 2, 3, 4, 5]
    assert read_model(str(out)).sha256() == read_model(str(reactions.out)).sha256()


@pytest.mark.timeout(420)
@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_driver_killed_goes_on_where_it_was(run_job, reactions, tmp_path, training_mlflow, stopped):
    import ray

    options = (*reactions.options, "--fit.epochs", 16, "--fit.patience", 16, "--num-workers", 1, "--worker-cpus", 2)
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
    assert [each["epoch"] for each in history(driver.out)] == list(range(32))
    client, run = mlflow_run(training_mlflow, driver.out)
    assert run.info.status == "FINISHED"
    assert steps_of(client, run, "loss_total") == list(range(32))
