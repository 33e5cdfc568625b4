"""`tune` on three hosts, from and to an S3 server: a host that is cut off costs no trial and changes no number."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ray_hosts import RayHosts
from s3_server import make_bucket, upload_folder

from cluster.storage import Folder
from jobs.sweep_book import Book

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRIALS = 6
SPACE = "network.units: [48, 96]\nfit.learning_rate: {log-uniform: [1.0e-3, 1.0e-2]}\n"
SETTINGS = ("--fit.epochs", 8, "--fit.patience", 8, "--fit.batch-size", 200, "--scheduler", "none", "--no-tracking")


@pytest.fixture(scope="module")
def corpus(run_job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "corpus"
    ran = run_job("synth", "--no-video", "--out", folder, "--videos", 1200, "--seconds", "4,8")
    assert ran.code == 0, ran.told
    (folder / "space.yaml").write_text(SPACE)
    return folder


@pytest.fixture(scope="module")
def one_machine(run_job, corpus: Path) -> pd.DataFrame:
    out, space = corpus.parent / "alone", corpus / "space.yaml"
    words = ("--store", corpus / "store", "--labels", corpus, "--space", space, "--trials", TRIALS)
    ran = run_job("tune", *words, "--out", out, *SETTINGS)
    assert ran.code == 0, ran.told
    return pd.read_csv(out / "trials.csv")


def test_a_host_cut_off_in_a_sweep_costs_no_trial(hosts: RayHosts, corpus: Path, one_machine: pd.DataFrame):
    bucket = make_bucket(hosts.s3)
    place, out = f"s3://{bucket}/corpus", Folder(f"s3://{bucket}/sweep")
    upload_folder(corpus, place)
    words = ("--store", f"{place}/store", "--labels", place, "--space", f"{place}/space.yaml", "--trials", TRIALS)
    job = hosts.job("tune", *words, "--out", out.uri, *SETTINGS, "--worker-cpus", 1, log="sweep")

    def begun() -> int:
        return len(out.child("_trials").list(suffix=".zip"))

    job.wait_for(lambda: begun() >= 3, "three trials run", 240)
    assert "3 trials at once" in job.told
    hosts.cut("h3")
    summary = job.ended(500)
    assert job.process.returncode == 0, job.told
    assert summary["trials"] == {"all": TRIALS, "done": TRIALS, "stopped": 0, "failed": 0}
    table = pd.read_csv(io.BytesIO(out.read("trials.csv")))
    assert np.allclose(table["val_mean_pearson"], one_machine["val_mean_pearson"], atol=3e-3)
    assert list(table["steps"]) == list(one_machine["steps"])
    book = Book(out)
    book.read()
    assert [[entry["epoch"] for entry in each.history] for each in book.ordered()] == [list(range(1, 9))] * TRIALS
    assert not out.child("_nested").list()
