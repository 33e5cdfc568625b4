"""`tune` and `ablate` end to end: their trials, books, MLflow runs and pages; kills of a worker and of the driver."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import pytest
from training_driver import Driver

from cluster.storage import Folder
from jobs.prediction import read_model
from jobs.sweep_book import Book
from jobs.sweep_trial import read_state

SPACE = """
network.cell: [gru, lstm]
network.units: {uniform: [4, 12]}
fit.learning_rate: {log-uniform: [1.0e-3, 3.0e-2]}
sequence.descriptors: [[all], [va, aus]]
sequence.fill: [hold, zero]
"""
EPOCHS = 9
SETTINGS = ("--network.dense-width", 6, "--fit.epochs", EPOCHS, "--fit.batch-size", 64)


@pytest.fixture(autouse=True)
def tracked(monkeypatch, training_mlflow):
    """All sweeps here go to one database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", training_mlflow)


class Made(NamedTuple):
    corpus: Path
    space: Path
    options: tuple[object, ...]


@pytest.fixture(scope="module")
def made(run_job, tmp_path_factory) -> Made:
    """True descriptors of 220 made videos, labels of all splits, and a small search space."""
    folder = tmp_path_factory.mktemp("sweeps")
    ran = run_job("synth", "--no-video", "--out", folder / "corpus", "--videos", 220, "--seconds", "2,4")
    assert ran.code == 0, ran.told
    (folder / "space.yaml").write_text(SPACE)
    options = ("--store", folder / "corpus/store", "--labels", folder / "corpus/truth.parquet", *SETTINGS)
    return Made(folder / "corpus", folder / "space.yaml", options)


class Swept(NamedTuple):
    out: Path
    ran: Any
    book: Book


