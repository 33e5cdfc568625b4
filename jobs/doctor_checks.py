"""The checks of `doctor`: each kind runs in a process of its own that can be killed, and tells what it finds meanwhile.

Started as `check(KIND, RESULT_FILE, ARGUMENTS)`; what it asks of nodes is in `jobs.node_checks`.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from cluster.uri import StorageError, display, one_line

STORAGE_MEND = (
    "mend its rights or name another place; for s3://, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a role, and "
    "AWS_ENDPOINT_URL for a server of your own, on every node"
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found."""

    check: str
    """cluster, versions, storage, tracking, decoders, gpus, ..."""
    state: Literal["ok", "warn", "fail"]
    told: str
    where: str = ""
    """Node or place; empty: all of it."""
    mend: str = ""
    """What to do about it."""


Tell = Callable[[Finding], None]


def check(kind: str, result_file: str, arguments: str) -> None:
    """Run one kind of checks; each finding is a line of JSON in the file at once, so that a killed run leaves some."""

    def tell(finding: Finding) -> None:
        with open(result_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finding)) + "\n")

    kinds: dict[str, Callable[..., None]] = {
        "cluster": check_cluster,
        "storage": check_storage,
        "tracking": check_tracking,
    }
    kinds[kind](tell, **json.loads(arguments))


# --- the cluster, and what its nodes have ---


def check_cluster(tell: Tell, *, address: str | None, uris: Sequence[str], tracking: bool, limit_s: float) -> None:
    """Nodes, versions, folders seen from every node, decoders, GPUs, and whether all can share the tracking store."""
    from cluster.capacity import told_nodes
    from cluster.health import Markers, look, on_every_node
    from cluster.package import PackageError, requirements
    from cluster.session import SessionError, ray_session, target_address
    from cluster.storage import Folder
    from cluster.tracking import TrackingError, refuse_local_store
    from jobs.node_checks import examine, made_clip, multiply

    target = target_address(address)
    with ExitStack() as held:
        try:
            nodes = held.enter_context(ray_session(address))
        except SessionError as error:
            mend = (
                "is that address the cluster's (host:port of ray start, or auto on one of its machines), and are "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token) those of the cluster?"
            )
            tell(Finding(check="cluster", where=target, state="fail", told=one_line(error), mend=mend))
            return
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        tell(Finding(check="cluster", where=target, state="ok", told=f"{count}: {told_nodes(nodes)}"))
        try:
            if tracking:
                refuse_local_store(None, len(nodes))
        except TrackingError as error:
            words, _, mend = str(error).partition(": set ")
            tell(Finding(check="tracking", state="fail", told=words, mend=f"set {mend}"))
        try:
            needed = requirements()
        except PackageError as error:
            needed = []
            tell(Finding(check="versions", state="warn", told=str(error)))
        for finding in findings_of_nodes(on_every_node(examine, needed, made_clip(), limit_s=limit_s)):
            tell(finding)
        if any(node.gpus for node in nodes):
            for finding in findings_of_gpus(on_every_node(multiply, limit_s=limit_s, gpus=0.01)):
                tell(finding)
        else:
            tell(Finding(check="gpus", state="ok", told="Ray counts none: the networks run on CPUs"))
        places = [Folder(uri).uri for uri in uris] if len(nodes) > 1 else []
        for uri in dict.fromkeys(places):  # last: a dead mount may hold this process here
            try:
                with Markers([uri]) as markers:
                    answers = on_every_node(look, [], markers.asked, [], limit_s=limit_s)
            except StorageError:  # told by the check of storage
                continue
            for finding in findings_of_place(answers, uri):
                tell(finding)


def findings_of_nodes(answers: Sequence[Any]) -> Iterator[Finding]:
    """What the nodes' answers to `examine` mean."""
    from cluster.health import told_versions

    good = [answer for answer in answers if answer.value is not None]
    for answer in answers:
        if answer.value is None:
            mend = "look at that machine (ray status, its logs); take it out of the cluster if it stays silent"
            yield Finding(check="nodes", where=answer.node, state="fail", told=answer.error, mend=mend)
    lacking = [answer for answer in good if answer.value["unmet"]]
    for answer in lacking:
        mend = "bring its image up to date: pip install of this project there, or submit with --packages pinned"
        told = "; ".join(answer.value["unmet"])
        yield Finding(check="versions", where=answer.node, state="fail", told=told, mend=mend)
    for line in told_versions(answers):
        yield Finding(
            check="versions",
            state="fail",
            told=line,
            mend="start all nodes from one image, or from one requirements file",
        )
    if good and not lacking and not told_versions(answers):
        told = ", ".join(f"{name} {version}" for name, version in good[0].value["versions"].items())
        yield Finding(check="versions", state="ok", told=told)
    for answer in good:
        yield _finding_of_decoders(answer.node, answer.value["decoders"])


def findings_of_place(answers: Sequence[Any], uri: str) -> Iterator[Finding]:
    """What the nodes' answers to `look` mean for a folder in which one of them has left a marker."""
    wrong = [(each.node, each.error if each.value is None else each.value["unseen"].get(uri)) for each in answers]
    for node, why in wrong:
        if why:
            mend = "give an s3:// URI that every node may read, or a folder that all of them mount"
            yield Finding(check="storage", where=node, state="fail", told=f"{display(uri)}: {why}", mend=mend)
    if not any(why for _, why in wrong):
        told = f"all {len(answers)} nodes read what one of them wrote"
        yield Finding(check="storage", where=display(uri), state="ok", told=told)


