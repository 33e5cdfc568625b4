"""`mma-mrnnet submit --address URL -- JOB --option value ...`: any job, run on a remote cluster.

The project's own files are packed and sent, the job is started on the cluster's head and its log followed to the end:
it ends here as it ends there, with its summary on stdout and its exit code.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import tyro

from cluster.job_log import JobLog
from cluster.package import PackageError, pack_project, pinned_requirements, requirements
from cluster.secrets import READERS, SecretError, choose_variables, refuse_secret_words
from cluster.tracking import TrackingError, refuse_local_store
from cluster.uri import display, parse_uri
from jobs.outcome import FAILED, WRONG_INPUT, InputError, JobFailedError, Outcome, input_errors
from jobs.places import places_of, tracks
from jobs.progress import say

if TYPE_CHECKING:
    from cluster.submission import JobServer, JobState

NO_SUCH_COMMAND = 127


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run a job on a remote cluster: mma-mrnnet submit --address http://HEAD:8265 -- extract --videos s3://...

    The job's own options stand behind `--`; its places are s3:// URIs, or folders that all nodes mount. The cluster's
    token is found where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.
    """

    takes_job: ClassVar[bool] = True

    address: str | None = None
    """Job server of the cluster, http://HEAD:8265 (its dashboard); default: RAY_API_SERVER_ADDRESS."""
    submission_id: str | None = None
    """Name of the submission; the cluster takes each only once. Default: the job's name, the time, a random part."""
    wait: bool = True
    """Follow the job to its end; --no-wait: only start it."""
    env: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME or NAME=VALUE of an environment variable that the job shall have; as often as needed. AWS_ENDPOINT_URL,
    AWS_DEFAULT_REGION and MLFLOW_TRACKING_URI go along unasked. Secrets come from the cluster."""
    send_secrets: bool = False
    """Send variables and options that hold secrets too: all who may see the job's details can then read them."""
    packages: Literal["image", "pinned"] = "image"
    """image: the cluster's own packages, checked on every node before the start. pinned: pip installs the versions that
    are installed here, on every node, which takes minutes the first time."""
    python: str = "python"
    """Python of the cluster's head; a path where its environment is not on Ray's PATH."""
    follow: str | None = None
    """Id of a job that was submitted before: show its log, from its beginning, and end as it ends."""
    stop: str | None = None
    """Id of a job to stop; it commits what is complete."""
    list: bool = False
    """Show the jobs that the cluster knows."""

    def __post_init__(self) -> None:
        if self.submission_id is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.submission_id):
            raise ValueError("--submission-id: give 1 to 100 letters, digits, dots, underscores and hyphens")
        given = [name for name in ("follow", "stop", "list") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"--{given[0]} and --{given[1]}: give one of them")


@dataclass(frozen=True, kw_only=True)
class InnerJob:
    """The job behind `--`."""

    name: str
    words: tuple[str, ...]
    """As they are sent: with what --config held."""
    options: Any


def run(options: Options, words: Sequence[str]) -> Outcome:
    """The job. See the module's first lines."""
    asked = options.follow or options.stop or options.list
    if bool(asked) == bool(words):
        raise InputError(
            "submit: give the job behind --, as in submit --address http://HEAD:8265 -- extract --videos ..., or one "
            "of --follow ID, --stop ID, --list, without a job"
        )
    inner = None if asked else inner_job(words)
    if inner is not None and inner.options is None:  # its help was asked for and shown
        raise SystemExit(0)
    server = connect(options.address)
    from cluster.submission import LostError, SubmissionError  # Ray's import takes a while

    try:
        with input_errors(SubmissionError):
            if inner is not None:
                submission_id = send(server, inner, options)
                if options.wait:
                    return follow(server, submission_id)
                _tell_how(server, submission_id)
                return Outcome(summary=_about(server, server.known(submission_id)))
            if options.follow:
                return follow(server, options.follow)
            return _stop(server, options.stop) if options.stop else _list(server)
    except LostError as error:
        raise JobFailedError(str(error)) from error


def inner_job(words: Sequence[str]) -> InnerJob:
    """The job behind `--`, its options read and its places looked at: what is wrong with it is told before anything is
    sent. Raises InputError."""
    from jobs.cli import JOBS, job_module, parse_options, with_config_file

    name, *arguments = words
    if name not in JOBS or name == "submit":
        jobs = ", ".join(each for each in JOBS if each != "submit")
        raise InputError(f"submit: behind -- there is no job {name!r}; the jobs are {jobs}")
    kind = job_module(name).Options
    arguments = with_config_file(kind, arguments)
    options = parse_options(kind, name, arguments)
    if options is not None:
        _check_places(name, options)
    return InnerJob(name=name, words=(name, *arguments), options=options)


def _check_places(job: str, options: Any) -> None:
    if getattr(getattr(options, "run", options), "address", None) not in (None, "auto"):
        raise InputError("--address: give it before --; a submitted job runs on the cluster that it is submitted to")
    for place in places_of(job, options):
        if place.relative:
            raise InputError(
                f"{place.shown} is a relative path, which means nothing on a cluster: give an s3:// URI, or the "
                "absolute path of a folder that all nodes mount"
            )
        with input_errors(ValueError, option=place.option):
            parse_uri(place.uri)


def connect(address: str | None) -> JobServer:
    """The job server. Raises InputError where none answers, or where it does not take the token."""
    from cluster.submission import JobServer, LostError, SubmissionError

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not address:
        raise InputError(
            "--address is missing: give the cluster's job server, http://HEAD:8265, or RAY_API_SERVER_ADDRESS"
        )
    with input_errors(SubmissionError, LostError):
        return JobServer(address)


