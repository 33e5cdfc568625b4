"""What every node of a cluster has and sees, asked by one small task a node with a time limit.

A task that needs no CPU is placed on each node by name, so that a busy cluster answers too. Used before a submitted job
starts (does every node have the versions, and see the folders?) and by `doctor`.
"""

from __future__ import annotations

import os
import platform
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError, RuntimeEnvSetupError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.package import unmet
from cluster.storage import Folder
from cluster.uri import StorageError, one_line, parse_uri

MARKER = "_tmp-seen-"
"""Begins the name of a marker; readers skip such names, and a sweep deletes those that a killed run left."""
LISTED = 200
"""Names of a folder that are compared between nodes."""
VERSIONS = ("ray", "torch", "decord", "av", "opencv-python-headless", "onnxruntime", "pyarrow", "mlflow")
"""Packages whose versions are told, beside Python's."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one node said."""

    node: str
    value: Any = None
    error: str | None = None
    """Why there is no value, in one line."""


def on_every_node(ask: Callable[..., Any], *arguments: Any, limit_s: float, gpus: float = 0.0) -> list[Answer]:
    """Call a function of an importable module on each live node (with `gpus`: on those that have GPUs), all at once.

    No node is waited for longer than `limit_s` in all; one that is silent, or whose task fails, answers with an error.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and (not gpus or node["Resources"].get("GPU"))]
    task = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(ask)
    names = _names(nodes)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
            *arguments
        ): name
        for node, name in zip(nodes, names)
    }
    if not asked:
        return []
    ready, silent = ray.wait(list(asked), num_returns=len(asked), timeout=limit_s)
    answers = {asked[each]: _answer(asked[each], each) for each in ready}
    for each in silent:
        with suppress(RayError, ValueError):  # it may have ended just now
            ray.cancel(each, force=True)
        waits_for = " (its GPUs may be taken)" if gpus else ""
        answers[asked[each]] = Answer(node=asked[each], error=f"no answer within {limit_s:.0f} s{waits_for}")
    return [answers[name] for name in names]


def _names(nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Host names, with the address where one stands twice, and the id where that does too."""
    hosts = [str(node.get("NodeManagerHostname") or "") for node in nodes]
    places = [f"{host} ({node['NodeManagerAddress']})" for host, node in zip(hosts, nodes)]
    names = []
    for host, place, node in zip(hosts, places, nodes):
        name = host if host and hosts.count(host) == 1 else place
        names.append(name if hosts.count(host) == 1 or places.count(place) == 1 else f"{host} {node['NodeID'][:8]}")
    return names


def _answer(name: str, task: Any) -> Answer:
    try:
        return Answer(node=name, value=ray.get(task, timeout=30))
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, BaseException) else error
        if isinstance(cause, ModuleNotFoundError):
            return Answer(node=name, error=f"{cause}: this project is not on that node (submit sends it)")
        return Answer(node=name, error=one_line(cause))
    except RuntimeEnvSetupError as error:
        return Answer(node=name, error=f"its environment could not be set up: {one_line(error)}")
    except (RayError, GetTimeoutError) as error:
        return Answer(node=name, error=one_line(error))


# --- what is asked; these run on the nodes ---


def look(requirements: Sequence[str], markers: Sequence[tuple[str, str, str]], paths: Sequence[str]) -> dict[str, Any]:
    """What this node has and sees.

    Args:
        requirements: as `cluster.package.requirements` has them.
        markers: (URI of a folder, name of a file in it, its content).
        paths: local paths.

    Returns:
        `versions`, `unmet` (requirements, with what is there instead), `unseen` (a folder's URI: why its marker cannot
        be read), and `prints` (a path: what tells it from another, None where nothing is there).
    """
    unseen = {}
    for uri, name, content in markers:
        try:
            if Folder(uri).read(name) != content.encode():
                unseen[uri] = "another file stands there"
        except (StorageError, OSError) as error:
            missing = getattr(error, "missing", False)
            unseen[uri] = "what the head wrote is not there: no shared folder" if missing else one_line(error)
    return {
        "versions": {"python": platform.python_version(), **installed(VERSIONS)},
        "unmet": unmet(requirements),
        "unseen": unseen,
        "prints": {path: footprint(path) for path in paths},
    }


def installed(names: Sequence[str]) -> dict[str, str]:
    """The versions of packages in this Python; those that are not there are left out."""
    import importlib.metadata

    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def footprint(path: str) -> list[Any] | None:
    """What tells a place from another: a file's size, or a folder's first names; None where nothing is there."""
    try:
        return sorted(os.listdir(path))[:LISTED] if os.path.isdir(path) else [os.path.getsize(path)]
    except OSError:
        return None


def same_place(one: list[Any] | None, other: list[Any] | None) -> bool:
    """Whether two footprints may be of one place. Folders need one name in common: files come and go meanwhile."""
    return one == other or bool(one and other and set(one) & set(other))


# --- markers, written by who asks ---


class Markers:
    """A small file in each of some folders, for the length of a block, that every node is to read.

    Folders that were not there before are removed again where nothing else has come into them.
    """

    def __init__(self, uris: Sequence[str]):
        self.name, self.content = f"{MARKER}{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
        self.folders = [Folder(uri) for uri in dict.fromkeys(uris)]
        self._made: list[str] = []

    @property
    def asked(self) -> list[tuple[str, str, str]]:
        """As `look` takes them."""
        return [(folder.uri, self.name, self.content) for folder in self.folders]

    def __enter__(self) -> Markers:
        """Writes them. Raises StorageError, with the folder named."""
        try:
            for folder in self.folders:
                if folder.is_local and not os.path.lexists(path := parse_uri(folder.uri).path):
                    self._made.append(path)
                try:
                    folder.write(self.name, self.content.encode())
                except StorageError as error:
                    raise StorageError(
                        f"cannot write to {folder.display}: {error}", retryable=error.retryable
                    ) from error
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for folder in self.folders:
            with suppress(StorageError):  # a marker that stays is skipped by readers, and swept later
                folder.delete([self.name])
        for path in self._made:
            with suppress(OSError):  # somebody else's files are in it by now
                os.rmdir(path)


def told_versions(answers: Sequence[Answer]) -> list[str]:
    """Where the nodes' versions differ: `torch 2.9.0 on h1, 2.13.0 on h2, h3`; empty where all are equal."""
    told = []
    names = sorted({name for each in answers if each.value for name in each.value["versions"]})
    for name in names:
        by_version: dict[str, list[str]] = {}
        for each in answers:
            if each.value:
                by_version.setdefault(each.value["versions"].get(name, "missing"), []).append(each.node)
        if len(by_version) > 1:
            told.append(f"{name} " + ", ".join(f"{v} on {', '.join(nodes)}" for v, nodes in sorted(by_version.items())))
    return told
