"""MLflow from the driver: nothing doubled, nothing lost, errors of one line, no password in any of them."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cluster import tracking
from cluster.tracking import TrackingError, refuse_local_store, resolve_uri, start_run

HISTORY = [{"epoch": n, "loss": 1 / n, "ccc": n / 10} for n in range(1, 7)]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in (*tracking._DEFAULTS, "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that monkeypatch takes back what the code sets
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def start(uri):
    def open_run(run_id=None, **options):
        defaults = {"experiment": "made", "run_name": "r", "params": {}, "tags": {}, "tracking_uri": uri}
        return start_run(**{**defaults, **options}, run_id=run_id)

    return open_run


@pytest.fixture
def client(uri):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _history(client, tracker, name):
    return [(point.step, point.value) for point in client.get_metric_history(tracker.run_id, name)]


def _refused(**options) -> str:
    with pytest.raises(TrackingError) as caught:
        start_run(**{"experiment": "e", "run_name": "r", "params": {}, "tags": {}, **options})
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # a traceback would show the password
    return str(caught.value)


def test_a_run_holds_what_it_was_started_with(start, client, uri, tmp_path, capfd):
    tracker = start(run_name="first", params={"lr": 0.1, "long": "x" * 9000, "none": None}, tags={"job": "train"})
    (tmp_path / "report.html").write_text("<p>")
    tracker.log_artifact(tmp_path / "report.html")
    tracker.log_metrics({"mean_pearson": 0.4, "floor": float("nan")})
    tracker.set_tags({"job": "tune", "n": "2"})
    tracker.finish("FINISHED")
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == "first"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1", "long": "x" * 6000, "none": "None"}
    assert run.data.metrics == {"mean_pearson": 0.4}
    assert {key: run.data.tags[key] for key in ("job", "n")} == {"job": "tune", "n": "2"}
    assert client.get_experiment(run.info.experiment_id).name == "made"
    stored = Path(uri.removeprefix("sqlite:///")).parent / "mlruns" / tracker.run_id / "artifacts" / "report.html"
    assert stored.read_text() == "<p>"
    assert not Path("mlruns").exists()
    assert capfd.readouterr() == ("", "")


def test_epochs_are_logged_once_over_calls_restarts_and_copies(start, client):
    tracker = start(params={"lr": 1})
    tracker.log_epochs(HISTORY[:2])
    tracker.log_epochs(HISTORY[:3])
    copy = pickle.loads(pickle.dumps(tracker))
    assert copy == tracker
    copy.log_epochs(HISTORY[1:4])
    tracker.finish("KILLED")
    again = start(tracker.run_id, params={"lr": 2, "other": 3}, tags={"resumed": "yes"})
    assert again.run_id == tracker.run_id
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    again.log_epochs(HISTORY)
    again.finish("FINISHED")
    assert _history(client, again, "loss") == [(n, 1 / n) for n in range(1, 7)]
    assert _history(client, again, "epoch") == [(n, n) for n in range(1, 7)]
    run = client.get_run(again.run_id)
    assert (run.info.status, run.data.params, run.data.tags["resumed"]) == ("FINISHED", {"lr": "1"}, "yes")


def test_a_gap_is_filled_and_a_repeated_epoch_counts_once(start, client):
    tracker = start()
    tracker.log_epochs([HISTORY[0], HISTORY[4]])
    tracker.log_epochs([*HISTORY[:3], {"epoch": 3, "loss": 9.0}])
    assert sorted(_history(client, tracker, "loss")) == [(1, 1), (2, 0.5), (3, 9), (5, 0.2)]


def test_mlflow_is_asked_once_what_it_has(start, monkeypatch):
    tracker = start()
    tracker.log_epochs(HISTORY[:1])
    monkeypatch.setattr(tracker._mlflow(), "get_metric_history", lambda *_: pytest.fail("asked again"))
    tracker.log_epochs(HISTORY[:2])


def test_non_finite_values_are_left_out(start, client):
    tracker = start()
    tracker.log_epochs([{"epoch": 0, "loss": float("nan"), "ccc": float("-inf"), "f1": 0.5}])
    assert client.get_run(tracker.run_id).data.metrics == {"epoch": 0, "f1": 0.5}


def test_after_a_failure_the_next_call_makes_good(start, client, monkeypatch):
    """Also where the server had taken what it did not confirm."""
    tracker = start()
    real = tracker._mlflow().log_batch

    def taken_but_unconfirmed(*arguments, **options):
        real(*arguments, **options)
        raise OSError("timed out")

    monkeypatch.setattr(tracker._mlflow(), "log_batch", taken_but_unconfirmed)
    with pytest.raises(TrackingError, match="timed out"):
        tracker.log_epochs(HISTORY[:2])
    monkeypatch.setattr(tracker._mlflow(), "log_batch", real)
    tracker.log_epochs(HISTORY[:3])
    assert _history(client, tracker, "loss") == [(n, 1 / n) for n in (1, 2, 3)]


def test_batches_keep_to_the_limits_and_epochs_whole(start, client, monkeypatch):
    tracker = start(params={f"p{n}": n for n in range(230)}, tags={f"t{n}": "x" * 9000 for n in range(130)})
    sent = []
    real = tracker._mlflow().log_batch
    monkeypatch.setattr(
        tracker._mlflow(), "log_batch", lambda run, metrics: (sent.append(metrics), real(run, metrics=metrics))
    )
    tracker.log_epochs([{"epoch": e, **{f"m{n}": n for n in range(399)}} for e in range(3)])
    assert [len(each) for each in sent] == [800, 400]
    sent.clear()
    tracker.log_epochs([{"epoch": 3, **{f"m{n}": n for n in range(1200)}}])
    assert [len(each) for each in sent] == [1000, 201]
    assert sent[1][-1].key == "epoch"
    run = client.get_run(tracker.run_id)
    assert len(run.data.params) == 230
    assert len(run.data.tags["t129"]) == 8000
    assert _history(client, tracker, "m398") == [(e, 398) for e in range(4)]


def test_a_run_that_is_not_there_or_deleted_is_refused(start, client, uri):
    assert "none" in _refused(run_id="none", tracking_uri=uri)
    tracker = start()
    client.delete_run(tracker.run_id)
    assert "restore" in _refused(run_id=tracker.run_id, tracking_uri=uri)


def test_a_deleted_experiment_is_refused_with_the_mend(start, client, uri):
    tracker = start(experiment="gone")
    number = client.get_run(tracker.run_id).info.experiment_id
    client.delete_experiment(number)
    assert f"restore --experiment-id {number}" in _refused(experiment="gone", tracking_uri=uri)


def test_a_start_that_fails_leaves_no_run_that_looks_alive(uri, client):
    message = _refused(experiment="half", params={"bad\nname": 1}, tracking_uri=uri)
    assert "Invalid value" in message
    runs = client.search_runs([client.get_experiment_by_name("half").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]


@pytest.mark.parametrize("form", ["file://{}", "{}"])
def test_a_file_store_is_refused_with_the_mend(tmp_path, form):
    assert "sqlite:////folder/mlflow.db" in _refused(tracking_uri=form.format(tmp_path / "runs"))
    assert not list(tmp_path.iterdir())


def test_an_sqlite_file_that_cannot_be_is_refused_at_once(tmp_path):
    started = time.monotonic()
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "mlflow.db"):
        assert str(path) in _refused(tracking_uri=f"sqlite:///{path}")
    assert time.monotonic() - started < 5


def test_a_dead_server_is_told_in_one_line_and_without_the_password(capfd):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # not listening: connections are refused
        started = time.monotonic()
        message = _refused(tracking_uri=f"http://user:hush%21hush@127.0.0.1:{reserved.getsockname()[1]}")
    assert time.monotonic() - started < 20
    assert "hush" not in message
    assert "user" not in message
    assert "is the server up" in message
    assert capfd.readouterr() == ("", "")


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    """By the user's own time-out here; without one it is 10 s, twice."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        message = _refused(tracking_uri=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert 1.5 < time.monotonic() - started < 15
    assert "is the server up" in message
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


