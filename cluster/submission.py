"""Jobs on a remote cluster through Ray's job server: send one, follow its log to its end, stop it, list them.

Ray's own client is used, with what it lacks: time-outs, one-line errors, the address that was given (Ray lets
RAY_ADDRESS overrule it), the token wherever Ray looks for one, and a log that goes on after a broken connection.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import aiohttp
import requests
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]  # compiled
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from cluster.job_log import JobLog
from cluster.package import Package
from cluster.uri import display, one_line

REQUEST_TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two bytes."""
SILENCE_S = 30.0
"""Without a word of the log, the job is asked for: its stream may have been cut without notice."""
PATIENCE_S = 120.0
"""How long the job server may be out of reach before following ends."""
STOP_WAIT_S = 60
"""How long a stopped job may take to commit what is complete; Ray's own 3 s would kill it in the middle."""
MARK_KEY, JOB_KEY = "mma_mrnnet.mark", "mma_mrnnet.job"
"""In a job's metadata: the word that marks its result (`JobLog`), and which job it is."""


class SubmissionError(Exception):
    """The cluster refuses, or was asked wrongly: one line with the mend."""


class LostError(Exception):
    """The job server is out of reach in the middle; one line. The job goes on without."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """What the job server knows of a job."""

    submission_id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    job: str
    """Name of this project's job, else the command's beginning."""
    mark: str
    """What its result begins with; empty for jobs of others."""
    message: str
    exit_code: int | None
    """As its process ended, 128 + the signal's number where a signal ended it; None while it runs or where it was
    stopped."""
    started_s: float | None
    """Seconds since 1970."""
    ended_s: float | None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return JobStatus(self.status).is_terminal()


class JobServer:
    """The job server of one cluster. Every method raises SubmissionError, or LostError where it cannot be reached."""

    def __init__(self, address: str, *, client: Any = None):
        """Connects, and checks the token. `address`: http(s)://host:port, of the dashboard; `client`: for tests."""
        self.url = server_url(address)
        with self._told():
            self._client = client or _connect(self.url)

    @property
    def ray_version(self) -> str:
        """Of the cluster."""
        return str(self._client._server_ray_version)

    def submit(
        self,
        package: Package,
        *,
        submission_id: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        pip: Sequence[str],
        metadata: Mapping[str, str],
    ) -> None:
        """Send the package and start the command in it, on the cluster's head."""
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **variables}
        with self._told(), tempfile.TemporaryDirectory(prefix="mma-mrnnet-submit-") as local:
            archive = Path(local) / "package.zip"
            archive.write_bytes(package.data)
            environment: dict[str, Any] = {"working_dir": str(archive), "env_vars": variables}
            if pip:
                environment["pip"] = list(pip)
            try:
                self._client.submit_job(
                    # exec: signals and the exit code are the job's own, with no shell between
                    entrypoint=f"exec {shlex.join(command)}",
                    submission_id=submission_id,
                    runtime_env=environment,
                    metadata=dict(metadata),
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    raise SubmissionError(taken(submission_id)) from error
                raise

    def state(self, submission_id: str) -> JobState | None:
        """Of a job; None where the cluster knows none of this id."""
        try:
            with self._told():
                return _state(self._client.get_job_info(submission_id))
        except SubmissionError as error:
            if "does not exist" in str(error):
                return None
            raise

    def known(self, submission_id: str) -> JobState:
        """As `state`, but an unknown id is a SubmissionError."""
        found = self.state(submission_id)
        if found is None:
            raise SubmissionError(
                f"{submission_id}: {display(self.url)} knows no such job; --list shows those it knows"
            )
        return found

    def states(self) -> list[JobState]:
        """Of all jobs that were submitted since the cluster's start, the newest first."""
        with self._told():
            found = [_state(each) for each in self._client.list_jobs() if each.submission_id]
        return sorted(found, key=lambda each: each.started_s or 0.0, reverse=True)

    def stop(self, submission_id: str) -> JobState:
        """Ask a job to stop (SIGTERM: it commits what is complete) and wait for its end."""
        with self._told():
            self._client.stop_job(submission_id)
        until_s = monotonic() + STOP_WAIT_S + 30
        while not (found := self.known(submission_id)).over:
            if monotonic() > until_s:
                raise LostError(f"{submission_id} has not ended within {STOP_WAIT_S + 30} s of being stopped")
            sleep(0.5)
        return found

    def follow(self, submission_id: str, log: JobLog, *, limit_s: float | None = None) -> JobState:
        """Hand the job's log to `log` as it comes, from its first line on, until the job ends.

        A broken connection is made again for `PATIENCE_S`, and no text comes twice.

        Raises:
            TimeoutError: the job has not ended within `limit_s`.
        """
        deadline_s = None if limit_s is None else monotonic() + limit_s
        lost_since_s: float | None = None
        while True:
            try:
                complete = asyncio.run(self._tail(submission_id, log, deadline_s))
                found = self.known(submission_id)
                lost_since_s = None
            except (LostError, aiohttp.ClientError, OSError, RuntimeError) as error:
                now_s = monotonic()
                lost_since_s = lost_since_s or now_s
                if now_s - lost_since_s > PATIENCE_S:
                    raise LostError(f"{display(self.url)} is out of reach: {one_line(error)}") from error
                sleep(2.0)
                continue
            if found.over and complete:
                log.end()
                return found
            if deadline_s is not None and monotonic() > deadline_s:
                raise TimeoutError(f"{submission_id} has not ended within {limit_s:.0f} s ({found.message})")
            if not complete and found.status == JobStatus.PENDING:
                log.note(f"{submission_id} waits: {found.message}")
            sleep(1.0 if complete else 0.0)

    async def _tail(self, submission_id: str, log: JobLog, deadline_s: float | None) -> bool:
        """Read the log until its end (True) or until nothing has come for `SILENCE_S` or the deadline has passed."""
        log.rewind()
        stream: Any = self._client.tail_job_logs(submission_id)
        try:
            while True:
                wait_s = SILENCE_S if deadline_s is None else min(SILENCE_S, deadline_s - monotonic())
                text = await asyncio.wait_for(anext(stream, None), max(wait_s, 0.01))
                if text is None:
                    return True
                log.take(text)
        except asyncio.TimeoutError:
            return False
        finally:
            await stream.aclose()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever Ray's client raises becomes an error of one line."""
        shown = display(self.url)
        try:
            yield
        except AuthenticationError as error:
            raise SubmissionError(_token_words(shown)) from error
        except (ConnectionError, requests.RequestException) as error:
            words = one_line(error).rstrip(".")
            raise LostError(
                f"--address {shown}: no job server answers there ({words}): give the dashboard's address, usually "
                "http://HEAD:8265, reachable from here (ssh -L, kubectl port-forward)"
            ) from error
        except (ValueError, KeyError) as error:  # an answer that is no job server's
            raise SubmissionError(f"--address {shown}: this is no job server of Ray ({one_line(error)})") from error
        except RuntimeError as error:
            raise SubmissionError(f"{shown}: {_last_line(error)}") from error


def end_code(state: JobState, result: Mapping[str, Any] | None) -> int:
    """The exit code of a job that is over: its process's, else what it said itself, else what its status means."""
    if state.exit_code is not None:
        return state.exit_code
    if result is not None:
        return int(result["exit_code"])
    return {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 143}.get(JobStatus(state.status), 1)


def server_url(address: str) -> str:
    """The job server's URL from `--address`. Raises SubmissionError where it can be none."""
    shown = display(address)
    url = address if "://" in address else f"http://{address}"
    if not re.fullmatch(r"https?://[^/?#\s]+/?", url):
        raise SubmissionError(
            f"--address {shown}: give the job server of the cluster, http://HEAD:8265 (its dashboard), not a folder, "
            "a query, or a ray:// address"
        )
    if "@" in url:
        raise SubmissionError(
            f"--address {shown}: no user info, please; the token comes from RAY_AUTH_TOKEN or its file"
        )
    return url.rstrip("/")


def taken(submission_id: str) -> str:
    """What is told of an id that the cluster has had before."""
    return (
        f"--submission-id {submission_id} is taken on this cluster: give another one, or see that job with "
        f"--follow {submission_id}"
    )


def token_header() -> dict[str, str]:
    """The cluster's token as Ray finds it (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token); empty without one.

    Ray's client sends it only where RAY_AUTH_MODE says so, although its clusters want it by default.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return {}
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        return dict(loader.get_token_for_http_header(ignore_auth_mode=True) or {})
    finally:
        loader.reset_cache()  # a Ray of this process's own has another token


class _Client(JobSubmissionClient):
    """Ray's, with time-outs."""

    def _do_request(self, *arguments: Any, **settings: Any) -> requests.Response:
        return super()._do_request(*arguments, **{"timeout": REQUEST_TIMEOUT_S, **settings})


def _connect(url: str) -> _Client:
    for chatty in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(chatty).setLevel(logging.ERROR)  # what matters is told in our words
    overruling = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    try:
        return _Client(url, headers=token_header())
    finally:
        os.environ.update({name: value for name, value in overruling.items() if value is not None})


def _state(details: JobDetails) -> JobState:
    metadata = details.metadata or {}
    code = details.driver_exit_code
    return JobState(
        submission_id=details.submission_id or details.job_id or "",
        status=str(details.status),
        job=metadata.get(JOB_KEY) or details.entrypoint[:60],
        mark=metadata.get(MARK_KEY, ""),
        message=" ".join((details.message or "").split())[:1000],
        exit_code=code if code is None or code >= 0 else 128 - code,
        started_s=details.start_time / 1000 if details.start_time else None,
        ended_s=details.end_time / 1000 if details.end_time else None,
    )


def _token_words(shown: str) -> str:
    lacking = "refuses the token found here" if token_header() else "wants its token, and none was found here"
    return (
        f"--address {shown} {lacking}: put the cluster's token into RAY_AUTH_TOKEN, or into a file that "
        "RAY_AUTH_TOKEN_PATH names, or into ~/.ray/auth_token (ray get-auth-token, on the head, prints it)"
    )


def _last_line(error: BaseException) -> str:
    """The server's answer to a bad request is a whole traceback: its last line says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip().strip(".")]
    return (lines[-1] if lines else type(error).__name__).strip(" .")[:500]
