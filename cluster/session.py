"""Ray sessions: a local Ray by default, a cluster's by its address; what its nodes have; and how a run is stopped."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray

from cluster.capacity import Node

LOCAL = "local"


class Stop:
    """Whether a person or the system has asked the run to stop; a second request ends it at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """Number of the signal that came, or None."""

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + (self.signal or 0)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Turn SIGTERM and Ctrl-C into a flag that the driver looks at between two batches.

    Enter it after `ray_session`, since Ray installs handlers of its own in `ray.init`.
    """
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ray_session(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[list[Node]]:
    """A connection to Ray, ended with the block; yields the live nodes.

    Args:
        address: `--address`: a cluster's `host:port`, `auto`, or `local`; None takes `RAY_ADDRESS` where a job
            server has set it, else a Ray of this process's own.
        num_cpus: CPUs of a local Ray; None: as many as the machine has.

    A session that stands already in this process is used and left standing. Local sessions say `local`
    outright, since a stale note of an earlier cluster would be followed otherwise (RAY.md).
    """
    if ray.is_initialized():
        yield live_nodes()
        return
    target = address or os.environ.get("RAY_ADDRESS") or LOCAL
    # Ray's workers would print into the progress display; what matters comes back as rows and counts.
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach the driver as exceptions
    if target == LOCAL:
        ray.init(address=LOCAL, num_cpus=num_cpus, **common)
    else:
        common.pop("include_dashboard")
        ray.init(address=target, **common)
    try:
        yield live_nodes()
    finally:
        ray.shutdown()


def live_nodes() -> list[Node]:
    """The nodes that are alive, with what Ray counts on them."""
    return [
        Node(
            name=str(node.get("NodeManagerHostname") or node["NodeID"][:8]),
            cpus=float(node["Resources"].get("CPU", 0.0)),
            gpus=float(node["Resources"].get("GPU", 0.0)),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def local_node(num_cpus: int | None) -> Node:
    """This machine as a local Ray would count it, without starting one: lets an impossible request fail at once."""
    from ray._private.accelerators import NvidiaGPUAcceleratorManager
    from ray._private.utils import get_num_cpus

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    else:
        gpus = len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    return Node(name="this machine", cpus=float(num_cpus or get_num_cpus()), gpus=float(gpus))
