"""`python -m jobs.submitted MARK JOB ...`: a submitted job's own process, on the cluster.

First it is checked that every node can run the project and sees the job's places: what would otherwise fail on some
node in the middle is one line and exit code 2 before the start. Then the job runs as on any machine, and its summary
and exit code are said once more in the log, behind the mark (`cluster.job_log`).
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from cluster.job_log import result_line
from cluster.package import PackageError, requirements, unmet
from cluster.session import SessionError, ray_session, stop_signals
from cluster.tracking import TrackingError, refuse_local_store
from cluster.uri import StorageError
from jobs.cli import job_module, parse_options
from jobs.cli import main as run_job
from jobs.outcome import FAILED, WRONG_INPUT, InputError, input_errors
from jobs.places import Place, places_of, tracks
from jobs.progress import say

LOOK_LIMIT_S, PIP_LIMIT_S = 300.0, 1500.0
"""How long a node may take to answer; the second where it installs the pinned versions first."""
UNCHECKED = ("doctor",)
"""Jobs that look for themselves."""


def main(arguments: Sequence[str]) -> int:
    """Check, run, and say the result; the job's exit code."""
    mark, *words = arguments
    code, summary = FAILED, None
    try:
        code, summary = _run(words)
    except SystemExit as end:  # by a signal
        code = end.code if isinstance(end.code, int) else FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(1, result_line(mark, code, summary).encode())
    return code


def _run(words: Sequence[str]) -> tuple[int, dict[str, Any] | None]:
    job, *options = words
    try:
        if job not in UNCHECKED:
            check_cluster(job, parse_options(job_module(job).Options, job, options))
    except InputError as error:
        say(f"mma-mrnnet: {error}")
        return WRONG_INPUT, None
    summary = io.StringIO()
    code = run_job(words, summary_stream=summary)
    return code, json.loads(summary.getvalue()) if summary.getvalue() else None


def check_cluster(job: str, options: Any) -> None:
    """Raises InputError where a node lacks what the project needs, or does not see a place of the job."""
    if tracks(options) and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise InputError(
            "MLFLOW_TRACKING_URI is not set on the cluster, and ./mlflow.db would lie in a folder that goes with the "
            "job: submit with --env MLFLOW_TRACKING_URI=http://HOST:5000, set it for ray start, or give --no-tracking"
        )
    with input_errors(PackageError):
        needed = requirements()
    places = list(places_of(job, options))
    with stop_signals() as stop, input_errors(SessionError), ray_session(None, stop=stop) as nodes:
        if tracks(options):
            with input_errors(TrackingError):
                refuse_local_store(None, len(nodes))
        if len(nodes) > 1:
            _check_nodes(needed, places)
        elif lacking := unmet(needed):
            raise InputError(_told_lacking("the cluster's only node", lacking))


def _check_nodes(needed: Sequence[str], places: Sequence[Place]) -> None:
    import ray

    from cluster.health import Markers, footprint, look, on_every_node, same_place, told_versions

    written = {place.folder: place for place in places if place.folder}
    read = {place.local_path: place for place in places if place.local_path}
    pip = "pip" in (ray.get_runtime_context().runtime_env or {})
    with input_errors(ValueError, OSError, StorageError), Markers(list(written)) as markers:
        limit_s = PIP_LIMIT_S if pip else LOOK_LIMIT_S
        answers = on_every_node(look, needed, markers.asked, list(read), limit_s=limit_s)
        here = {path: footprint(path) for path in read}
    for answer in answers:
        if answer.value is None:
            raise InputError(
                f"node {answer.node} cannot be used: {answer.error}: mend it, or take it out of the cluster"
            )
        if lacking := answer.value["unmet"]:
            raise InputError(_told_lacking(f"node {answer.node}", lacking))
        for uri, why in answer.value["unseen"].items():
            raise InputError(
                f"{written[uri].shown}: node {answer.node} does not see it ({why}): give an s3:// URI that all nodes "
                "may read and write, or a folder that all of them mount"
            )
        for path, seen in answer.value["prints"].items():
            if not same_place(here[path], seen):
                raise InputError(
                    f"{read[path].shown}: node {answer.node} sees {'something else' if seen else 'nothing'} there: "
                    "give an s3:// URI, or a folder that all nodes mount"
                )
    for line in told_versions(answers):
        say(f"versions differ between nodes: {line}")
    say(f"{len(answers)} nodes have what this project needs and see the job's places")


def _told_lacking(node: str, lacking: Sequence[str]) -> str:
    return (
        f"{node} cannot run this project: {'; '.join(lacking)}: bring its image up to date, or submit with "
        "--packages pinned"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