def test_a_tracker_does_not_show_its_password(start, uri):
    tracker = tracking.Tracker("http://user:hush@host:5000", "1")
    assert "hush" not in repr(tracker)
    assert tracker.shown_uri == "http://***@host:5000"
    assert "hush" not in tracking._without_secrets("postgresql://me:hush@db/x and hush", "postgresql://me:hush@db/x")


def test_the_uri_is_the_argument_else_the_environment_else_a_file_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    assert resolve_uri(None) == "http://env:5000"
    assert resolve_uri("sqlite:///own/x.db?a=b") == f"sqlite:///{tmp_path}/own/x.db?a=b"
    assert resolve_uri("sqlite:////own/x.db") == "sqlite:////own/x.db"


@pytest.mark.parametrize("local", [None, "sqlite:////d/mlflow.db", "file:///d", "/d/mlruns", "mlruns"])
def test_a_local_store_is_refused_on_several_nodes_alone(local):
    refuse_local_store(local, 1)
    with pytest.raises(TrackingError, match=r"3 nodes.*MLFLOW_TRACKING_URI"):
        refuse_local_store(local, 3)


@pytest.mark.parametrize(
    "shared", ["http://host:5000", "https://h", "postgresql://u:p@h/d", "databricks", "databricks://p"]
)
def test_a_shared_store_is_welcome_on_several_nodes(shared):
    refuse_local_store(shared, 3)


def test_mlflow_is_imported_by_a_run_alone():
    code = "import sys, cluster.tracking; cluster.tracking.refuse_local_store(None, 1); print('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.slow
def test_a_real_server_takes_a_run_over_a_restart(tmp_path, capfd):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        str(tmp_path / "art"),
    ]
    uri = f"http://127.0.0.1:{port}"
    log = (tmp_path / "server.log").open("wb")
    server = subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        options = {"experiment": "made", "run_name": "r", "params": {"lr": 1}, "tags": {}, "tracking_uri": uri}
        tracker = start_run(**options)
        tracker.log_epochs(HISTORY[:3])
        tracker.finish("KILLED")
        tracker = start_run(**options, run_id=tracker.run_id)
        tracker.log_epochs(HISTORY)
        (tmp_path / "report.html").write_text("<p>")
        tracker.log_artifact(tmp_path / "report.html")
        tracker.finish("FINISHED")
        client = tracker._mlflow()
        assert sorted(_history(client, tracker, "loss")) == sorted((n, 1 / n) for n in range(1, 7))
        assert [each.path for each in client.list_artifacts(tracker.run_id)] == ["report.html"]
        assert client.get_run(tracker.run_id).info.status == "FINISHED"
        assert capfd.readouterr().out == ""
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)
        log.close()
    with pytest.raises(TrackingError, match="is the server up"):
        tracker.log_epochs([*HISTORY, {"epoch": 7}])