def _finding_of_decoders(node: str, decoders: dict[str, str | None]) -> Finding:
    wrong = {name: why for name, why in decoders.items() if why is not None}
    if not wrong:
        return Finding(check="decoders", where=node, state="ok", told=f"{' and '.join(decoders)} read a made clip")
    told = "; ".join(f"{name}: {why}" for name, why in wrong.items())
    if "pyav" in wrong:
        return Finding(check="decoders", where=node, state="fail", told=told, mend="pip install 'av>=14' on that node")
    mend = "PyAV decodes alone, as it does by default; --decoder decord needs pip install decord, on x86-64 Linux"
    return Finding(check="decoders", where=node, state="warn", told=told, mend=mend)


def findings_of_gpus(answers: Sequence[Any]) -> Iterator[Finding]:
    """What the nodes' answers to `multiply` mean."""
    for answer in answers:
        wrong = answer.error or answer.value["error"]
        if wrong:
            mend = (
                "nvidia-smi on that machine shows driver and load; torch must be a build for CUDA "
                "(pip install torch from an index that has them), and not newer than the driver"
            )
            yield Finding(check="gpus", where=answer.node, state="fail", told=wrong, mend=mend)
        else:
            yield Finding(check="gpus", where=answer.node, state="ok", told=answer.value["told"])


# --- storage ---


def check_storage(tell: Tell, *, uri: str) -> None:
    """Write, read, the conditional puts that a lock stands on, delete."""
    from cluster.health import MARKER
    from cluster.storage import Folder

    folder, name = Folder(uri), f"{MARKER}doctor-{uuid.uuid4().hex[:12]}"
    made = folder.is_local and not os.path.lexists(folder.uri)
    try:
        wrong = _puts(folder, name)
    except (StorageError, OSError) as error:
        wrong = one_line(error)
    finally:
        if made and os.path.isdir(folder.uri) and not os.listdir(folder.uri):
            os.rmdir(folder.uri)
    if wrong:
        tell(Finding(check="storage", where=folder.display, state="fail", told=wrong, mend=STORAGE_MEND))
    else:
        told = "write, read, conditional put and delete work"
        tell(Finding(check="storage", where=folder.display, state="ok", told=told))


def _puts(folder: Any, name: str) -> str | None:
    """What does not work, in words. Raises StorageError."""
    version = folder.write_new(name, b"one")
    try:
        if folder.read(name) != b"one":
            return "what was written is not what is read"
        if not _refuses_second(folder, name):
            return "a conditional put (If-None-Match) overwrites: two runs could write to one store at a time"
        if not folder.is_local and folder.replace_if(name, b"two", "0" * 32) is not None:
            return "a conditional put (If-Match) is not honoured: two runs could write to one store at a time"
        if not folder.is_local and folder.replace_if(name, b"two", version) is None:
            return "a conditional put (If-Match) of the right version is refused"
    finally:
        folder.delete([name])
    return "a deleted file is still there" if folder.exists(name) else None


def _refuses_second(folder: Any, name: str) -> bool:
    try:
        folder.write_new(name, b"two")
    except FileExistsError:
        return folder.read(name) == b"one"
    return False


# --- tracking ---


def check_tracking(tell: Tell) -> None:
    """Whether MLflow answers, and its version beside ours."""
    import requests

    from cluster.health import installed
    from cluster.package import is_sent
    from cluster.tracking import TrackingError, find_run, resolve_uri

    if is_sent() and not os.environ.get("MLFLOW_TRACKING_URI"):
        told = "MLFLOW_TRACKING_URI is not set on the cluster: submitted trainings are refused"
        mend = "submit --env MLFLOW_TRACKING_URI=http://HOST:5000, set it for ray start, or train with --no-tracking"
        tell(Finding(check="tracking", state="warn", told=told, mend=mend))
        return
    uri = resolve_uri(None)
    shown, ours = display(uri), installed(["mlflow"]).get("mlflow", "missing")
    is_server = urlsplit(uri).scheme in ("http", "https")
    database = uri.partition(":///")[2] if uri.startswith("sqlite") else ""
    if database and not os.path.exists(database):
        folder = os.path.dirname(database) or "."
        if os.access(folder, os.W_OK):
            told = f"the first training makes it (MLflow {ours})"
            tell(Finding(check="tracking", where=shown, state="ok", told=told))
        else:
            mend = "set MLFLOW_TRACKING_URI to a server, http://host:5000"
            tell(Finding(check="tracking", where=shown, state="fail", told=f"{folder} cannot be written", mend=mend))
        return
    try:
        find_run("mma-mrnnet-doctor", {})  # only asks
    except TrackingError as error:
        words, _, mend = str(error).partition(" -- ")
        mend = mend or "is MLFLOW_TRACKING_URI right, and the server up and reachable from here?"
        tell(Finding(check="tracking", where=shown, state="fail", told=words, mend=mend))
        return
    theirs = ours
    if is_server:
        try:
            theirs = requests.get(f"{uri.rstrip('/')}/version", timeout=10).text.strip()[:20] or "unknown"
        except requests.RequestException:
            theirs = "unknown"
    told = f"MLflow {theirs} answers; here is {ours}"
    if theirs != "unknown" and theirs.partition(".")[0] != ours.partition(".")[0]:
        mend = f"bring server and cluster to one major version (pip install mlflow=={theirs})"
        tell(Finding(check="tracking", where=shown, state="warn", told=told, mend=mend))
    else:
        tell(Finding(check="tracking", where=shown, state="ok", told=told))
