"""`train` with `--num-workers MIN:MAX` on three hosts: on from the last checkpoint with those that are left, and the
results are those of one machine."""

import json
from pathlib import Path
from typing import Any

import pytest
from ray_hosts import Job, RayHosts
from s3_server import make_bucket, upload_folder

from cluster.storage import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = ("--network.units", 192, "--fit.epochs", 10, "--fit.patience", 10, "--fit.batch-size", 400)
"""Epochs of seconds, to be cut off in one, and of two steps: what rounding makes of a training grows with each."""
FACES = (
    "--trunk", "tiny", "--detector", "none", "--batch-size", 400, "--epochs", 4, "--epoch-samples", 800,
)  # fmt: skip
SNAPSHOT = "checkpoint_manager_snapshot.json"


@pytest.fixture(scope="module")
def corpus(run_job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reactions") / "corpus"
    ran = run_job("synth", "--no-video", "--out", folder, "--videos", 1200, "--seconds", "6,12")
    assert ran.code == 0, ran.told
    return folder


@pytest.fixture(scope="module")
def one_machine(run_job, corpus: Path) -> dict[str, Any]:
    """What one worker on this machine makes of the corpus."""
    out = corpus.parent / "alone"
    ran = run_job("train", "--store", corpus / "store", "--labels", corpus, "--out", out, *SETTINGS, "--no-tracking")
    assert ran.code == 0, ran.told
    return json.loads((out / "metrics.json").read_text())


class Run:
    """A training from the S3 server and to there; `saved` says how far its newest checkpoint is."""

    def __init__(self, hosts: RayHosts, corpus: Path, job: str, *words: str) -> None:
        """`{corpus}` in the words stands for the corpus's copy on the server."""
        self.hosts, self.name = hosts, job.removeprefix("train-")
        bucket = make_bucket(hosts.s3)
        upload_folder(corpus, f"s3://{bucket}/corpus")
        self.out = Folder(f"s3://{bucket}/model")
        self.words = (job, *(word.format(corpus=f"s3://{bucket}/corpus") for word in words), "--out", self.out.uri)

    def start(self, *more: object, log: str = "job") -> Job:
        more = ("--num-workers", "1:3", "--worker-cpus", 1, "--no-tracking", *more)
        return self.hosts.job(*self.words, *more, log=log)

    def saved(self) -> int:
        """Epochs that the newest checkpoint holds."""
        folder = self.out.child("_train").child(self.name)
        if not folder.exists(SNAPSHOT):
            return 0
        found = json.loads(folder.read(SNAPSHOT))["checkpoint_results"]
        return max((len(each["metrics"]["history"]) for each in found), default=0)


def reactions(hosts: RayHosts, corpus: Path) -> Run:
    return Run(hosts, corpus, "train", "--store", "{corpus}/store", "--labels", "{corpus}", *map(str, SETTINGS))


def assert_same(out: Folder, expected: dict[str, Any]) -> None:
    """Each epoch once, with the losses and scores of one machine."""
    found = json.loads(out.read("metrics.json"))
    assert [each["epoch"] for each in found["history"]] == list(range(10))
    for ours, theirs in zip(found["history"], expected["history"], strict=True):
        assert ours["loss_total"] == pytest.approx(theirs["loss_total"], abs=1e-3), ours["epoch"]
        assert ours["val_mean_pearson"] == pytest.approx(theirs["val_mean_pearson"], abs=2e-3), ours["epoch"]
    ours, theirs = (each["splits"]["val"]["mean_pearson"] for each in (found, expected))
    assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.mark.parametrize("lost", ["h2", "h3"])
def test_a_host_cut_off_costs_an_epoch_or_two_and_changes_no_number(hosts: RayHosts, corpus, one_machine, lost):
    run = reactions(hosts, corpus)
    job = run.start()
    job.wait_for(lambda: 1 <= run.saved() < 7, "a checkpoint is there", 180)
    assert "3 training workers (1 to 3 as nodes come and go)" in job.told
    hosts.cut(lost)
    summary = job.ended(300)
    assert (job.process.returncode, summary["job"]) == (0, "train"), job.told
    assert "workers are started again from the last checkpoint" in job.told
    assert "on with 2 workers; the global batch is the same" in job.told
    assert_same(run.out, one_machine)


def test_the_driver_killed_on_the_head_and_the_same_command_resumed(hosts: RayHosts, corpus, one_machine):
    run = reactions(hosts, corpus)
    job = run.start(log="first")
    job.wait_for(lambda: 1 <= run.saved() < 7, "a checkpoint is there", 180)
    job.process.kill()
    job.ended()
    assert not run.out.exists("mrnnet.safetensors")
    job = run.start("--resume", log="second")
    job.ended(300)
    assert job.process.returncode == 0, job.told
    assert_same(run.out, one_machine)


@pytest.fixture(scope="module")
def faces(run_job, training_corpus: Path) -> dict[str, Any]:
    """What one worker on this machine makes of the corpus's faces."""
    out = training_corpus.parent / "alone"
    words = ("--labels", f"synth={training_corpus}", *FACES, "--out", out, "--no-tracking")
    ran = run_job("train-mma", *words, "--worker-cpus", 2)
    assert ran.code == 0, ran.told
    return json.loads((out / "metrics.json").read_text())


def test_the_same_of_the_first_stage(hosts: RayHosts, training_corpus: Path, faces):
    """Faces are cut on the hosts, too."""
    run = Run(hosts, training_corpus, "train-mma", "--labels", "synth={corpus}", *map(str, FACES))
    job = run.start()
    job.wait_for(lambda: 1 <= run.saved() < 3, "a checkpoint is there", 240)
    hosts.cut("h3")
    job.ended(300)
    assert job.process.returncode == 0, job.told
    assert "on with 2 workers" in job.told
    found = json.loads(run.out.read("metrics.json"))["history"]
    assert [each["epoch"] for each in found] == [0, 1, 2, 3]
    for ours, theirs in zip(found, faces["history"], strict=True):
        assert ours["loss_total"] == pytest.approx(theirs["loss_total"], abs=3e-3), ours["epoch"]
