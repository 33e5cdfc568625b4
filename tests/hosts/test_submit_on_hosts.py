"""`submit` and `doctor` from outside a cluster of three hosts: what all of them see runs there, what one does not see is
refused before the start."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import clips
import pandas as pd
import pytest
from host_network import why_not
from ray_hosts import HEAD, NAMES, RayHosts, ray_hosts
from s3_server import make_bucket, upload_folder

from cluster.storage import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    summary: dict | None
    told: str


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    """Three hosts, the head's job server reachable from here."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with ray_hosts(tmp_path_factory.mktemp("hosts")) as cluster:
        cluster.start(*NAMES, options={HEAD: ("--dashboard-host", cluster.net[HEAD].address)})
        yield cluster


def command(hosts: RayHosts, job: str, *words: object) -> Ended:
    """Run a job of this machine, which is outside the cluster, against its job server."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MLFLOW_"))
    }
    environment |= {"RAY_AUTH_TOKEN": hosts.environment["RAY_AUTH_TOKEN"], "AWS_ENDPOINT_URL": hosts.s3}
    address = f"http://{hosts.net[HEAD].address}:8265"
    ran = subprocess.run(
        [sys.executable, "-m", "jobs", job, "--address", address, *map(str, words)],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    return Ended(ran.returncode, json.loads(ran.stdout) if ran.stdout else None, ran.stderr)


def submit(hosts: RayHosts, *words: object) -> Ended:
    return command(hosts, "submit", "--python", sys.executable, "--", *words)


def corpus(hosts: RayHosts, folder: Path, count: int) -> str:
    """A bucket with some clips under corpus/."""
    clips.write_kinds(folder / "videos", frames=30)
    bucket = make_bucket(hosts.s3)
    clips.upload_copies(folder / "videos", Folder(f"s3://{bucket}/corpus"), count)
    return bucket


@pytest.fixture(autouse=True)
def _s3(hosts: RayHosts, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.setenv(key, hosts.environment[key])


def test_an_extraction_runs_there_from_and_to_object_storage(hosts: RayHosts, tmp_path: Path):
    bucket = corpus(hosts, tmp_path, 8)
    store = f"s3://{bucket}/store"
    ended = submit(hosts, "extract", "--videos", f"s3://{bucket}/corpus/", "--store", store, *clips.OPTIONS)
    assert ended.code == 0, ended.told
    assert (ended.summary["videos"], ended.summary["ok"]) == (8, 8)
    assert "3 nodes have what this project needs" in ended.told
    assert len(set(clips.rows_of(Folder(store))["video_id"].to_pylist())) == 8
    assert not [file.name for file in Folder(store).list(prefix="_tmp-")]


def test_training_sweep_and_prediction_run_there_and_are_those_of_one_machine(hosts: RayHosts, run_job, tmp_path: Path):
    """From and to object storage; three workers against one, so that float32 rounds otherwise."""
    made = tmp_path / "corpus"
    assert run_job("synth", "--no-video", "--out", made, "--videos", 300, "--seconds", "3,6").code == 0
    (made / "space.yaml").write_text("network.units: [16, 32]\n")
    bucket = make_bucket(hosts.s3)
    there, far = f"s3://{bucket}/corpus", f"s3://{bucket}/out"
    upload_folder(made, there)
    fit = ("--fit.epochs", 3, "--fit.patience", 3, "--fit.batch-size", 60, "--worker-cpus", 1, "--no-tracking")

    def words(job: str, place: object, out: object) -> list[object]:
        own = ("--space", f"{place}/space.yaml", "--trials", 2, "--scheduler", "none") if job == "tune" else ()
        return [job, "--store", f"{place}/store", "--labels", place, "--out", out, *fit, *own]

    trained = submit(hosts, *words("train", there, f"{far}/model"), "--num-workers", 3)
    assert trained.code == 0, trained.told
    swept = submit(hosts, *words("tune", there, f"{far}/sweep"))
    assert swept.code == 0, swept.told
    asked = ("--model", f"{far}/model", "--store", f"{there}/store", "--out", f"{far}/predictions")
    predicted = submit(hosts, "predict", *asked)
    assert predicted.code == 0, predicted.told

    alone = run_job(*words("train", made, tmp_path / "model"))
    score = alone.summary["metrics"]["mean_pearson"]
    assert trained.summary["metrics"]["mean_pearson"] == pytest.approx(score, abs=1e-3)
    alone = run_job(*words("tune", made, tmp_path / "sweep"))
    assert [swept.summary[key] for key in ("trials", "steps")] == [alone.summary[key] for key in ("trials", "steps")]
    assert swept.summary["best"]["settings"] == alone.summary["best"]["settings"]
    score = alone.summary["metrics"]["mean_pearson"]
    assert swept.summary["metrics"]["mean_pearson"] == pytest.approx(score, abs=1e-3)
    (tmp_path / "there.safetensors").write_bytes(Folder(f"{far}/model").read("mrnnet.safetensors"))
    here = ("--model", tmp_path / "there.safetensors", "--store", made / "store", "--out", tmp_path / "p")
    assert run_job("predict", *here).code == 0
    ours = pd.read_csv(io.BytesIO(Folder(f"{far}/predictions").read("predictions.csv")))
    assert len(ours) == 300
    pd.testing.assert_frame_equal(ours, pd.read_csv(tmp_path / "p" / "predictions.csv"), atol=1e-5)


def test_a_folder_that_only_the_head_has_is_refused_and_a_shared_one_taken(hosts: RayHosts, tmp_path: Path):
    private = hosts.net[HEAD].private
    words = ("synth", "--videos", "3", "--no-video", "--out")
    ended = submit(hosts, *words, f"{private}/corpus")
    assert (ended.code, ended.summary) == (2, None), ended.told
    line = next(
        line for line in ended.told.splitlines() if f"--out {private}/corpus" in line and "does not see it" in line
    )
    assert "node h2" in line or "node h3" in line
    assert "s3://" in line
    assert not (hosts.net[HEAD].folder / "private" / "corpus").exists()
    ended = submit(hosts, *words, tmp_path / "corpus")
    assert ended.code == 0, ended.told
    assert (tmp_path / "corpus" / "data_info.csv").exists()


def test_videos_that_only_the_head_has_are_refused(hosts: RayHosts, tmp_path: Path):
    private = hosts.net[HEAD].private
    clips.write_kinds(hosts.net[HEAD].folder / "private" / "videos", frames=30)
    ended = submit(hosts, "extract", "--videos", f"{private}/videos", "--store", tmp_path / "s", *clips.OPTIONS)
    assert (ended.code, ended.summary) == (2, None), ended.told
    assert re.search(rf"--videos {private}/videos: node h[23] sees nothing there", ended.told), ended.told
    assert not (tmp_path / "s").exists()


def test_doctor_tells_what_each_host_sees(hosts: RayHosts, tmp_path: Path):
    bucket, private = make_bucket(hosts.s3), hosts.net[HEAD].private
    words = ("--python", sys.executable, "--no-tracking", "--timeout-s", "120")
    well = command(hosts, "doctor", *words, "--store", f"s3://{bucket}/s", "--out", tmp_path / "o")
    states = {(each["check"], each["where"]): each["state"] for each in well.summary["checks"]}
    assert well.code == 0, well.told
    assert set(states.values()) == {"ok"}
    assert {where for check, where in states if check == "decoders"} == set(NAMES)
    ill = command(hosts, "doctor", *words, "--store", f"{private}/s")
    wrong = [(each["check"], each["where"]) for each in ill.summary["checks"] if each["state"] == "fail"]
    assert ill.code == 1
    assert sorted(wrong) == [("storage", "h2"), ("storage", "h3")]
