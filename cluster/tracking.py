"""MLflow from the driver's side: one run a job, whose epochs are logged once over all restarts and resumes.

Workers on other nodes would write their own disk's sqlite, so that they never log (DESIGN.md, "Decisions"). Everything
goes through `MlflowClient`: no fluent global state, no autologging. MLflow is imported when a run starts, since that
takes seconds. Passwords in a tracking URI never reach a message: MLflow's own errors show them.
"""

from __future__ import annotations

import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from cluster.uri import display

MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000
PARAMS_PER_BATCH = 100  # the same for tags
METRICS_PER_BATCH = 1000
EPOCH = "epoch"
"""The metric that marks an epoch as logged; always the last of its epoch to be written."""

_DEFAULTS = {
    # Two tries of 10 s: MLflow's own 8 tries of 120 s would hold a job for a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout is the job's summary alone
}


class TrackingError(Exception):
    """MLflow said no or did not answer: one line with the mend, without secrets."""


@dataclass
class Tracker:
    """One MLflow run. Survives pickling: a copy in another process of this machine goes on where this one stopped.

    Every method raises TrackingError. After one, a later call of the same kind makes good for what was not logged.
    """

    tracking_uri: str = field(repr=False)
    """With its user info, if any: `shown_uri` is for people."""
    run_id: str
    """Gives the run back to `start_run`."""
    _client: Any = field(default=None, init=False, repr=False, compare=False)
    _logged: set[int] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def shown_uri(self) -> str:
        """The tracking URI without secrets."""
        return display(self.tracking_uri)

    def log_epochs(self, history: Sequence[Mapping[str, float]]) -> None:
        """Logs those epochs of a training's history that the run does not have yet, each at step = its epoch.

        Args:
            history: a mapping an epoch, with `epoch` (from 0 or 1 on) and any other numbers. Non-finite values are left
                out. Where one epoch stands twice (a restart trained it again) the later counts.
        """
        with _told(self.tracking_uri):
            try:
                if self._logged is None:  # asked once; another process may have logged before
                    self._logged = {point.step for point in self._mlflow().get_metric_history(self.run_id, EPOCH)}
                epochs = {int(each[EPOCH]): each for each in history}
                new = {epoch: each for epoch, each in sorted(epochs.items()) if epoch not in self._logged}
                self._log_metrics([_points(each, epoch) for epoch, each in new.items()])
                self._logged.update(new)
            except BaseException:
                self._logged = None  # a time-out does not say whether the server took it
                raise

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Logs final numbers of the run; non-finite values are left out, and of two calls the later counts."""
        with _told(self.tracking_uri):
            self._log_metrics([_points(metrics, step)])

    def log_artifact(self, local_path: str | Path) -> None:
        """Copies a file or a folder of this machine into the run's artifacts."""
        with _told(self.tracking_uri):
            self._mlflow().log_artifact(self.run_id, os.fspath(local_path))

    def log_files(self, files: Mapping[str, bytes]) -> None:
        """Puts files with these names and contents into the run's artifacts."""
        with tempfile.TemporaryDirectory(prefix="mma-mrnnet-artifacts-") as local:
            for name, content in files.items():
                path = Path(local) / name
                path.write_bytes(content)
                self.log_artifact(path)

    def register(self, local_model: str | Path, name: str, *, alias: str | None = None) -> int:
        """Copies a folder that `mlflow.pyfunc.save_model` made into the run, and registers it as the next version of
        the model `name` (made where there is none), which `alias` then stands for. Gives the version's number."""
        from mlflow.exceptions import RestException

        with _told(self.tracking_uri):
            client = self._mlflow()
            client.log_artifacts(self.run_id, os.fspath(local_model), "model")
            try:
                client.create_registered_model(name)
            except RestException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            source = f"{client.get_run(self.run_id).info.artifact_uri}/model"
            version = client.create_model_version(name, source, self.run_id)
            if alias is not None:
                client.set_registered_model_alias(name, alias, version.version)
            return int(version.version)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags; those that are there get the new value."""
        from mlflow.entities import RunTag

        entities = [RunTag(str(key), str(value)[:MAX_TAG_CHARS]) for key, value in tags.items()]
        with _told(self.tracking_uri):
            for batch in _batches(entities, PARAMS_PER_BATCH):
                self._mlflow().log_batch(self.run_id, tags=batch)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Ends the run; `start_run` with its id opens it again."""
        with _told(self.tracking_uri):
            self._mlflow().set_terminated(self.run_id, status)

    def _log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entities = [Param(str(key), str(value)[:MAX_PARAM_CHARS]) for key, value in params.items()]
        for batch in _batches(entities, PARAMS_PER_BATCH):
            self._mlflow().log_batch(self.run_id, params=batch)

    def _log_metrics(self, groups: Sequence[list[Any]]) -> None:
        """Writes groups of points, each in one request and so whole or not at all, as far as the limit allows."""
        batch: list[Any] = []
        for group in groups:
            if len(batch) + len(group) > METRICS_PER_BATCH:
                self._send(batch)
                batch = []
            batch = batch + group
        self._send(batch)

    def _send(self, points: list[Any]) -> None:
        for batch in _batches(points, METRICS_PER_BATCH):
            self._mlflow().log_batch(self.run_id, metrics=batch)

    def _mlflow(self) -> Any:
        if self._client is None:
            self._client = _new_client(self.tracking_uri)
        return self._client

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_logged": None}


