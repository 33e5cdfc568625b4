"""`evaluate --store` and `predict` end to end: scores, rows for every video, videos through a store, the registry."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from trained_mma import Trained
from training_driver import Driver, mlflow_run

from jobs.prediction import read_model
from rnn.metrics import ReactionMetrics
from rnn.reactions import REACTIONS


@pytest.fixture(autouse=True)
def tracked(monkeypatch, training_mlflow):
    """All trainings here go to one database."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", training_mlflow)


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


def copied(folder: Path, clips: dict[str, Path]) -> Path:
    """A new folder with these clips under these names."""
    folder.mkdir()
    for name, clip in clips.items():
        (folder / name).write_bytes(clip.read_bytes())
    return folder


def test_videos_are_predicted_through_a_store_that_resumes_and_goes(
    run_job, from_videos, trained: Trained, tmp_path, opened
):
    store, model = from_videos
    clips = sorted(trained.corpus.glob("*/mp4/*.mp4"))[:6]
    videos = copied(tmp_path / "videos", {clip.name: clip for clip in clips})
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


def test_a_prediction_killed_in_its_middle_goes_on_from_its_store(
    run_job, from_videos, trained: Trained, tmp_path, opened
):
    """One video that never ends keeps the run from its end, so that it can be killed after its first commit."""
    import ray

    _, model = from_videos
    clips = sorted(trained.corpus.glob("*/mp4/*.mp4"))[:10]
    named = {f"mid-{number}.mp4": clip for number, clip in enumerate(clips)}
    videos = copied(tmp_path / "videos", {**named, "sleeper.mp4": clips[0]})
    options = ("--model", model, "--videos", videos, "--mma", trained.out)
    driver = Driver(tmp_path, "predict", *options)
    driver.start("--address", ray.get_runtime_context().gcs_address)
    driver.wait_until(lambda: list((driver.out / "_store").glob("*.parquet")), 100)
    driver.process.kill()
    driver.ended()
    assert [each.name for each in driver.out.iterdir()] == ["_store"]
    done = set(pq.read_table(driver.out / "_store")["video_id"].to_pylist())
    assert done
    before = {name: opened(f"{name}.mp4") for name in done}
    (videos / "sleeper.mp4").unlink()
    ran = run_job("predict", "--out", driver.out, *options)
    assert ran.code == 0, ran.told
    assert (ran.summary["videos"], ran.summary["extract"]["skipped"]) == (10, len(done))
    assert {name: opened(f"{name}.mp4") for name in done} == before
    table = pd.read_parquet(driver.out / "predictions.parquet")
    assert table["video_id"].tolist() == [f"mid-{number}" for number in range(10)]
    assert not (driver.out / "_store").exists()
    # The same as in one go.
    whole = run_job("predict", "--out", tmp_path / "whole", *options)
    assert whole.code == 0, whole.told
    pd.testing.assert_frame_equal(table, pd.read_parquet(tmp_path / "whole/predictions.parquet"), rtol=1e-4, atol=1e-5)


def test_a_video_changed_since_a_killed_run_is_predicted_as_it_is_now(run_job, from_videos, trained: Trained, tmp_path):
    _, model = from_videos
    clips = sorted(trained.corpus.glob("*/mp4/*.mp4"), key=lambda path: path.stat().st_size)
    videos = copied(tmp_path / "videos", {"a.mp4": clips[0]})
    options = ("--model", model, "--videos", videos, "--mma", trained.out)
    assert run_job("predict", "--out", tmp_path / "p", *options, "--keep-store").code == 0
    (videos / "a.mp4").write_bytes(clips[-1].read_bytes())
    ran = run_job("predict", "--out", tmp_path / "p", *options, "--overwrite")
    assert ran.code == 0, ran.told
    assert (ran.summary["extract"]["changed"], ran.summary["extract"]["skipped"]) == (1, 0)
    assert run_job("predict", "--out", tmp_path / "q", *options).code == 0
    now, fresh = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in "pq")
    pd.testing.assert_frame_equal(now, fresh, rtol=1e-4, atol=1e-5)


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
