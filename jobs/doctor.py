"""`mma-mrnnet doctor`: what of cluster, storage, tracking, decoders and GPUs works, and the mend for what does not.

Every check has a time limit and runs in a process of its own, which is ended when that is over: doctor itself never
hangs on what it looks at.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tyro

import jobs
from cluster.uri import display, one_line, parse_uri
from jobs.doctor_checks import Finding
from jobs.outcome import DONE, FAILED, InputError, JobFailedError, Outcome, input_errors
from jobs.progress import say

START_S = 60.0
"""What Ray's start, and a first import on a cold disk, may take beyond the limit of a check."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Look at a cluster and its surroundings, and say what works. Exit code 1 where something does not.

    Writes one small file into each --store and --out, and deletes it again.
    """

    address: str | None = None
    """Cluster to look at: host:port or auto (from one of its machines), or its job server, http://HEAD:8265 (from
    anywhere; the checks then run there, as a submitted job). Default: a Ray of its own on this machine."""
    store: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """URI of a feature store, or of any folder that jobs are to write to; as often as there are some."""
    out: str | None = None
    """URI of a folder for results."""
    tracking: bool = True
    """Whether MLflow is looked at, at MLFLOW_TRACKING_URI."""
    timeout_s: float = 60.0
    """Seconds that one check may take."""
    python: str = "python"
    """With a job server: Python of the cluster's head, as of submit."""

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise ValueError(f"--timeout-s {self.timeout_s}: give seconds above 0")
        for option, uris in (("--store", self.store), ("--out", (self.out,) if self.out else ())):
            for uri in uris:
                try:
                    parse_uri(uri)
                except ValueError as error:
                    raise ValueError(f"{option}: {error}") from error

    @property
    def uris(self) -> tuple[str, ...]:
        """All places to look at."""
        return (*self.store, *((self.out,) if self.out else ()))


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    started_s = time.monotonic()
    remote = bool(options.address and options.address.startswith(("http://", "https://")))
    findings = look_through_job_server(options) if remote else look_from_here(options)
    failed = [each for each in findings if each.state == "fail"]
    warned = [each for each in findings if each.state == "warn"]
    say(f"{len(findings)} checks: {len(failed)} failed, {len(warned)} to be looked at")
    summary = {
        "job": "doctor",
        "seconds": round(time.monotonic() - started_s, 3),
        "address": display(options.address or os.environ.get("RAY_ADDRESS") or "local"),
        "ok": not failed,
        "failed": len(failed),
        "warned": len(warned),
        "checks": [asdict(each) for each in findings],
    }
    return Outcome(summary=summary, exit_code=FAILED if failed else DONE)


def tell(finding: Finding) -> None:
    """A row of the table that people read, with the mend below."""
    sign = {"ok": "ok  ", "warn": "look", "fail": "FAIL"}[finding.state]
    where = f"{finding.where}: " if finding.where else ""
    say(f"{sign}  {finding.check:<10}  {where}{finding.told}")
    if finding.mend:
        say(f"{'':18}-> {finding.mend}")


# --- from a machine of the cluster, or this one alone ---


def look_from_here(options: Options) -> list[Finding]:
    """All checks at once, each in its own process."""
    from cluster.session import stop_signals

    limit_s = options.timeout_s
    of_cluster = {"address": options.address, "uris": options.uris, "tracking": options.tracking, "limit_s": limit_s}
    # Two things are waited for on the nodes: what they have, and what their GPUs give.
    checks: list[tuple[str, dict[str, Any], float]] = [("cluster", of_cluster, 2 * limit_s + START_S)]
    checks += [("storage", {"uri": uri}, limit_s) for uri in options.uris]
    if options.tracking:
        checks.append(("tracking", {}, limit_s))
    findings = []
    with stop_signals(), tempfile.TemporaryDirectory(prefix="mma-mrnnet-doctor-") as local:
        running = [_Check(Path(local) / str(n), *each) for n, each in enumerate(checks)]
        try:
            for each in running:
                found = each.findings()
                findings.extend(found)
                for finding in found:
                    tell(finding)
        finally:
            for each in running:
                each.end()
    return findings


