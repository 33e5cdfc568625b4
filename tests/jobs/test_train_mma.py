"""`train-mma` end to end: what it leaves, what it refuses, and that neither kills nor the number of workers matter."""

import contextlib
import json
import random
import shutil
import subprocess
import threading
import time

import pytest
from trained_mma import TWO_WORKERS, Trained
from training_driver import RECORD, Driver, mlflow_run, session_workers, steps_of

from jobs.models import load_weights
from mma.descriptors import MMA26

SNAPSHOT = "_train/mma/checkpoint_manager_snapshot.json"
FINAL = ("valence_ccc", "arousal_ccc", "expression_f1", "expression_accuracy", "au_f1", "abaw_score")


@pytest.fixture(autouse=True)
def tracked(monkeypatch, training_mlflow):
    """All trainings here go to one database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", training_mlflow)


# --- what it leaves ---


def test_labels_in_a_network_out_that_extract_loads(trained: Trained):
    summary = trained.ran.summary
    assert (summary["job"], summary["epochs"], summary["split"]) == ("train-mma", 2, "test")
    assert set(summary["metrics"]) == set(FINAL)
    assert summary["crops"]["detected"] == 1
    assert sum(each["samples"] for each in summary["samples"].values()) > 100
    weights = load_weights(str(trained.out))
    assert weights.spec["trunk"] == "tiny"
    assert not weights.random
    record = weights.record
    assert set(record["thresholds"]) == set(MMA26.action_units)
    assert [(each["name"], each["uri"]) for each in record["sets"]] == [("synth", str(trained.corpus))]
    assert record["crops"] == summary["crops"]
    assert (record["detector"]["detector"], record["precision"]) == ("none", "float32")
    assert record["training"]["batch_size"] == 400
    assert record["epochs"] == 2
    assert (trained.out / "training.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_history_and_final_scores_stand_in_metrics_json(trained: Trained):
    whole = json.loads((trained.out / "metrics.json").read_text())
    assert [entry["epoch"] for entry in whole["history"]] == [0, 1]
    assert {"loss_total", "loss_valence_arousal", "loss_expressions", "loss_action_units", "val_abaw_score"} <= set(
        whole["history"][0]
    )
    assert {name: whole["scores"][name] for name in FINAL} == trained.ran.summary["metrics"]


def test_mlflow_holds_parameters_each_epoch_once_and_the_network(trained: Trained, training_mlflow):
    client, run = mlflow_run(training_mlflow, trained.out)
    assert run.info.status == "FINISHED"
    assert (run.data.params["training.batch_size"], run.data.params["trunk"]) == ("400", "tiny")
    for name in ("epoch", "loss_total", "loss_matching", "val_abaw_score"):
        assert steps_of(client, run, name) == [0, 1], name
    assert run.data.metrics["test_au_f1"] == pytest.approx(trained.ran.summary["metrics"]["au_f1"])
    assert {each.path for each in client.list_artifacts(run.info.run_id)} >= {"mma.safetensors", "metrics.json"}


@pytest.mark.slow
def test_one_worker_gives_the_history_of_two(run_job, trained: Trained, tmp_path):
    ran = run_job(
        "train-mma", "--out", tmp_path / "m", *trained.options, "--crops", trained.out / "crops",
        "--num-workers", 1, "--worker-cpus", 2, "--no-tracking",
    )  # fmt: skip
    assert ran.code == 0, ran.told
    alone = json.loads((tmp_path / "m" / "metrics.json").read_text())["history"]
    for one, two in zip(alone, trained.history, strict=True):
        assert one.keys() == two.keys()
        for name in one:
            if name.startswith("loss_") or name.endswith("_ccc"):
                assert one[name] == pytest.approx(two[name], abs=2e-3), (one["epoch"], name)
            elif name.startswith("val_"):  # steps of one sample
                assert one[name] == pytest.approx(two[name], abs=0.05), (one["epoch"], name)


# --- what it refuses ---


def test_a_second_start_is_refused(run_job, trained: Trained):
    ran = run_job("train-mma", "--out", trained.out, *trained.options)
    assert (ran.code, ran.summary) == (2, {})
    assert "--resume goes on with it" in ran.told


def test_a_done_run_is_told_again(run_job, trained: Trained):
    before = (trained.out / "mma.safetensors").stat().st_mtime_ns
    ran = run_job("train-mma", "--out", trained.out, *trained.options, "--resume")
    assert ran.code == 0, ran.told
    assert ran.summary == trained.ran.summary
    assert (trained.out / "mma.safetensors").stat().st_mtime_ns == before


def test_other_options_are_refused_by_name(run_job, trained: Trained):
    ran = run_job("train-mma", "--out", trained.out, *trained.options, "--resume", "--learning-rate", 0.01)
    assert (ran.code, ran.summary) == (2, {})
    assert "training.learning_rate: 0.01 / 0.001" in ran.told
    assert len(ran.told.strip().splitlines()) == 1


def test_crops_of_another_spec_leave_no_run_behind(run_job, trained: Trained, tmp_path):
    words = ("--labels", f"synth={trained.corpus}", "--trunk", "tiny", "--crops", trained.out / "crops")
    ran = run_job("train-mma", "--out", tmp_path / "m", *words, "--no-tracking")  # the store was cut without a detector
    assert ran.code == 2
    assert "faces.detector" in ran.told
    assert not (tmp_path / "m" / "_run.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--resume"], "holds no run"),
        (["--trunk", "resnet51"], "resnet51"),
        (["--trunk", "tiny", "--init", "{tmp}/none.safetensors"], "--init"),
        (["--trunk", "tiny", "--init", "{tmp}/text.safetensors"], "--init"),
        (["--trunk", "tiny", "--mix", "synth=2", "--mix", "rafdb=1"], "--mix rafdb=1"),
        (["--trunk", "tiny", "--num-workers", "99"], "--num-workers"),
        (["--trunk", "tiny", "--detector", "yunet"], "--detector-weights"),
        (["--epochs", "0"], "--epochs 0"),
        (["--worker-cpus", "0"], "--worker-cpus 0"),
        (["--batch-size", "2", "--num-workers", "3"], "--batch-size 2"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(run_job, training_corpus, tmp_path, arguments, told):
    (tmp_path / "text.safetensors").write_text("no weights")
    words = [each.format(tmp=tmp_path) for each in arguments]
    ran = run_job("train-mma", "--labels", f"synth={training_corpus}", "--out", tmp_path / "m", *words)
    assert (ran.code, ran.summary) == (2, {}), ran.told
    said = [line for line in ran.told.splitlines() if not line.startswith("labels of ")]
    assert len(said) == 1, ran.told
    assert told in said[0]
    assert not (tmp_path / "m").exists()


def test_a_folder_that_holds_a_model_alone_is_not_written_to(run_job, training_corpus, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mma.safetensors").write_bytes(b"somebody's")
    ran = run_job("train-mma", "--labels", f"synth={training_corpus}", "--out", tmp_path / "m", "--trunk", "tiny")
    assert ran.code == 2
    assert "holds a model already" in ran.told
    assert [each.name for each in (tmp_path / "m").iterdir()] == ["mma.safetensors"]


# --- kills ---


@pytest.mark.slow
def test_a_run_killed_while_it_put_its_result_down_ends_alike(run_job, trained: Trained, tmp_path):
    out = tmp_path / "m"
    shutil.copytree(trained.out, out)
    for name in ("mma.safetensors", "metrics.json", "training.png"):
        (out / name).unlink()
    record = json.loads((out / RECORD).read_text())
    (out / RECORD).write_text(json.dumps({**record, "state": "running"}))
    ran = run_job("train-mma", "--out", out, *trained.options, *TWO_WORKERS, "--resume", "--no-tracking")
    assert ran.code == 0, ran.told
    assert (out / "mma.safetensors").read_bytes() == (trained.out / "mma.safetensors").read_bytes()
    assert ran.summary["metrics"] == trained.ran.summary["metrics"]


@pytest.mark.slow
def test_a_worker_killed_in_mid_epoch_costs_that_epoch_alone(run_job, trained: Trained, tmp_path, training_mlflow):
    out, killed = tmp_path / "m", []

    def kill() -> None:
        until = time.monotonic() + 200
        while not (out / SNAPSHOT).exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.7)  # into the second epoch
        killed.extend(session_workers())
        killed[-1].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ran = run_job("train-mma", "--out", out, *trained.options, *TWO_WORKERS, "--crops", trained.out / "crops")
    killer.join()
    assert ran.code == 0, ran.told
    assert len(killed) == 2
    told = [line for line in ran.told.splitlines() if line.startswith(("epoch ", "workers are started again"))]
    assert [line[:9] for line in told] == ["epoch 1/2", "workers a", "epoch 2/2"], ran.told
    assert len(told[1]) < 400
    assert load_weights(str(out)).spec["sha256"] == load_weights(str(trained.out)).spec["sha256"]
    client, run = mlflow_run(training_mlflow, out)
    assert steps_of(client, run, "epoch") == steps_of(client, run, "loss_total") == [0, 1]


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_driver_stopped_and_killed_goes_on_where_it_was(run_job, trained: Trained, tmp_path, training_mlflow):
    import ray

    options = (
        *trained.options, "--crops", trained.out / "crops",
        "--epochs", 4, "--epoch-samples", 800, "--num-workers", 1, "--worker-cpus", 2,
    )  # fmt: skip
    driver = Driver(tmp_path, "train-mma", *options)
    driver.start("--num-cpus", "2")
    driver.wait_for("epoch 1/")
    driver.interrupt()
    client, run = mlflow_run(training_mlflow, driver.out)
    assert run.info.status == "KILLED"

    driver.start("--resume", "--address", ray.get_runtime_context().gcs_address)
    driver.wait_for("epoch 3/")
    assert session_workers()
    driver.process.kill()
    assert driver.ended() == {}
    until = time.monotonic() + 30
    while session_workers() and time.monotonic() < until:
        time.sleep(0.2)
    assert not session_workers(), "workers on the cluster outlived their driver"
    assert not driver.left_after(10)
    assert not (driver.out / "mma.safetensors").exists()

    ran = run_job("train-mma", "--out", driver.out, *options, "--resume")
    assert ran.code == 0, ran.told
    assert ran.summary["epochs"] == 4
    whole = json.loads((driver.out / "metrics.json").read_text())
    assert [entry["epoch"] for entry in whole["history"]] == [0, 1, 2, 3]
    client, run = mlflow_run(training_mlflow, driver.out)
    assert run.info.status == "FINISHED"
    for name in ("epoch", "loss_total", "val_abaw_score"):
        assert steps_of(client, run, name) == [0, 1, 2, 3], name
    assert steps_of(client, run, "test_au_f1") == [0]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(3))
def test_killed_whole_at_any_instant_the_network_is_the_same(trained: Trained, tmp_path, seed):
    driver, draw = (
        Driver(tmp_path, "train-mma", *trained.options, *TWO_WORKERS, "--num-cpus", 2, "--no-tracking"),
        random.Random(seed),
    )
    for _ in range(4):
        begun = (driver.out / RECORD).exists()
        driver.start(*(["--resume"] if begun else []))
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.process.wait(timeout=draw.uniform(3, 45))
        driver.kill_everything()
        driver.ended()
    driver.start(*(["--resume"] if (driver.out / RECORD).exists() else []))
    driver.ended()
    assert driver.process.returncode == 0, driver.told
    assert load_weights(str(driver.out)).spec["sha256"] == load_weights(str(trained.out)).spec["sha256"]