@pytest.fixture(scope="module")
def swept(run_job, made, tmp_path_factory, training_mlflow) -> Swept:
    """Seven trials of two seeds each, some stopped early; the process of one of them is killed on the way."""
    out, killed = tmp_path_factory.mktemp("sweep") / "s", []

    def kill() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            begun = len(read_state(Folder(str(out)), 0).history) if (out / "_trials/0000.zip").exists() else 0
            if begun >= 2:
                killed.extend(trial_processes())
                killed[0].kill()
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    options = ("--trials", 7, "--space", made.space, "--seeds", 0, 1, "--grace-epochs", 3, "--worker-cpus", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", training_mlflow)
        ran = run_job("tune", "--out", out, *made.options, *options)
    killer.join()
    assert ran.code == 0, ran.told
    assert killed
    book = Book(Folder(str(out)))
    book.read()
    return Swept(out, ran, book)


def trial_processes() -> list[psutil.Process]:
    """Those of this session's cluster that run a trial."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("MMA_MRNNET_SCRATCH") == os.environ["MMA_MRNNET_SCRATCH"]
            if ours and "Trainable" in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def runs_of(uri: str, out: Path) -> tuple[Any, Any, list[Any]]:
    """MLflow's client, a sweep's run, and those of its trials, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    parent = client.get_run(json.loads((out / "_run.json").read_text())["mlflow_run_id"])
    found = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return client, parent, sorted(found, key=lambda run: run.info.run_name)


def test_a_sweep_ranks_its_trials_and_leaves_the_best_model(swept):
    summary = swept.ran.summary
    trials = summary["trials"]
    assert trials["all"] == 7 == trials["done"] + trials["stopped"]
    assert trials["stopped"] >= 1
    assert {each.name for each in swept.out.iterdir()} >= {
        *("mrnnet.safetensors", "metrics.json", "MODEL_CARD.md", "trials.csv", "best.yaml", "sweep.html", "_run.json"),
    }
    table = pd.read_csv(swept.out / "trials.csv").set_index("trial")
    best = summary["best"]["trial"]
    assert table["val_mean_pearson"].idxmax() == best
    assert set(table["state"]) == {"done", "stopped"}
    assert (table["epochs"][table["state"] == "done"] == EPOCHS).all()
    assert (table["epochs"][table["state"] == "stopped"] < EPOCHS).all()
    assert summary["steps"] == table["steps"].sum()
    model = read_model(str(swept.out))
    assert model.seeds == (0, 1)
    assert model.networks[0].config.units == int(summary["best"]["settings"]["network.units"])
    val = json.loads((swept.out / "metrics.json").read_text())["splits"]["val"]
    assert np.mean(val["seeds"]["values"]) == pytest.approx(summary["best"]["val_mean_pearson"], abs=1e-6)
    assert summary["split"] == "test"
    assert set(summary["metrics"]["floors"]) >= {"ridge_statistics"}


def test_a_trial_whose_process_was_killed_goes_on_from_its_last_epoch(swept):
    history = swept.book.trials[0].history
    assert [entry["epoch"] for entry in history] == list(range(1, len(history) + 1))
    per_epoch = history[0]["steps"]
    assert [entry["steps"] for entry in history] == [per_epoch * entry["epoch"] for entry in history]


@pytest.mark.slow
def test_the_best_settings_train_the_same_again(swept, made, run_job, tmp_path):
    options = ("--store", made.corpus / "store", "--labels", made.corpus / "truth.parquet")
    words = ("--config", swept.out / "best.yaml", "--out", tmp_path / "m", "--worker-cpus", 1, "--no-tracking")
    ran = run_job("train", *options, *words)  # of one thread, as the trial was
    assert ran.code == 0, ran.told
    again = json.loads((tmp_path / "m/metrics.json").read_text())["splits"]
    swept_scores = json.loads((swept.out / "metrics.json").read_text())["splits"]
    for split in ("val", "test"):
        assert again[split]["seeds"]["values"] == pytest.approx(swept_scores[split]["seeds"]["values"], abs=1e-4)


def test_mlflow_has_a_run_a_trial_inside_one_for_the_sweep(swept, training_mlflow):
    client, parent, children = runs_of(training_mlflow, swept.out)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["trials"] == "7"
    assert [each.info.run_name for each in children] == [f"{k:04d}" for k in range(7)]
    for record, run in zip(swept.book.ordered(), children):
        assert run.info.status == "FINISHED"
        assert record.mlflow_run_id == run.info.run_id
        assert run.data.tags["mma_mrnnet.state"] == record.state
        assert run.data.params["network.units"] == str(record.settings["network.units"])
        curve = client.get_metric_history(run.info.run_id, "val_mean_pearson")
        assert sorted(point.step for point in curve) == [entry["epoch"] for entry in record.history]
        assert run.data.metrics["duration_s"] > 0
        assert run.data.metrics["cpu_s"] == pytest.approx(run.data.metrics["duration_s"])
        assert run.data.metrics["best_val_mean_pearson"] == pytest.approx(record.score)
    best = swept.ran.summary["best"]["trial"]
    with_model = [k for k, run in enumerate(children) if client.list_artifacts(run.info.run_id)]
    assert with_model == [best]
    assert {each.path for each in client.list_artifacts(parent.info.run_id)} >= {"sweep.html", "mrnnet.safetensors"}


def test_the_page_shows_the_best_what_was_cut_and_all_pictures(swept):
    page = (swept.out / "sweep.html").read_text()
    stopped = [each.number for each in swept.book.ordered() if each.state == "stopped"]
    assert f"{len(stopped)} stopped early" in page
    assert page.count("data:image/png;base64,") == 2  # seven trials say nothing about settings
    assert "Under 8 trials" in page
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)  # whose letters are any
    assert "http" not in without_pictures.replace("http-equiv", "")


def test_a_sweep_that_is_done_is_not_done_again(swept, made, run_job):
    options = ("--trials", 7, "--space", made.space, "--seeds", 0, 1, "--grace-epochs", 3, "--worker-cpus", 1)
    ran = run_job("tune", "--out", swept.out, *made.options, *options, "--resume")
    assert ran.code == 0
    assert ran.summary == swept.ran.summary
    ran = run_job("tune", "--out", swept.out, *made.options, *options)
    assert ran.code == 2
    assert "--resume" in ran.told