def start_run(
    *,
    experiment: str,
    run_name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    run_id: str | None = None,
    tracking_uri: str | None = None,
) -> Tracker:
    """Opens a run, or one that exists again.

    Args:
        experiment: its name; made where there is none.
        run_name: for people.
        params: what the run was started with, displayable; each value is cut at 6000 characters.
        tags: as `params`, may be changed later.
        run_id: an earlier run to go on with: its params stay as they are, its tags are set anew.
        tracking_uri: None: `MLFLOW_TRACKING_URI`, else `sqlite:///` and ./mlflow.db. Artifacts of a new experiment in
            an sqlite file lie beside it, in `mlruns`.

    Raises:
        TrackingError: MLflow refuses the store, does not answer within some 20 s, or knows no such run.
    """
    uri = resolve_uri(tracking_uri)
    with _told(uri):
        _check_sqlite(uri)
        client = _new_client(uri)
        if run_id is not None:
            run = client.get_run(run_id)
            if run.info.lifecycle_stage != "active":
                raise TrackingError(f"run {run_id} of {display(uri)} is deleted: restore it in MLflow, or start anew")
            client.update_run(run_id, status="RUNNING")
        else:
            run = client.create_run(_experiment_id(client, experiment, uri), run_name=run_name)
        tracker = Tracker(uri, run.info.run_id)
        tracker._client = client
        try:
            if run_id is None:
                tracker._log_params(params)
            tracker.set_tags(tags)
        except BaseException:
            with suppress(Exception):  # the first error is the one to tell; a run left open would look alive
                client.set_terminated(tracker.run_id, "FAILED")
            raise
    return tracker


def find_run(experiment: str, tags: Mapping[str, str], *, tracking_uri: str | None = None) -> str | None:
    """The id of the oldest run of an experiment that has all of these tags; None where there is none."""
    uri = resolve_uri(tracking_uri)
    with _told(uri):
        client = _new_client(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        filters = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        runs = client.search_runs([found.experiment_id], filters, order_by=["attributes.start_time ASC"], max_results=1)
        return runs[0].info.run_id if runs else None


def resolve_uri(tracking_uri: str | None) -> str:
    """The tracking URI that `start_run` uses; sqlite files become absolute, for copies in other working folders."""
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = _sqlite_path(uri)
    return uri if path is None else uri.replace(f":///{path}", f":///{os.path.abspath(path)}", 1)


def refuse_local_store(tracking_uri: str | None, num_nodes: int) -> None:
    """TrackingError where the tracking store is a file of this machine and the cluster has several.

    What is logged, and above all the artifacts, would lie where other nodes and a later driver do not see them.
    """
    uri = resolve_uri(tracking_uri)
    scheme = urlsplit(uri).scheme
    local = scheme.partition("+")[0] in ("", "file", "sqlite") and uri not in ("databricks", "databricks-uc", "uc")
    if local and num_nodes > 1:
        raise TrackingError(
            f"{display(uri)} is a file of this machine, and the cluster has {num_nodes} nodes: set MLFLOW_TRACKING_URI "
            "to an MLflow server, http://host:5000 (mlflow server --host 0.0.0.0)"
        )


def _new_client(uri: str) -> Any:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow").setLevel(logging.ERROR)
    for chatty in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def _experiment_id(client: Any, name: str, uri: str) -> str:
    from mlflow import MlflowException

    path = _sqlite_path(uri)
    # MLflow's default is ./mlruns of whatever folder the job was started in.
    folder = None if path is None else Path(path).parent.joinpath("mlruns").as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=folder)
        except MlflowException:  # another job may have made it in between
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} of {display(uri)} is deleted: mlflow experiments restore "
            f"--experiment-id {found.experiment_id}, or give another name"
        )
    return found.experiment_id


def _points(metrics: Mapping[str, float], step: int) -> list[Any]:
    """The finite numbers as MLflow's points, `epoch` last: it marks the others as written."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    numbers = {key: float(value) for key, value in sorted(metrics.items(), key=lambda item: item[0] == EPOCH)}
    return [Metric(key, value, now_ms, step) for key, value in numbers.items() if math.isfinite(value)]


def _batches(entities: list[Any], most: int) -> Iterator[list[Any]]:
    for first in range(0, len(entities), most):
        yield entities[first : first + most]


def _sqlite_path(uri: str) -> str | None:
    found = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return found[1] if found and found[1] != ":memory:" else None


def _check_sqlite(uri: str) -> None:
    """OSError where the database's file cannot be written: MLflow would try for 100 s, silently."""
    path = _sqlite_path(uri)
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Whatever MLflow and what it stands on raise becomes a TrackingError of one line."""
    try:
        yield
    except TrackingError:
        raise
    except ImportError as error:
        raise TrackingError(f"MLflow lacks a package ({error}): pip install {error.name or 'mlflow'}") from None
    except Exception as error:  # MLflow's, SQLAlchemy's, requests' and an artifact store's have no common class
        words = _without_secrets(" ".join(str(error).split()) or type(error).__name__, uri)
        words = words if len(words) <= 300 else f"{words[:300]}…"
        # Not `from error`: a traceback would print MLflow's own message, password and all.
        raise TrackingError(f"MLflow at {display(uri)}: {words}{_mend(uri, words)}") from None


def _without_secrets(text: str, uri: str) -> str:
    text = re.sub(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/@]*@", r"\1***@", text.replace(uri, display(uri)))
    password = urlsplit(uri).password
    for secret in {password, unquote(password)} if password else ():
        text = text.replace(secret, "***")
    return text


def _mend(uri: str, words: str) -> str:
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file"):
        return " -- give a database, sqlite:////folder/mlflow.db, or a server, http://host:5000"
    if "out-of-date database schema" in words:
        return " -- bring it up to date (back it up first): mlflow db upgrade URI"
    if scheme.startswith("http"):
        if re.search(r"error code 40[13]|Unauthorized|Forbidden", words):
            return " -- set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        if "failed with exception" in words or "error code 5" in words:
            return " -- is the server up, and reachable from this machine? MLFLOW_TRACKING_URI names it"
    return ""
