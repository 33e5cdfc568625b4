"""Whether a cluster can run an extraction: what it needs, what each node has, and which option to change.

A request that no node can hold would wait for ever without a word (RAY.md), so it is checked before the start,
and by node, since a sum over nodes says nothing of a single actor's place. All functions here are pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


class CapacityError(ValueError):
    """The cluster cannot hold what was asked for; the message names what is missing and the option to change."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine of the cluster, as far as scheduling sees it."""

    name: str
    cpus: float
    gpus: float = 0.0
    resources: frozenset[str] = frozenset()
    """Names of the custom resources that it offers."""
    id: str = ""
    """Ray's own name for it, which no later node has."""


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """How many workers of each kind an extraction runs, and what each of them takes."""

    extractors: int
    """Actors that hold the MMA network; 0: each decode slot describes the faces that it has cropped."""
    extractor_cpus: float
    """What one leaves free of its node's CPUs for itself in this plan."""
    extractor_gpus: float
    extractor_threads: int
    """Threads that the network uses on CPUs, inside one actor or slot."""
    decoders: int
    """Tasks that fetch, decode and crop at the same time: decode slots."""
    decode_cpus: float
    decode_resource: str | None = None
    """Custom resource of the nodes that decode; None: all do."""

    @property
    def extractor_claim(self) -> float:
        """CPUs that an actor asks Ray for.

        None beside a GPU: decode tasks that fill its node while it starts, and then wait for it to take their
        faces, would never give a CPU back.
        """
        return 0.0 if self.extractor_gpus else self.extractor_cpus

    def exceeds(self, other: Capacity) -> bool:
        """Whether it has more workers of a kind."""
        return self.decoders > other.decoders or self.extractors > other.extractors

    def told(self) -> str:
        """What a person reads before the start."""
        if not self.extractors:
            return f"{self.decoders} slots of {self.decode_cpus:g} CPU that decode and describe"
        gpus = f", {self.extractor_gpus:g} GPU" if self.extractor_gpus else ""
        where = f" on nodes with {self.decode_resource!r}" if self.decode_resource else ""
        return (
            f"{self.decoders} decode slots of {self.decode_cpus:g} CPU{where}, "
            f"{self.extractors} MMA actors of {self.extractor_cpus:g} CPU{gpus}"
        )


def told_nodes(nodes: Sequence[Node]) -> str:
    """The nodes as a person reads them: `2 CPU` or `4 CPU + 1 GPU` each, with its name."""
    return ", ".join(f"{n.name}: {n.cpus:g} CPU" + (f" + {n.gpus:g} GPU" if n.gpus else "") for n in nodes)


