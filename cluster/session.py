"""Ray sessions: a local Ray by default, a cluster's by its address; what its nodes have; and how a run is stopped."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import ray
from ray.exceptions import AuthenticationError

from cluster.capacity import Node

LOCAL = "local"
KNOCK_S = 10.0
"""How long a cluster's address may take to answer at all."""


class SessionError(Exception):
    """Ray could not be started or reached; the message names the option and the mend."""


class Stop:
    """What SIGTERM and Ctrl-C do: end the process at once while it has nothing to save, else ask it to stop.

    `soft` is set by whoever can stop in an orderly way; the driver then looks at `signal` between two batches. A second
    signal ends the process in any case.
    """

    def __init__(self) -> None:
        self.soft = False
        """Whether a first signal only asks."""
        self.signal: int | None = None
        """Number of the signal that asked, or None."""

    def arm(self) -> None:
        """Take the signals over; to be called again after `ray.init`, which installs handlers of its own."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if not self.soft or self.signal is not None:
            raise SystemExit(128 + number)
        self.signal = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + (self.signal or 0)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGTERM and Ctrl-C as `Stop` has them, for the length of the block."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stop.arm()
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ray_session(
    address: str | None = None, *, num_cpus: int | None = None, stop: Stop | None = None
) -> Iterator[list[Node]]:
    """A connection to Ray, ended with the block; yields the live nodes.

    Args:
        address: `--address`: a cluster's `host:port`, `auto`, or `local`; None takes `RAY_ADDRESS` where a job
            server has set it, else a Ray of this process's own.
        num_cpus: CPUs of a local Ray; None: as many as the machine has.
        stop: the process's signal handling, armed again after Ray has installed its own.

    A session that stands already in this process is used and left standing. Local sessions say `local`
    outright, since a stale note of an earlier cluster would be followed otherwise (RAY.md).

    Raises:
        SessionError: the cluster does not answer, or Ray could not be started.
    """
    if ray.is_initialized():
        yield live_nodes()
        return
    target = target_address(address)
    # Ray's workers would print into the progress display; what matters comes back as rows and counts.
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors reach the driver as exceptions
    if target == LOCAL:
        settings |= {"num_cpus": num_cpus, "include_dashboard": False}
    try:
        _knock(target)
        ray.init(address=target, **settings)
    except (AuthenticationError, OSError, RuntimeError, ValueError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise SessionError(f"--address {target}: {first}. Is it up, and is its token the one of this user?") from error
    except SystemExit as error:  # Ray's own handler, while it starts: exits with the signal's bare number
        raise SystemExit(128 + error.code if error.code in (signal.SIGTERM, signal.SIGINT) else error.code) from None
    if stop is not None:
        stop.arm()
    try:
        yield live_nodes()
    finally:
        ray.shutdown()


def _knock(target: str) -> None:
    """OSError where nothing listens at host:port: Ray itself would try for many minutes, and warn all the while."""
    host, _, port = target.rpartition(":")
    if host and port.isdigit() and "://" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


def target_address(address: str | None) -> str:
    """Where a job runs: `--address`, else what a job server has set, else `local`."""
    return address or os.environ.get("RAY_ADDRESS") or LOCAL


def live_nodes() -> list[Node]:
    """The nodes that are alive, with what Ray counts on them."""
    return [
        Node(
            name=str(node.get("NodeManagerHostname") or node["NodeID"][:8]),
            cpus=float(node["Resources"].get("CPU", 0.0)),
            gpus=float(node["Resources"].get("GPU", 0.0)),
            resources=frozenset(node["Resources"]),
            id=node["NodeID"],
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