def send(server: JobServer, inner: InnerJob, options: Options) -> str:
    """Pack, say what goes, and start the job; its submission id. Raises InputError or SubmissionError."""
    from cluster.submission import JOB_KEY, MARK_KEY, SubmissionError, taken

    with input_errors(SecretError, ValueError):
        sent = choose_variables(os.environ, options.env, send_secrets=options.send_secrets)
        if not options.send_secrets:
            refuse_secret_words(inner.words, os.environ)
    values = _tracking_settled(sent.values, inner.options)
    with input_errors(PackageError):
        package, needed = pack_project(), requirements()
        pins = pinned_requirements() if options.packages == "pinned" else []
    _check_ray(server.ray_version, needed)
    submission_id = options.submission_id or f"{inner.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    if options.submission_id and server.state(submission_id) is not None:
        raise SubmissionError(taken(submission_id))
    if sent.stay:
        say(f"{', '.join(sent.stay)} stay here: the cluster uses its own")
    if options.send_secrets:
        what = f"{', '.join(sent.secret)} and the job's options" if sent.secret else "the job's options"
        say(f"--send-secrets: {what} go in the open: {READERS}")
    say(f"sending {package.told()} to {display(server.url)}; variables: {', '.join(sorted(values)) or 'none'}")
    if pins:
        say(f"pip will install {len(pins)} pinned packages on every node; that may take minutes")
    mark = secrets.token_hex(8)
    server.submit(
        package,
        submission_id=submission_id,
        command=[options.python, "-m", "jobs.submitted", mark, *inner.words],
        variables=values,
        pip=pins,
        metadata={MARK_KEY: mark, JOB_KEY: inner.name},
    )
    say(f"submitted: {submission_id}")
    return submission_id


def _tracking_settled(values: Mapping[str, str], options: Any) -> dict[str, str]:
    """The variables, without a tracking store that is a file here; InputError where the job would write to it."""
    name = "MLFLOW_TRACKING_URI"
    try:
        if name in values:
            refuse_local_store(values[name], num_nodes=2)
        return dict(values)
    except TrackingError:
        if tracks(options):
            raise InputError(
                f"{name}={display(values[name])} is a file of this machine, which no cluster sees: give an MLflow "
                "server, http://HOST:5000, or the job --no-tracking"
            ) from None
        return {key: value for key, value in values.items() if key != name}


def _check_ray(version: str, needed: Sequence[str]) -> None:
    from packaging.requirements import Requirement

    for each in map(Requirement, needed):
        if each.name.lower() == "ray" and not each.specifier.contains(version, prereleases=True):
            raise InputError(
                f"the cluster runs Ray {version}, and this project needs {each.specifier}: bring the cluster's image "
                "up to date (a job runs under the cluster's own Ray)"
            )


def follow(server: JobServer, submission_id: str) -> Outcome:
    """Show a job's log to its end and end as it does. Ctrl-C and SIGTERM end the following alone.

    Raises InputError where the job's exit code is 2, JobFailedError where it is 1, SystemExit for others without a
    summary.
    """
    from cluster.session import stop_signals
    from cluster.submission import LostError, end_code

    before = server.known(submission_id)
    log = JobLog(before.mark, say)
    try:
        with stop_signals():
            state = server.follow(submission_id, log)
    except SystemExit:
        say(f"{submission_id} goes on without being followed")
        _tell_how(server, submission_id)
        raise
    except LostError:
        _tell_how(server, submission_id)
        raise
    code = end_code(state, log.result)
    summary = log.result["summary"] if log.result else None
    if summary is not None or code == 0:
        return Outcome(summary=summary or _about(server, state), exit_code=code)
    if code == WRONG_INPUT:
        raise InputError(f"{submission_id} ended with exit code 2: wrong arguments or input, as said above")
    if code == FAILED:
        raise JobFailedError(f"{submission_id}: {'as said above' if state.exit_code == FAILED else state.message}")
    if code == NO_SUCH_COMMAND:
        say("the cluster's head found no such Python: name it with --python")
    say(f"{submission_id} ended with exit code {code} ({state.status})")
    raise SystemExit(code)


def _stop(server: JobServer, submission_id: str) -> Outcome:
    state = server.known(submission_id)
    if state.over:
        say(f"{submission_id} had ended already: {state.status}")
    else:
        say(f"stopping {submission_id}; it commits what is complete")
        state = server.stop(submission_id)
        say(f"{submission_id}: {state.status}")
    return Outcome(summary=_about(server, state))


def _list(server: JobServer) -> Outcome:
    states = server.states()
    width = max((len(each.submission_id) for each in states), default=0)
    for each in states:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.started_s)) if each.started_s else "-"
        say(f"{each.submission_id:<{width}}  {each.status:<9}  {started}  {each.job}")
    jobs = [_about(server, each) for each in states]
    return Outcome(summary={"job": "submit", "address": display(server.url), "jobs": jobs})


def _about(server: JobServer, state: JobState) -> dict[str, Any]:
    return {
        "job": "submit",
        "submission_id": state.submission_id,
        "submitted_job": state.job,
        "status": state.status,
        "exit_code": state.exit_code,
        "address": display(server.url),
    }


def _tell_how(server: JobServer, submission_id: str) -> None:
    for what, option in (("see it", "follow"), ("stop it", "stop")):
        say(f"  to {what}: mma-mrnnet submit --address {display(server.url)} --{option} {submission_id}")
