"""`doctor`: what works is told as working, each planted fault is found with its mend, and nothing is waited for long."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from s3_server import faulty_proxy

from cluster.health import Answer
from cluster.storage import Folder
from jobs import doctor, doctor_checks, node_checks
from jobs.cli import main
from jobs.doctor import _Check
from jobs.doctor_checks import (
    check_storage,
    check_tracking,
    findings_of_gpus,
    findings_of_nodes,
    findings_of_place,
)

PASSWORD = "Zq7-planted-and-never-shown"


@pytest.fixture
def found():
    """What a check tells."""
    return []


@pytest.fixture
def no_tracking(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


# --- input ---


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--store", "gs://b/s"], "--store: gs://b/s"),
        (["--out", "s3://"], "--out: s3://"),
        (["--timeout-s", "0"], "--timeout-s 0"),
        (["--adress", "auto"], "--adress"),
        (["--address", "http://me:pw@h:8265"], "no user info"),
        (["--address", "http://h:8265", "--store", "descriptors"], "--store descriptors is a relative path"),
    ],
)
def test_wrong_input_is_one_line(capfd, arguments, told):
    assert main(["doctor", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.strip().splitlines())) == ("", 1), err
    assert told in err


# --- nodes ---

VERSIONS = {"python": "3.11.1", "ray": "2.60.0", "torch": "2.13.0"}
WELL = {"versions": VERSIONS, "unmet": [], "unseen": {}, "prints": {}, "decoders": {"decord": None, "pyav": None}}


def states(findings) -> list[tuple[str, str, str]]:
    return [(each.check, each.state, each.where) for each in findings]


def test_nodes_that_are_well_are_told_so():
    findings = list(findings_of_nodes([Answer(node="h1", value=WELL), Answer(node="h2", value=WELL)]))
    assert states(findings) == [("versions", "ok", ""), ("decoders", "ok", "h1"), ("decoders", "ok", "h2")]
    assert "torch 2.13.0" in findings[0].told


@pytest.mark.parametrize(
    ("answer", "check", "state", "told"),
    [
        (Answer(node="h2", error="no answer within 60 s"), "nodes", "fail", "no answer within 60 s"),
        (Answer(node="h2", value={**WELL, "unmet": ["av is missing (needed: >=14)"]}), "versions", "fail", "av is missing"),
        (
            Answer(node="h2", value={**WELL, "versions": {**VERSIONS, "torch": "2.9.0"}}),
            "versions", "fail", "torch 2.13.0 on h1, 2.9.0 on h2",
        ),
        (
            Answer(node="h2", value={**WELL, "versions": {"python": "3.11.1", "ray": "2.60.0"}}),
            "versions", "fail", "torch 2.13.0 on h1, missing on h2",
        ),
        (
            Answer(node="h2", value={**WELL, "decoders": {"decord": None, "pyav": "decode: no frames"}}),
            "decoders", "fail", "pyav: decode: no frames",
        ),
        (
            Answer(node="h2", value={**WELL, "decoders": {"decord": "not installed (aarch64)", "pyav": None}}),
            "decoders", "warn", "not installed (aarch64)",
        ),
    ],
)  # fmt: skip
def test_a_node_that_is_not_well_is_named_with_the_mend(answer, check, state, told):
    findings = list(findings_of_nodes([Answer(node="h1", value=WELL), answer]))
    (wrong,) = [each for each in findings if each.state != "ok"]
    assert (wrong.check, wrong.state) == (check, state)
    assert told in wrong.told
    assert wrong.mend


def test_a_folder_that_one_node_does_not_see():
    unseen = {**WELL, "unseen": {"/s": "what the head wrote is not there: no shared folder"}}
    answers = [Answer(node="h1", value=WELL), Answer(node="h2", value=unseen), Answer(node="h3", error="no answer")]
    findings = list(findings_of_place(answers, "/s"))
    assert states(findings) == [("storage", "fail", "h2"), ("storage", "fail", "h3")]
    assert "s3://" in findings[0].mend
    assert states(findings_of_place(answers[:1], "/s")) == [("storage", "ok", "/s")]


def test_gpus():
    good = {"error": None, "told": "H100, 80 GiB"}
    answers = [
        Answer(node="h1", value=good),
        Answer(node="h2", value={"error": "torch sees none"}),
        Answer(node="h3", error="no answer"),
    ]
    findings = list(findings_of_gpus(answers))
    assert [each.state for each in findings] == ["ok", "fail", "fail"]
    assert "nvidia-smi" in findings[1].mend


def test_a_gpu_that_torch_does_not_see(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "sees none" in node_checks.multiply()["error"]


# --- decoders ---


def test_both_decoders_read_the_made_clip():
    assert node_checks.decoders(node_checks.made_clip()) == {"decord": None, "pyav": None}


def test_a_decord_that_cannot_be_loaded_is_told(monkeypatch, tmp_path):
    """It is there, and its import fails, as where a library of the system lacks."""
    (tmp_path / "decord").mkdir()
    (tmp_path / "decord/__init__.py").write_text("raise OSError('libsomething.so: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = node_checks.decoders(node_checks.made_clip())
    assert told["pyav"] is None
    assert "DecordRefused" in told["decord"]


def test_decoders_that_fail_or_lack_are_told_with_their_words(monkeypatch):
    told = node_checks.decoders(b"\0" * 1000)
    assert all(told.values())
    monkeypatch.setattr(node_checks.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in node_checks.decoders(b"")["decord"]


# --- storage ---


@pytest.mark.parametrize("remote", [False, True])
def test_storage_that_works_is_left_as_it_was(found, tmp_path, s3_bucket, remote):
    uri = f"s3://{s3_bucket}/deep/er" if remote else str(tmp_path / "new")
    check_storage(found.append, uri=uri)
    assert states(found) == [("storage", "ok", uri)]
    assert not (tmp_path / "new").exists()
    assert Folder(uri).list() == []


def test_a_folder_that_was_there_stays(found, tmp_path):
    check_storage(found.append, uri=str(tmp_path))
    assert found[0].state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_storage_that_cannot_be_written(found, tmp_path, s3_bucket, monkeypatch):
    (tmp_path / "file").write_text("")
    check_storage(found.append, uri=str(tmp_path / "file" / "x"))
    check_storage(found.append, uri="s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with faulty_proxy(os.environ["AWS_ENDPOINT_URL"], kinds=("503",)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        check_storage(found.append, uri=f"s3://{s3_bucket}/x")
    assert [each.state for each in found] == ["fail"] * 3
    assert "NoSuchBucket" in found[1].told
    assert "SlowDown" in found[2].told
    assert all("AWS_" in each.mend for each in found)


@pytest.mark.parametrize(
    ("method", "does", "told"),
    [
        ("write_new", lambda self, name, data: self.write(name, data), "If-None-Match"),
        ("read", lambda self, name: b"stale", "not what is read"),
        ("replace_if", lambda self, name, data, version: self.write(name, data), "If-Match"),
        ("replace_if", lambda self, name, data, version: None, "If-Match"),
        ("delete", lambda self, names: None, "still there"),
    ],
)
def test_a_store_that_ignores_conditions_is_found(found, s3_bucket, monkeypatch, method, does, told):
    monkeypatch.setattr(Folder, method, does)
    check_storage(found.append, uri=f"s3://{s3_bucket}/x")
    assert found[0].state == "fail"
    assert told in found[0].told


# --- tracking ---


class _MLflow(BaseHTTPRequestHandler):
    """As much of a server as doctor asks for."""

    version, status = "3.0.0", 200

    def do_GET(self):
        body, code = '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no"}', 404
        if self.path == "/version":
            body, code = self.version, 200
        elif self.status != 200:
            body, code = "refused", self.status
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def mlflow_server(monkeypatch, no_tracking):
    handler = type("Handler", (_MLflow,), {})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_mlflow_server_and_its_version(found, mlflow_server):
    check_tracking(found.append)
    mlflow_server.version = "2.9.1"
    check_tracking(found.append)
    mlflow_server.status = 401
    check_tracking(found.append)
    assert [each.state for each in found] == ["ok", "warn", "fail"]
    assert "MLflow 3.0.0 answers" in found[0].told
    assert "mlflow==2.9.1" in found[1].mend
    assert "MLFLOW_TRACKING_USERNAME" in found[2].mend


def test_an_mlflow_server_that_is_not_there_is_told_without_its_password(found, monkeypatch, no_tracking):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@127.0.0.1:{port}")
    check_tracking(found.append)
    assert found[0].state == "fail"
    assert "MLFLOW_TRACKING_URI" in found[0].mend
    assert PASSWORD not in repr(found)


def test_a_submitted_job_has_no_folder_for_a_database(found, monkeypatch, no_tracking):
    monkeypatch.setattr("cluster.package.is_sent", lambda: True)
    check_tracking(found.append)
    assert found[0].state == "warn"
    assert "--no-tracking" in found[0].mend


def test_a_database_file(found, monkeypatch, tmp_path, no_tracking):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    check_tracking(found.append)
    assert (found[0].state, list(tmp_path.iterdir())) == ("ok", [])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none/mlflow.db")
    check_tracking(found.append)
    assert found[1].state == "fail"


# --- no check holds doctor up ---


def test_a_check_without_an_end_is_ended(tmp_path):
    started_s = time.monotonic()
    check = _Check(
        tmp_path / "slow", "cluster", {"address": None, "uris": [], "tracking": False, "limit_s": 60}, limit_s=0.1
    )
    (finding,) = check.findings()
    assert (finding.check, finding.state) == ("cluster", "fail")
    assert "no end within" in finding.told
    assert check.process.poll() is not None
    assert time.monotonic() - started_s < 10


def test_a_check_that_breaks_is_a_finding_with_its_last_words(tmp_path):
    (finding,) = _Check(tmp_path / "x", "nonsense", {}, limit_s=60).findings()
    assert finding.state == "fail"
    assert "KeyError: 'nonsense'" in finding.told


def test_what_a_killed_check_has_found_is_kept(tmp_path):
    check = _Check(tmp_path / "x", "nonsense", {}, limit_s=60)
    check.process.wait()
    whole = json.dumps({"check": "cluster", "state": "ok", "told": "1 node", "where": "", "mend": ""})
    (tmp_path / "x").write_text(f'{whole}\n{{"check": "gpu')
    assert [each.state for each in check.findings()] == ["ok", "fail"]


# --- all of it ---


def test_a_working_cluster(job, tmp_path, monkeypatch, no_tracking):
    import ray

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    address = ray.get_runtime_context().gcs_address
    ran = job("doctor", "--address", address, "--store", tmp_path / "s", "--out", tmp_path / "o")
    assert ran.code == 0, ran.told
    found = {each["check"]: each["state"] for each in ran.summary["checks"]}
    assert found == dict.fromkeys(("cluster", "versions", "decoders", "gpus", "storage", "tracking"), "ok")
    assert (ran.summary["ok"], ran.summary["address"]) == (True, address)
    assert "ok    decoders" in ran.told
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_a_cluster_that_is_not_there_fails_and_all_else_is_told(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started_s = time.monotonic()
    code = main(["doctor", "--address", address, "--store", str(tmp_path / "file" / "x"), "--no-tracking"])
    out, err = capfd.readouterr()
    assert code == 1
    assert time.monotonic() - started_s < 30
    checks = json.loads(out)["checks"]
    assert [(each["check"], each["state"]) for each in checks] == [("cluster", "fail"), ("storage", "fail")]
    assert err.count("-> ") == 2
    assert "FAIL  cluster" in err


def test_a_job_server_that_is_not_there_is_a_finding(capfd):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert main(["doctor", "--address", address]) == 1
    summary = json.loads(capfd.readouterr().out)
    assert (summary["ok"], summary["failed"]) == (False, 1)
    assert summary["checks"][0]["check"] == "job server"


def test_findings_are_read_by_people(capfd):
    doctor.tell(doctor_checks.Finding(check="gpus", state="warn", told="t", where="h1", mend="m"))
    assert capfd.readouterr().err == "look  gpus        h1: t\n" + " " * 18 + "-> m\n"