class _Check:
    """A check in a process of its own."""

    def __init__(self, file: Path, kind: str, arguments: Mapping[str, Any], limit_s: float):
        self.kind, self.file, self.limit_s = kind, file, limit_s
        self.where = display(str(arguments.get("uri") or arguments.get("address") or ""))
        self.deadline_s = time.monotonic() + limit_s
        root = str(Path(next(iter(jobs.__path__))).resolve().parent)
        search_path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        # Two tries of a request that gets no answer fit into the limit; the five of a real run would not.
        environment = {"AWS_MAX_ATTEMPTS": "2", **os.environ, "PYTHONPATH": search_path}
        script = "import sys; from jobs.doctor_checks import check; check(*sys.argv[1:])"
        file.touch()
        with open(file.with_suffix(".err"), "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", script, kind, str(file), json.dumps(dict(arguments))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # Ray prints there too
                stderr=err,
                env=environment,
                start_new_session=True,
            )

    def findings(self) -> list[Finding]:
        """Wait for its end, or its limit; what it found, and what became of itself where that is not well."""
        own = None
        try:
            if self.process.wait(max(0.0, self.deadline_s - time.monotonic())) != 0:
                own = self._lost(f"the check ended with exit code {self.process.returncode}: {self._last_words()}", "")
        except subprocess.TimeoutExpired:
            mend = "something in it does not answer: look at the network between, or raise --timeout-s"
            own = self._lost(f"no end within {self.limit_s:.0f} s", mend)
        self.end()
        *lines, _ = self.file.read_text().split("\n")  # the last one may be cut off
        found = [Finding(**json.loads(line)) for line in lines]
        return [*found, own] if own else found

    def end(self) -> None:
        """End its process and those it has started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it ended just now
                os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a dead disk: nobody waits for that
                self.process.wait(timeout=5)

    def _lost(self, told: str, mend: str) -> Finding:
        return Finding(check=self.kind, where=self.where, state="fail", told=told, mend=mend)

    def _last_words(self) -> str:
        lines = self.file.with_suffix(".err").read_text(errors="replace").strip().splitlines()
        return display(lines[-1][:300]) if lines else "without a word"


# --- from anywhere, through the job server ---


def look_through_job_server(options: Options) -> list[Finding]:
    """The job server itself, from here; all else by a doctor that is submitted to it."""
    from cluster.job_log import JobLog
    from cluster.submission import LostError, SubmissionError, server_url
    from jobs.submit import Options as SubmitOptions
    from jobs.submit import connect, inner_job, send

    assert options.address is not None
    with input_errors(SubmissionError):
        url = server_url(options.address)
    inner = inner_job(_words(options))
    findings: list[Finding] = []

    def add(state: Any, told: str, mend: str = "", check: str = "job server") -> list[Finding]:
        findings.append(Finding(check=check, where=display(url), state=state, told=told, mend=mend))
        tell(findings[-1])
        return findings

    try:
        server = connect(url)
    except InputError as error:
        return add("fail", str(error))
    add("ok", f"answers; Ray {server.ray_version}")
    if _asks_for_token(url):
        add("ok", "asks for the cluster's token, and takes the one found here", check="token")
    else:
        mend = "start every node with RAY_AUTH_MODE=token and one RAY_AUTH_TOKEN"
        add("warn", "asks for no token: whoever reaches it can run code there", mend, check="token")
    log, limit_s = JobLog("", say), 3 * options.timeout_s + 2 * START_S
    try:
        submission_id = send(server, inner, SubmitOptions(address=url, python=options.python))
        log = JobLog(server.known(submission_id).mark, say)
        try:
            state = server.follow(submission_id, log, limit_s=limit_s)
        except TimeoutError as error:
            server.stop(submission_id)
            return add("fail", one_line(error), "is there a free place on the head? ray status tells")
    except (SubmissionError, LostError, InputError, JobFailedError) as error:
        return add("fail", str(error))
    if log.result is None or log.result["summary"] is None:
        return add("fail", f"the submitted doctor ended without a result: {state.status} {state.message}")
    return findings + [Finding(**each) for each in log.result["summary"]["checks"]]


def _words(options: Options) -> list[str]:
    places = [word for uri in options.store for word in ("--store", uri)]
    places += ["--out", options.out] if options.out else []
    tracking = [] if options.tracking else ["--no-tracking"]
    return ["doctor", *places, *tracking, "--timeout-s", str(options.timeout_s)]


def _asks_for_token(url: str) -> bool:
    import requests

    try:
        return requests.get(f"{url}/api/jobs/", timeout=10).status_code in (401, 403)
    except requests.RequestException:
        return True  # it answered to the token just before