def plan_capacity(
    nodes: Sequence[Node],
    *,
    extractors: int | None = None,
    extractor_gpus: float | None = None,
    decoders: int | None = None,
    decode_cpus: float | None = None,
    decode_resource: str | None = None,
) -> Capacity:
    """Fill in what was left open and check that every worker finds a place.

    With GPUs there is one actor a GPU and a decode slot for each further CPU. Without, there is a slot for each CPU,
    which holds the network itself: nothing travels between processes, and none waits for another. Where actors on CPUs
    are asked for, each takes half a CPU of the count and a slot stands for each CPU still: cores are shared in time, by
    the system. Slots are on all nodes, or on those alone that offer `decode_resource`.

    Args:
        nodes: the live nodes.
        extractors: `--extractors`; None: one a GPU; without GPUs none, or one for four CPUs beside `decode_resource`.
        extractor_gpus: `--extractor-gpus`; None: 1 where the cluster has GPUs, else 0.
        decoders: `--decoders`; None: what fits.
        decode_cpus: `--decode-cpus`; None: 1 with GPUs, else what shares the CPUs evenly.
        decode_resource: `--decode-resource`; None: every node decodes.

    Raises:
        CapacityError: something has no place; names the need, the nodes and the option.
    """
    if not nodes:
        raise CapacityError("the cluster has no live node; start one, or leave --address out to run locally")
    decode = [i for i, node in enumerate(nodes) if decode_resource is None or decode_resource in node.resources]
    if not decode:
        raise CapacityError(
            f"--decode-resource {decode_resource}: no node offers it (the cluster has {told_nodes(nodes)}): start "
            f"decode nodes with ray start --resources '{{\"{decode_resource}\": 1}}', or leave the option out"
        )
    with_gpus = any(node.gpus for node in nodes)
    gpus = (1.0 if with_gpus else 0.0) if extractor_gpus is None else extractor_gpus
    if extractors is None:
        if gpus:
            extractors = max(1, sum(math.floor(node.gpus / gpus) for node in nodes))
        else:
            extractors = max(1, int(sum(n.cpus for n in nodes) // 4)) if decode_resource else 0
    hosts = [node for node in nodes if node.gpus >= min(gpus, 1.0)]
    cpus = 1.0 if gpus and hosts and min(node.cpus for node in hosts) >= 2 else 0.5
    free_cpus, free_gpus = [node.cpus for node in nodes], [node.gpus for node in nodes]
    for count in range(extractors):
        places = [i for i in range(len(nodes)) if free_cpus[i] >= cpus and free_gpus[i] >= gpus]
        if not places:
            option = "--extractor-gpus or --extractors" if gpus else "--extractors"
            raise CapacityError(
                f"MMA actor {count + 1} of {extractors} finds no node with {cpus:g} CPU"
                f"{f' and {gpus:g} GPU' if gpus else ''} free (the cluster has {told_nodes(nodes)}): lower {option}"
            )
        roomiest = max(places, key=lambda i: free_cpus[i])
        free_cpus[roomiest] -= cpus
        free_gpus[roomiest] -= gpus
    if decode_cpus is None:
        decode_cpus = 1.0 if gpus else _even_share([nodes[i] for i in decode], [free_cpus[i] for i in decode])
    fitting = sum(math.floor(free_cpus[i] / decode_cpus + 1e-9) for i in decode)
    wanted = decoders if decoders is not None else max(1, fitting)
    if fitting < wanted:
        where = f" on the {len(decode)} nodes with {decode_resource!r}" if decode_resource else ""
        raise CapacityError(
            f"{wanted} decode slots of {decode_cpus:g} CPU find room for {fitting}{where}"
            f"{f' beside {extractors} MMA actors of {cpus:g} CPU' if extractors else ''} "
            f"(the cluster has {told_nodes(nodes)}): lower --decoders or --decode-cpus"
            f"{', or --extractors' if extractors else ''}"
        )
    share = min(sum(node.cpus for node in nodes) // (extractors or wanted), max(node.cpus for node in nodes))
    threads = 1 if gpus else max(1, int(share))
    return Capacity(
        extractors=extractors,
        extractor_cpus=cpus,
        extractor_gpus=gpus,
        extractor_threads=threads,
        decoders=wanted,
        decode_cpus=decode_cpus,
        decode_resource=decode_resource,
    )


def _even_share(nodes: Sequence[Node], free_cpus: Sequence[float]) -> float:
    """CPUs a slot may claim so that each node holds as many slots as it has whole CPUs, cut to hundredths."""
    shares = [free / math.floor(node.cpus) for node, free in zip(nodes, free_cpus) if node.cpus >= 1 and free > 0]
    return min(1.0, max(0.25, math.floor(100 * min(shares, default=0.25)) / 100))


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many processes train, and what each of them takes of its node."""

    count: int
    """For which there is room now."""
    cpus: float
    gpus: float = 0.0
    span: tuple[int, int] | None = None
    """Least and most of a training that goes on with the nodes that are there; None: always `count`."""

    def told(self) -> str:
        """What a person reads before the start."""
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        span = f" ({self.span[0]} to {self.span[1]} as nodes come and go)" if self.span else ""
        return f"{self.count} training worker{'s' if self.count > 1 else ''}{span} of {self.cpus:g} CPU{gpus}"


def plan_workers(
    nodes: Sequence[Node],
    *,
    count: int,
    least: int | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
) -> Workers:
    """Training workers that all find a place at the same time, as large as they can be.

    Args:
        nodes: the live nodes.
        count: `--num-workers`, or the most of `MIN:MAX`.
        least: the least of `MIN:MAX`: there are as many, up to `count`, as find a place now; None: exactly `count`.
        cpus: `--worker-cpus`; None: the most whole CPUs with which all of them have room.
        gpus: `--worker-gpus`; None: 1 where the cluster has GPUs, else 0.

    Raises:
        CapacityError: they do not fit; names the need, the nodes and the option.
    """
    gpus = (1.0 if any(node.gpus for node in nodes) else 0.0) if gpus is None else gpus

    most_cpus = int(max((node.cpus for node in nodes), default=0))
    sizes = [cpus] if cpus else [float(whole) for whole in range(most_cpus, 0, -1)]
    fitting = _room(nodes, sizes[-1], gpus) if sizes else 0
    needed = count if least is None else least
    if fitting < needed:
        need = f"{sizes[-1] if sizes else 1:g} CPU{f' and {gpus:g} GPU' if gpus else ''}"
        raise CapacityError(
            f"{needed} training workers of {need} each find room for {fitting} "
            f"(the cluster has {told_nodes(nodes) or 'no live node'}): "
            "lower --num-workers, --worker-cpus or --worker-gpus"
        )
    now = min(count, fitting)
    each_cpus = next(size for size in sizes if _room(nodes, size, gpus) >= now)
    return Workers(count=now, cpus=each_cpus, gpus=gpus, span=None if least is None else (least, count))


def _room(nodes: Sequence[Node], cpus: float, gpus: float) -> int:
    """Workers of this size that find a place, counted by node."""
    by_cpus = [math.floor(node.cpus / cpus + 1e-9) for node in nodes]
    if not gpus:
        return sum(by_cpus)
    return sum(min(some, math.floor(node.gpus / gpus + 1e-9)) for some, node in zip(by_cpus, nodes))


def trials_at_once(nodes: Sequence[Node], workers: Workers) -> int:
    """How many trainings of these workers find a place side by side, counted by node.

    Raises CapacityError where not one does: it would wait for ever, without a word.
    """
    slots = _room(nodes, workers.cpus, workers.gpus)
    if slots < workers.count:
        raise CapacityError(
            f"a trial of {workers.told()} finds room for {slots} of them (the cluster has "
            f"{told_nodes(nodes) or 'no live node'}): lower --num-workers, --worker-cpus or --worker-gpus"
        )
    return slots // workers.count