@pytest.mark.parametrize(
    ("space", "options", "words"),
    [
        ("network.unts: [8]", (), ["'network.unts'", "'network.units'"]),
        ("fit.learning_rate: {uniform: [1, 1]}", (), ["fit.learning_rate", "is empty"]),
        ("network.lengths: [cut]", (), ["network.lengths", "--network.lengths cut is for"]),
        ("sequence.descriptors: [[aus], [va, joy]]", (), ["--sequence.descriptors joy", "valence"]),
        (SPACE, ("--max-concurrent", 9), ["--max-concurrent 9", "2 trials"]),
        (SPACE, ("--num-workers", 5), ["5 training workers", "--num-workers"]),
        (SPACE, ("--grace-epochs", 99), ["--grace-epochs 99"]),
        (SPACE, ("--trials", 0), ["--trials 0"]),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_trial(made, run_job, tmp_path, space, options, words):
    (tmp_path / "space.yaml").write_text(space)
    ran = run_job("tune", "--out", tmp_path / "s", *made.options, "--space", tmp_path / "space.yaml", *options)
    assert ran.code == 2
    assert not ran.summary
    told = ran.told.strip().splitlines()[-1]
    assert all(word in told for word in words), ran.told
    assert not (tmp_path / "s/_trials").exists() or not list((tmp_path / "s/_trials").glob("*.zip"))


def test_validation_without_labels_is_refused(made, run_job, tmp_path):
    labels = pd.read_parquet(made.corpus / "truth.parquet")
    labels[labels["split"] != "Val"].to_parquet(tmp_path / "labels.parquet")
    options = [tmp_path / "labels.parquet" if each == made.corpus / "truth.parquet" else each for each in made.options]
    ran = run_job("tune", "--out", tmp_path / "s", *options)
    assert ran.code == 2
    assert "no labelled video of the split val" in ran.told
    assert not (tmp_path / "s").exists()


def test_a_trial_that_fails_is_marked_and_the_others_go_on(made, run_job, tmp_path, training_mlflow):
    (tmp_path / "space.yaml").write_text("fit.learning_rate: [0.01, 1.0e+30]\nfit.optimiser: [sgd]\n")
    options = ("--trials", 4, "--space", tmp_path / "space.yaml", "--max-failures", 0, "--scheduler", "none")
    ran = run_job("tune", "--out", tmp_path / "s", *made.options, *options, "--fit.epochs", 3, "--search-seed", 1)
    assert ran.code == 0, ran.told
    table = pd.read_csv(tmp_path / "s/trials.csv").set_index("trial")
    wild = table["fit.learning_rate"] == 1e30
    assert 0 < wild.sum() < 4
    assert (table["state"][wild] == "failed").all()
    assert (table["state"][~wild] == "done").all()
    # Which of the two it meets first is a matter of the processor's arithmetic.
    overflow = r"predictions or known labels are|the loss is nan"
    assert table["error"][wild].str.contains(overflow).all()
    _, _, children = runs_of(training_mlflow, tmp_path / "s")
    assert [run.info.status for run in children] == ["FAILED" if each else "FINISHED" for each in wild]
    assert all(re.search(overflow, run.data.tags["error"]) for run, each in zip(children, wild) if each)


@pytest.mark.slow
def test_a_trial_of_two_workers_scores_as_one_of_one(made, run_job, tmp_path):
    """A run of Ray Train inside the trial: the first configuration of the sweep, for a few epochs."""
    options = ("--trials", 1, "--space", made.space, "--seeds", 0, 1, "--scheduler", "none", "--fit.epochs", 3)
    for name, workers in (("s", 2), ("t", 1)):
        words = ("--out", tmp_path / name, "--num-workers", workers, "--no-tracking")
        ran = run_job("tune", *made.options, *options, *words)
        assert ran.code == 0, ran.told
    two, one = (Book(Folder(str(tmp_path / name))) for name in "st")
    for book in (one, two):
        book.read()
    scores = [[entry["score"] for entry in book.trials[0].history] for book in (one, two)]
    assert len(scores[0]) == 3
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)
    assert not (tmp_path / "s/_nested").exists()


@pytest.mark.timeout(420)
@pytest.mark.parametrize("stopped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sweep_killed_goes_on_and_trains_nothing_twice(made, run_job, tmp_path, training_mlflow, stopped):
    """SIGKILL at half, to the driver on a cluster, or to it and a Ray of its own and then SIGTERM; then to the end: as
    many runs as trials, none trained twice."""
    import ray

    trials = 6 if stopped else 4
    options = (*made.options, "--trials", trials, "--space", made.space, "--scheduler", "none", "--worker-cpus", 1)
    driver = Driver(tmp_path, "tune", *options)
    where = ("--num-cpus", "2") if stopped else ("--address", ray.get_runtime_context().gcs_address)
    driver.start(*where)
    driver.wait_for(f"{trials // 2}/{trials} trials")

    def state() -> Book:
        book = Book(Folder(str(driver.out)))
        book.read()
        return book

    driver.kill_everything(when=lambda: any(each.state == "running" for each in state().ordered()))
    driver.process.wait()  # until then its lock holds
    before = {}
    book = state()
    for record in book.ended():
        before[record.number] = (driver.out / f"_trials/{record.number:04d}.zip").stat().st_mtime_ns
    assert len(before) >= trials // 2
    part = {each.number: each.epochs for each in book.ordered() if each.state == "running"}
    if stopped:
        driver.start("--resume", *where)
        driver.wait_for("trials at once")
        driver.interrupt()
        driver.start("--resume", *where)
        summary = driver.ended()
        assert driver.process.returncode == 0, driver.told
    else:
        ran = run_job("tune", "--out", driver.out, *options, "--resume")
        assert ran.code == 0, ran.told
        summary = ran.summary
    assert summary["trials"] == {"all": trials, "done": trials, "stopped": 0, "failed": 0}
    for number, written in before.items():
        assert (driver.out / f"_trials/{number:04d}.zip").stat().st_mtime_ns == written, number
    for record in state().ordered():
        assert [entry["epoch"] for entry in record.history] == list(range(1, EPOCHS + 1))
        steps = record.history[0]["steps"]
        assert record.steps == EPOCHS * steps
    assert part
    client, parent, children = runs_of(training_mlflow, driver.out)
    assert [run.info.run_name for run in children] == [f"{k:04d}" for k in range(trials)]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    for run in children:
        points = client.get_metric_history(run.info.run_id, "val_mean_pearson")
        assert sorted(point.step for point in points) == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize(
    ("groups", "variants"),
    [
        (("loss",), ["CCC", "mean squared error"]),
        pytest.param(
            ("loss", "normalisation"),
            ["CCC", "mean squared error", "video", "subject", "corpus, log odds", "subject, log odds"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["one-group", "two-groups"],
)
def test_an_ablation_compares_each_variant_with_the_default(made, run_job, tmp_path, training_mlflow, groups, variants):
    options = ("--seeds", 0, 1, "--fit.epochs", 4, "--network.units", 8)
    ran = run_job("ablate", "--out", tmp_path / "a", *made.options, "--groups", *groups, *options)
    assert ran.code == 0, ran.told
    table = pd.read_csv(tmp_path / "a/ablation.csv")
    assert list(table["variant"]) == ["default", *variants]
    assert table["difference"].isna().tolist() == [True, *[False] * len(variants)]
    rest = table[1:]
    assert np.allclose(rest["difference"], rest["mean_pearson"] - table["mean_pearson"][0], atol=1e-5)
    assert (rest["low"] <= rest["difference"]).all()
    assert (rest["difference"] <= rest["high"]).all()
    assert (rest["p_holm"] >= rest["p"]).all()
    assert (table["by"] == "subject").all()
    assert ran.summary["split"] == "test"
    assert ran.summary["trials"] == {"all": len(variants) + 1, "done": len(variants) + 1, "failed": 0}
    page = (tmp_path / "a/ablation.md").read_text()
    assert page.count("\n| ") >= len(variants) + 2
    assert f"{len(variants)} comparisons" in page
    assert (tmp_path / "a/ablation.png").read_bytes()[:4] == b"\x89PNG"
    _, _, children = runs_of(training_mlflow, tmp_path / "a")
    assert [run.info.run_name for run in children][:2] == ["0000 default", "0001 loss: CCC"]
    if len(groups) == 1:
        return
    # The default is what train gives; in the long case alone.
    ran = run_job("train", *made.options, *options, "--out", tmp_path / "m", "--worker-cpus", 1, "--no-tracking")
    assert ran.code == 0, ran.told
    trained = json.loads((tmp_path / "m/metrics.json").read_text())["splits"]["test"]
    assert trained["seeds"]["mean"] == pytest.approx(table["mean_pearson"][0], abs=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_survives_a_minute_without_its_mlflow_server(made, tmp_path):
    """A real server, killed in mid-sweep and started again: every run is complete in the end."""
    port = 5600 + os.getpid() % 300
    folder = tmp_path / "mlflow"
    folder.mkdir()

    def server() -> subprocess.Popen:
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"sqlite:///{folder}/m.db", "--artifacts-destination", str(folder / "a")]
        with open(folder / "log", "a") as log:
            started = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        until = time.monotonic() + 90
        import requests

        while time.monotonic() < until:
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=2).ok:
                    return started
            except requests.RequestException:
                time.sleep(0.5)
        raise AssertionError((folder / "log").read_text())

    first = server()
    uri = f"http://127.0.0.1:{port}"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
            options = ("--trials", 6, "--space", made.space, "--scheduler", "none", "--num-cpus", 2, "--worker-cpus", 1)
            driver = Driver(tmp_path, "tune", *made.options, *options, "--fit.epochs", 40)
            driver.start()
        driver.wait_for("1/6 trials")
        os.killpg(first.pid, signal.SIGKILL)
        time.sleep(60)
        first = server()
        summary = driver.ended()
        assert driver.process.returncode == 0, driver.told
        assert "MLflow answers again" in driver.told
        assert "untracked_trials" not in summary
        client, parent, children = runs_of(uri, driver.out)
        assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
        book = Book(Folder(str(driver.out)))
        book.read()
        assert len(children) == 6
        for record, run in zip(book.ordered(), children):
            points = client.get_metric_history(run.info.run_id, "val_mean_pearson")
            assert sorted(point.step for point in points) == [entry["epoch"] for entry in record.history]
    finally:
        os.killpg(first.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_asha_finds_in_half_the_steps_what_the_whole_sweep_finds(run_job, tmp_path):
    """16 trials of the default space on 1,200 made videos: under 8 minutes, and ASHA's best within .02 of the best."""
    corpus = tmp_path / "corpus"
    assert run_job("synth", "--no-video", "--out", corpus, "--videos", 1200).code == 0
    options = ("--store", corpus / "store", "--labels", corpus / "truth.parquet", "--no-tracking", "--trials", 16)
    sweeps = {}
    for scheduler in ("asha", "none"):
        ran = run_job("tune", *options, "--out", tmp_path / scheduler, "--scheduler", scheduler)
        assert ran.code == 0, ran.told
        sweeps[scheduler] = ran.summary
    print({name: (each["seconds"], each["steps"], each["metrics"]["mean_pearson"]) for name, each in sweeps.items()})
    assert sweeps["asha"]["seconds"] < 480
    assert sweeps["asha"]["steps"] <= sweeps["none"]["steps"] / 2
    assert sweeps["asha"]["metrics"]["mean_pearson"] >= sweeps["none"]["metrics"]["mean_pearson"] - 0.02
