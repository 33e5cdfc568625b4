"""`submit`: what is refused before anything is sent, how a job's end comes back, what nodes must have; and a real head.

Tests that need the head stand last and share one, which lives no longer than they do.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import openface_files
import pytest
from ray_head import Head, ray_head

from cluster import health, submission
from cluster.capacity import Node
from cluster.health import Answer, Markers, footprint, look, same_place
from cluster.job_log import result_line
from cluster.submission import JobServer
from cluster.uri import StorageError
from jobs import export, extract, submit, submitted, synth, train
from jobs.cli import main, parse_options
from jobs.outcome import InputError
from jobs.places import places_of, tracks

PLANTED = "Zq7-planted-and-never-shown"
EXTRACT = ["extract", "--videos", "s3://bb/v", "--store", "s3://bb/s", "--mma", "random:0:tiny"]
TRAIN = ["train", "--store", "s3://bb/s", "--labels", "s3://bb/l.csv", "--out", "s3://bb/o"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("AWS_", "MLFLOW_", "RAY_A")):
            monkeypatch.delenv(name)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def refused(capfd, *arguments: str) -> str:
    """The one line of a command that is refused."""
    code = main(["submit", *arguments])
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert len(err.strip().splitlines()) == 1, err
    return err


# --- refused before anything is sent, and before anybody is asked ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "behind --"),
        (["--list", "--", *EXTRACT], "--list"),
        (["--follow", "a", "--stop", "b"], "--follow and --stop"),
        (["--submission-id", "../x", "--", *EXTRACT], "--submission-id"),
        (["extract", "--videos", "x"], "extract"),
        (["--", "extrakt", "--videos", "x"], "no job 'extrakt'"),
        (["--", "submit", "--", *EXTRACT], "no job 'submit'"),
        (["--", "extract", "--videos", "s3://bb/v"], "--store"),
        (["--", *EXTRACT, "--fps", "fast"], "--fps"),
        (["--", *EXTRACT, "--limit", "0"], "--limit 0"),
        (["--", *EXTRACT, "--config", "no-such.yaml"], "no-such.yaml"),
        (["--", *EXTRACT[:3], "--store", "descriptors"], "--store descriptors is a relative path"),
        (["--", *EXTRACT, "--videos", "clips/*/a.mp4"], "--videos clips/*/a.mp4 is a relative path"),
        (["--", "train-mma", "--labels", "synth=corpus", "--out", "s3://bb/o"], "--labels corpus is a relative path"),
        (["--", *EXTRACT[:3], "--store", "gs://b/s"], "--store"),
        (["--", *EXTRACT, "--address", "10.0.0.1:6379"], "--address"),
        (["--", *TRAIN, "--address", "local"], "--address"),
        (["--", *EXTRACT], "--address is missing"),
        (["--address", "ray://h:10001", "--", *EXTRACT], "ray://h:10001"),
        (["--list"], "--address is missing"),
    ],
)
def test_wrong_input_is_one_line(capfd, monkeypatch, arguments, told):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert told in refused(capfd, *arguments)


def test_an_address_without_a_job_server_is_one_line_soon(capfd):
    started_s = time.monotonic()
    told = refused(capfd, "--address", f"http://127.0.0.1:{closed_port()}", "--", *EXTRACT)
    assert "8265" in told
    assert time.monotonic() - started_s < 20


def test_help_of_the_inner_job_is_no_summary(capfd):
    with pytest.raises(SystemExit) as end:
        main(["submit", "--", "extract", "--help"])
    out, err = capfd.readouterr()
    assert (end.value.code, out) == (0, "")
    assert "--decode-timeout-s" in err


# --- with a server that only takes notes ---


class Notes:
    """A client of a job server that takes every job and gives what it was told to."""

    _server_ray_version = "2.60.0"

    def __init__(self, status: str = "SUCCEEDED", code: int | None = 0, summary: dict | None = None, **more):
        self.status, self.code, self.summary, self.more = status, code, summary, more
        self.jobs: dict[str, dict] = {}

    def submit_job(self, **job):
        self.jobs[job["submission_id"]] = job
        self.size = Path(job["runtime_env"]["working_dir"]).stat().st_size

    def get_job_info(self, submission_id):
        if submission_id not in self.jobs:
            raise RuntimeError(f"status code 404: Job {submission_id} does not exist.")
        job = self.jobs[submission_id]
        fields = {"job_id": None, "start_time": 1000, "end_time": None, "message": None, **self.more}
        return SimpleNamespace(
            submission_id=submission_id, entrypoint=job["entrypoint"], metadata=job["metadata"], status=self.status,
            driver_exit_code=self.code, **fields,
        )  # fmt: skip

    def list_jobs(self):
        return [self.get_job_info(each) for each in self.jobs]

    def stop_job(self, submission_id):
        self.status, self.code = "STOPPED", None

    async def tail_job_logs(self, submission_id):
        yield "Running\n12/40 videos, 30 frames/s, 0 failed, 0:00:10 left\n"
        if self.code is not None and self.summary is not None:
            mark = self.jobs[submission_id]["metadata"][submission.MARK_KEY]
            yield result_line(mark, self.code, self.summary)


@pytest.fixture
def notes(monkeypatch) -> Notes:
    client = Notes(summary={"job": "extract", "videos": 40})
    monkeypatch.setattr(submit, "connect", lambda address: JobServer(address or "http://h:1", client=client))
    monkeypatch.setattr(submission, "sleep", lambda seconds: None)
    return client


def run(capfd, *arguments: str) -> tuple[int, dict | None, str]:
    code = main(["submit", *arguments])
    out, err = capfd.readouterr()
    return code, json.loads(out) if out else None, err


def test_the_summary_alone_is_on_stdout_and_the_log_on_stderr(capfd, notes):
    code, summary, told = run(capfd, "--", *EXTRACT, "--fps", "5")
    assert (code, summary) == (0, {"job": "extract", "videos": 40})
    assert "12/40 videos" in told
    (job,) = notes.jobs.values()
    mark = job["metadata"][submission.MARK_KEY]
    assert job["entrypoint"] == f"exec python -m jobs.submitted {mark} {' '.join(EXTRACT)} --fps 5"
    assert f"{notes.size / 1e3:,.0f} kB (cluster, jobs, mma, rnn, pyproject.toml)" in told
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert "pip" not in job["runtime_env"]


@pytest.mark.parametrize(
    ("status", "code", "summary"),
    [("FAILED", 3, {"failed": 9}), ("FAILED", 143, {"state": "interrupted"}), ("FAILED", 1, {"missing": 2})],
)
def test_a_job_that_ends_with_a_summary_ends_here_with_it_and_its_code(capfd, notes, status, code, summary):
    notes.status, notes.code, notes.summary = status, code, summary
    assert run(capfd, "--", *EXTRACT)[:2] == (code, summary)


@pytest.mark.parametrize(
    ("code", "told"),
    [(2, "said above"), (1, "said above"), (137, "exit code 137"), (127, "--python"), (None, "no space left")],
)
def test_a_job_that_ends_without_a_summary_says_nothing_on_stdout(capfd, notes, code, told):
    notes.status, notes.code, notes.summary, notes.more = (
        "FAILED",
        code,
        None,
        {"message": "runtime_env: no space left"},
    )
    try:
        ended = main(["submit", "--", *EXTRACT])
    except SystemExit as end:
        ended = end.code
    out, err = capfd.readouterr()
    assert (ended, out) == (code or 1, "")
    assert told in err


def test_what_a_config_file_holds_is_sent_as_options(capfd, notes, tmp_path):
    (tmp_path / "options.yaml").write_text("fps: 7\nvideos: s3://bb/from-file\nlimit: 3\n")
    run(capfd, "--", "extract", "--config", str(tmp_path / "options.yaml"), "--store", "s3://bb/s", "--fps", "5")
    (job,) = notes.jobs.values()
    assert job["entrypoint"].endswith("extract --videos s3://bb/from-file --limit 3 --store s3://bb/s --fps 5")


def test_words_reach_the_job_as_they_are(capfd, notes):
    run(capfd, "--", *EXTRACT[:3], "--videos", "s3://bb/it's; rm -rf $HOME/*.mp4", "--store", "s3://bb/s")
    (job,) = notes.jobs.values()
    shown = subprocess.run(
        ["sh", "-c", job["entrypoint"].replace("exec python -m", "printf '%s|'")], capture_output=True
    )
    assert shown.stdout.decode().split("|")[-4:-1] == ["s3://bb/it's; rm -rf $HOME/*.mp4", "--store", "s3://bb/s"]


def test_variables_go_along_and_secrets_do_not(capfd, notes, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://10.0.0.1:9000")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PLANTED)
    monkeypatch.setenv("COLOUR", "red")
    _, _, told = run(capfd, "--env", "COLOUR", "--env", "SHAPE=round", "--", *EXTRACT)
    (job,) = notes.jobs.values()
    sent = {"AWS_ENDPOINT_URL": "http://10.0.0.1:9000", "COLOUR": "red", "SHAPE": "round"}
    assert job["runtime_env"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60", **sent}
    assert "AWS_SECRET_ACCESS_KEY stay here" in told
    assert PLANTED not in told + repr(job)


@pytest.mark.parametrize(
    ("variables", "arguments"),
    [
        ({"AWS_SECRET_ACCESS_KEY": PLANTED}, ["--env", "AWS_SECRET_ACCESS_KEY", "--", *EXTRACT]),
        ({}, ["--env", f"HF_TOKEN={PLANTED}", "--", *EXTRACT]),
        ({"MLFLOW_TRACKING_URI": f"http://me:{PLANTED}@h"}, ["--", *TRAIN]),
        ({"DB_PASSWORD": PLANTED}, ["--", *EXTRACT, "--scratch", f"/x/{PLANTED}"]),
        ({}, ["--", *EXTRACT, "--scratch", f"https://h/x?X-Amz-Signature={PLANTED}"]),
    ],
)
def test_a_secret_is_refused_with_the_advice_where_it_comes_from(capfd, notes, monkeypatch, variables, arguments):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = refused(capfd, *arguments)
    assert "Kubernetes Secret" in told
    assert "--send-secrets" in told
    assert PLANTED not in told
    assert not notes.jobs
    code, _, told = run(capfd, "--send-secrets", *arguments)
    assert code == 0
    assert "job's details" in told
    assert "runtime_env_agent.log" in told
    assert PLANTED in repr(notes.jobs)
    assert PLANTED not in told


def test_a_tracking_store_of_this_machine_is_refused_where_it_would_be_used(capfd, notes, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////home/me/mlflow.db")
    assert "http://HOST:5000" in refused(capfd, "--", *TRAIN)
    assert not notes.jobs
    for words in (EXTRACT, [*TRAIN, "--no-tracking"]):
        assert run(capfd, "--", *words)[0] == 0
    assert all("MLFLOW_TRACKING_URI" not in job["runtime_env"]["env_vars"] for job in notes.jobs.values())


def test_pinned_packages_are_pip_s(capfd, notes):
    run(capfd, "--packages", "pinned", "--", *EXTRACT)
    (job,) = notes.jobs.values()
    assert any(each.startswith("torch==") for each in job["runtime_env"]["pip"])


def test_a_cluster_of_another_ray_is_refused(capfd, notes, monkeypatch):
    monkeypatch.setattr(Notes, "_server_ray_version", "2.40.0")
    assert "the cluster runs Ray 2.40.0" in refused(capfd, "--", *EXTRACT)
    assert not notes.jobs


def test_no_wait_list_follow_and_stop(capfd, notes):
    notes.status, notes.code = "RUNNING", None
    code, summary, told = run(capfd, "--no-wait", "--submission-id", "night-1", "--", *EXTRACT)
    assert (code, summary["submission_id"], summary["status"]) == (0, "night-1", "RUNNING")
    assert "--follow night-1" in told
    assert "--stop night-1" in told
    assert "--submission-id night-1 is taken" in refused(capfd, "--submission-id", "night-1", "--", *EXTRACT)
    _, summary, told = run(capfd, "--list")
    assert [(each["submission_id"], each["submitted_job"]) for each in summary["jobs"]] == [("night-1", "extract")]
    assert "night-1  RUNNING" in told
    _, summary, _ = run(capfd, "--stop", "night-1")
    assert summary["status"] == "STOPPED"
    _, _, told = run(capfd, "--stop", "night-1")
    assert "had ended already" in told
    notes.status, notes.code = "SUCCEEDED", 0
    assert run(capfd, "--follow", "night-1")[:2] == (0, {"job": "extract", "videos": 40})
    assert "no such job" in refused(capfd, "--follow", "night-2")
    assert "no such job" in refused(capfd, "--stop", "night-2")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_following_and_not_the_job(capfd, notes, monkeypatch, number):
    notes.status, notes.code = "RUNNING", None
    monkeypatch.setattr(submission, "sleep", lambda seconds: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as end:
        main(["submit", "--submission-id", "night-1", "--", *EXTRACT])
    out, err = capfd.readouterr()
    assert (end.value.code, out) == (128 + number, "")
    assert "night-1 goes on" in err
    assert "--follow night-1" in err
    assert notes.status == "RUNNING"


# --- what is looked at on the cluster before the job starts ---


def options_of(module, job: str, words: list[str]):
    return parse_options(module.Options, job, words)


def test_places_of_jobs():
    one = options_of(extract, "extract", ["--videos", "/v/*/a.mp4", "--store", "/s", "--mma", "random:0:tiny"])
    assert [(each.shown, each.folder, each.local_path) for each in places_of("extract", one)] == [
        ("--videos /v/*/a.mp4", None, "/v"),
        ("--store /s", "/s", None),
    ]
    words = ["--store", "/s", "--store", "s3://bb/s", "--labels", "/l.csv", "--out", "/o"]
    one = options_of(train, "train", words)
    assert {(each.shown, each.folder, each.local_path) for each in places_of("train", one)} == {
        ("--out /o", "/o", None), ("--store /s", None, "/s"), ("--store s3://bb/s", None, None), ("--labels /l.csv", None, "/l.csv"),
    }  # fmt: skip
    assert tracks(one)
    assert not tracks(options_of(train, "train", [*words, "--no-tracking"]))
    one = options_of(export, "export", ["--store", "/s", "--out", "s3://bb/x/frames.csv"])
    assert next(places_of("export", one)).folder == "s3://bb/x"
    one = options_of(synth, "synth", ["--out", "/o", "--videos", "4"])
    assert [each.shown for each in places_of("synth", one)] == ["--out /o"]


@pytest.fixture
def cluster_of(monkeypatch):
    """Make the check before a job see so many nodes, which answer as given."""

    def make(count: int, answers: list[Answer] | None = None) -> None:
        @contextlib.contextmanager
        def session(address, **_):
            yield [Node(name=f"h{n}", cpus=2) for n in range(count)]

        def asked(ask, needed, markers, paths, *, limit_s):
            mine = look(needed, markers, paths)
            return [Answer(node=f"h{n}", value=mine) for n in range(count - len(answers or []))] + (answers or [])

        monkeypatch.setattr(submitted, "ray_session", session)
        monkeypatch.setattr(health, "on_every_node", asked)
        monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(runtime_env={}))

    return make


def checked(*words: str) -> str:
    """What the check says of an extraction; empty where it lets it pass."""
    told = ""
    try:
        submitted.check_cluster("extract", options_of(extract, "extract", [*words, "--mma", "random:0:tiny"]))
    except InputError as error:
        told = str(error)
    assert "\n" not in told
    return told


GOOD = {"versions": {"torch": "1"}, "unmet": [], "unseen": {}, "prints": {}}


def test_a_folder_that_all_nodes_see_is_good_and_is_left_as_it_was(cluster_of, tmp_path):
    (tmp_path / "videos").mkdir()
    cluster_of(3)
    words = ["--videos", str(tmp_path / "videos"), "--store", str(tmp_path / "store")]
    assert checked(*words) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["videos"]


def test_a_folder_that_one_node_does_not_see_is_refused(cluster_of, tmp_path):
    words = ["--videos", "s3://bb/v", "--store", str(tmp_path / "store")]
    unseen = {str(tmp_path / "store"): "what the head wrote is not there: no shared folder"}
    cluster_of(2, [Answer(node="far", value={**GOOD, "unseen": unseen})])
    told = checked(*words)
    assert f"--store {tmp_path / 'store'}: node far does not see it" in told
    assert "s3://" in told


@pytest.mark.parametrize(("seen", "words"), [(None, "sees nothing"), (["other.mp4"], "sees something else")])
def test_videos_that_one_node_does_not_see_are_refused(cluster_of, tmp_path, seen, words):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"")
    cluster_of(2, [Answer(node="far", value={**GOOD, "prints": {str(tmp_path / "v"): seen}})])
    told = checked("--videos", str(tmp_path / "v"), "--store", str(tmp_path / "v" / "store"))
    assert told.startswith(f"--videos {tmp_path / 'v'}: node far {words} there")


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Answer(node="far", value={**GOOD, "unmet": ["torch is 2.1 (needed: >=2.9)"]}), "torch is 2.1"),
        (Answer(node="far", error="no answer within 300 s"), "no answer within 300 s"),
    ],
)
def test_a_node_that_cannot_run_the_project_is_refused(cluster_of, answer, told):
    cluster_of(2, [answer])
    words = ["--videos", "s3://bb/v", "--store", "/tmp"]
    assert told in checked(*words)
    assert "node far" in checked(*words)


def test_one_node_needs_the_packages_and_nothing_else(cluster_of, monkeypatch):
    cluster_of(1)
    words = ["--videos", "/none", "--store", "/none"]
    assert checked(*words) == ""
    monkeypatch.setattr(submitted, "requirements", lambda: ["torch>=99"])
    assert "--packages pinned" in checked(*words)


def test_a_place_that_cannot_be_written_is_refused(cluster_of, tmp_path):
    (tmp_path / "file").write_text("")
    cluster_of(2)
    assert f"cannot write to {tmp_path}/file/store" in checked(
        "--videos", "s3://bb/v", "--store", f"{tmp_path}/file/store"
    )


@pytest.mark.parametrize(
    ("uri", "nodes", "told"),
    [("", 1, "not set on the cluster"), ("sqlite:////shared/m.db", 1, ""), ("sqlite:////shared/m.db", 2, "2 nodes"),
     ("http://10.0.0.1:5000", 2, "")],
)  # fmt: skip
def test_tracking_on_the_cluster(cluster_of, monkeypatch, tmp_path, uri, nodes, told):
    cluster_of(nodes)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    words = ["--store", str(tmp_path), "--labels", str(tmp_path), "--out", str(tmp_path / "o")]
    if told:
        with pytest.raises(InputError, match=told):
            submitted.check_cluster("train", options_of(train, "train", words))
    else:
        submitted.check_cluster("train", options_of(train, "train", words))
    submitted.check_cluster("train", options_of(train, "train", [*words, "--no-tracking"]))


def test_a_refused_job_says_one_line_and_its_result(capfd, cluster_of, monkeypatch):
    cluster_of(1)
    monkeypatch.setattr(submitted, "requirements", lambda: ["torch>=99"])
    assert submitted.main(["m1", *EXTRACT]) == 2
    out, err = capfd.readouterr()
    assert out == result_line("m1", 2, None)
    assert len(err.strip().splitlines()) == 1


def test_a_job_s_own_end_is_its_result(capfd, cluster_of, tmp_path):
    cluster_of(1)
    openface_files.write(tmp_path / "csv" / "00.csv")
    (tmp_path / "csv" / "01.csv").write_text("no,openface\n1,2\n")
    words = ["import-openface", "--csvs", str(tmp_path / "csv"), "--store", str(tmp_path / "s")]
    assert submitted.main(["m1", *words]) == 3
    result = json.loads(capfd.readouterr().out.partition("m1 ")[2])
    assert (result["exit_code"], result["summary"]["ok"], result["summary"]["failed"]) == (3, 1, 1)


# --- what a node tells ---


def test_a_node_reads_markers_and_tells_what_it_lacks(tmp_path, s3_bucket):
    uris = [str(tmp_path / "here"), f"s3://{s3_bucket}/there"]
    with Markers(uris) as markers:
        assert look([], markers.asked, [])["unseen"] == {}
        elsewhere = [(str(tmp_path / "elsewhere"), markers.name, markers.content)]
        assert "no shared folder" in look([], elsewhere, [])["unseen"][elsewhere[0][0]]
        other = [(uri, name, "another's") for uri, name, _ in markers.asked]
        assert list(look([], other, [])["unseen"].values()) == ["another file stands there"] * 2
    assert not (tmp_path / "here").exists()
    assert look(["no-such>=1"], [], [])["unmet"] == ["no-such is missing (needed: >=1)"]


def test_markers_leave_a_folder_that_others_have_come_into(tmp_path):
    with Markers([str(tmp_path / "made")]):
        (tmp_path / "made" / "theirs").write_text("")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["theirs"]
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="cannot write"),
        Markers([str(tmp_path / "new"), str(tmp_path / "file" / "x")]),
    ):
        raise AssertionError
    assert not (tmp_path / "new").exists()


def test_footprints(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    assert footprint(str(tmp_path)) == ["a"]
    assert footprint(str(tmp_path / "a")) == [3]
    assert footprint(str(tmp_path / "b")) is None
    same = [([3], [3]), (["a", "b"], ["b", "c"]), (None, None), ([], [])]
    other = [([3], [4]), (["a"], ["b"]), (["a"], None), ([], None), (["a"], [])]
    assert [same_place(*pair) for pair in same + other] == [True] * 4 + [False] * 5


def test_every_node_is_asked_and_none_is_waited_for_too_long(ray_cluster):
    (answer,) = health.on_every_node(health.installed, ["ray"], limit_s=60)
    assert answer.value["ray"].startswith("2.60")
    (answer,) = health.on_every_node(lambda: 1 / 0, limit_s=60)
    assert (answer.value, answer.error) == (None, "division by zero")
    started_s = time.monotonic()
    (answer,) = health.on_every_node(lambda: __import__("time").sleep(60), limit_s=2)
    assert "no answer within 2 s" in answer.error
    assert time.monotonic() - started_s < 20
    assert health.on_every_node(lambda: 1, limit_s=5, gpus=1) == []


# --- a real head ---

CLUSTER_SECRET = "Zq7-the-cluster-s-own-secret"


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Head:
    tracking = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/mlflow.db"
    variables = {
        "AWS_SECRET_ACCESS_KEY": CLUSTER_SECRET,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7CLUSTER",
        "MLFLOW_TRACKING_URI": tracking,
    }
    with ray_head(variables) as running:
        yield running


class Ended:
    """A `submit` that has ended."""

    def __init__(self, process: subprocess.Popen, limit_s: float = 240):
        out, self.told = process.communicate(timeout=limit_s)
        self.code, self.summary = process.returncode, json.loads(out) if out else None


def start(head: Head, *arguments: str, token: str | None = None, **variables: str) -> subprocess.Popen:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MLFLOW_"))
    }
    environment |= {"RAY_AUTH_TOKEN": head.token if token is None else token, **variables}
    # RAY_ADDRESS would overrule the address in Ray's own client.
    environment["RAY_ADDRESS"] = "http://127.0.0.1:1"
    command = [sys.executable, "-m", "jobs", arguments[0], "--address", head.url, *arguments[1:]]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def details_of(head: Head, submission_id: str) -> str:
    """Everything that the job server tells of a job, in one text."""
    texts = []
    for path in (f"/api/jobs/{submission_id}", f"/api/jobs/{submission_id}/logs", "/api/jobs/"):
        request = urllib.request.Request(head.url + path, headers={"Authorization": f"Bearer {head.token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            texts.append(answer.read().decode())
    return "\n".join(texts)


def test_a_job_runs_there_and_ends_here_without_a_secret_in_sight(head, tmp_path):
    planted = {
        "AWS_SECRET_ACCESS_KEY": f"{PLANTED}-1",
        "HF_TOKEN": f"{PLANTED}-2",
        "MLFLOW_TRACKING_PASSWORD": f"{PLANTED}-3",
    }
    words = ["submit", "--submission-id", "made-1", "--env", "COLOUR=red", "--"]
    words += ["synth", "--out", str(tmp_path / "corpus"), "--videos", "4", "--no-video"]
    ended = Ended(start(head, *words, AWS_DEFAULT_REGION="eu-north-1", **planted))
    assert ended.code == 0, ended.told
    assert (ended.summary["job"], ended.summary["videos"]) == ("synth", 4)
    assert "4 clips of" in ended.told
    assert " kB (cluster, jobs, mma, rnn, pyproject.toml)" in ended.told
    assert (tmp_path / "corpus" / "data_info.csv").exists()
    details = details_of(head, "made-1")
    assert "eu-north-1" in details
    assert "COLOUR" in details
    seen = ended.told + json.dumps(ended.summary) + details
    corpus = "".join(path.read_bytes().decode("latin1") for path in (tmp_path / "corpus").rglob("*") if path.is_file())
    assert not [secret for secret in (PLANTED, CLUSTER_SECRET, head.token) if secret in seen + corpus]
    assert not [secret for secret in (PLANTED, CLUSTER_SECRET) if secret in head.logs()]
    assert "made-1" in head.logs()
    # The same id once more, and others' tokens: one line each, nothing sent.
    for token, told in (
        (None, "--submission-id made-1 is taken"),
        ("f" * 64, "refuses the token"),
        ("", "wants its token"),
    ):
        home = {"HOME": str(tmp_path)}
        ended = Ended(start(head, *words, token=token, **home))
        assert (ended.code, ended.summary) == (2, None), ended.told
        lines = [line for line in ended.told.strip().splitlines() if line.startswith("mma-mrnnet: ")]
        assert len(lines) == 1, ended.told
        assert told in lines[0]
        assert "Traceback" not in ended.told


def test_a_job_s_refusal_and_too_many_failures_come_back_as_they_are(head, tmp_path):
    openface_files.write(tmp_path / "csv" / "00.csv")
    (tmp_path / "csv" / "01.csv").write_text("no,openface\n1,2\n")
    words = ["submit", "--", "import-openface", "--csvs", str(tmp_path / "csv"), "--store", str(tmp_path / "s")]
    running = [
        start(head, *words),
        start(head, *words, "--csvs", str(tmp_path / "none"), "--store", str(tmp_path / "t")),
    ]
    many, wrong = (Ended(each) for each in running)
    assert (many.code, many.summary["failed"]) == (3, 1), many.told
    assert (wrong.code, wrong.summary) == (2, None)
    assert f"--csvs: {tmp_path}/none: No such file" in wrong.told


def test_a_job_is_left_alone_by_ctrl_c_and_stopped_by_stop(head, tmp_path):
    words = ["submit", "--submission-id", "long-1", "--", "synth", "--out", str(tmp_path / "c"), "--videos", "3000"]
    following = start(head, *words)
    wait_for_log(head, "long-1", "3000 clips")
    following.send_signal(signal.SIGINT)
    ended = Ended(following)
    assert (ended.code, ended.summary) == (130, None), ended.told
    assert "--follow long-1" in ended.told
    following = start(head, "submit", "--follow", "long-1")
    stopped = Ended(start(head, "submit", "--stop", "long-1"))
    assert (stopped.code, stopped.summary["status"]) == (0, "STOPPED"), stopped.told
    ended = Ended(following)
    assert ended.code == 143, ended.told
    assert "3000 clips" in ended.told


def wait_for_log(head: Head, submission_id: str, words: str, limit_s: float = 120) -> None:
    until_s = time.monotonic() + limit_s
    while True:
        with contextlib.suppress(urllib.error.HTTPError):  # not submitted yet
            if words in details_of(head, submission_id):
                return
        assert time.monotonic() < until_s
        time.sleep(0.5)


@pytest.mark.slow
def test_a_doctor_goes_through_the_job_server(head, tmp_path):
    ended = Ended(start(head, "doctor", "--store", str(tmp_path / "s"), "--timeout-s", "90"))
    found = {each["check"]: each["state"] for each in ended.summary["checks"]}
    assert ended.code == 0, ended.told
    assert set(found) >= {"job server", "token", "cluster", "versions", "decoders", "gpus", "storage", "tracking"}
    assert set(found.values()) == {"ok"}
    wrong = Ended(start(head, "doctor", token="f" * 64))
    assert (wrong.code, wrong.summary["ok"]) == (1, False)
    assert "RAY_AUTH_TOKEN" in wrong.told


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_a_driver_with_a_wrong_token_gets_one_line(head, tmp_path, mode):
    (tmp_path / "v.csv").write_text("video_id,uri\na,/nowhere/a.mp4\n")
    words = ["extract", "--videos", str(tmp_path / "v.csv"), "--store", str(tmp_path / "s"), "--mma", "random:0:tiny"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": "f" * 64}
    command = [sys.executable, "-m", "jobs", *words, "--address", head.address]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 2, ran.stderr
    assert f"--address {head.address}" in ran.stderr.strip().splitlines()[-1]
    assert "token" in ran.stderr.strip().splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert not list((tmp_path / "s").glob("*.parquet"))


@pytest.mark.slow
def test_a_training_there_shows_no_secret_in_its_tracking(head, tmp_path):
    corpus = tmp_path / "corpus"
    assert main(["synth", "--out", str(corpus), "--videos", "60", "--no-video"]) == 0
    words = [
        "train",
        "--store",
        str(corpus / "store"),
        "--labels",
        str(corpus),
        "--out",
        str(tmp_path / "m"),
        "--fit.epochs",
        "2",
    ]
    ended = Ended(start(head, "submit", "--submission-id", "train-1", "--", *words, HF_TOKEN=PLANTED), limit_s=400)
    assert ended.code == 0, ended.told
    tracked = Path(head_tracking(ended.told)).parent
    made = [path for folder in (tracked, tmp_path / "m") for path in folder.rglob("*") if path.is_file()]
    seen = "".join(path.read_bytes().decode("latin1") for path in made) + ended.told + details_of(head, "train-1")
    assert "mlflow.db" in {path.name for path in made}
    assert not [secret for secret in (PLANTED, CLUSTER_SECRET) if secret in seen + head.logs()]


def head_tracking(told: str) -> str:
    """The sqlite file that a training named."""
    line = next(line for line in told.splitlines() if line.startswith("MLflow: run"))
    return line.rpartition("sqlite:///")[2].strip()
