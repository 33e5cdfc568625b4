"""A Ray cluster over hosts of their own, and an S3 server on a further one, for tests of several nodes and lost ones."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from faults import fault_environment, opened_videos
from host_network import Host, Network, network
from s3_server import CREDENTIALS, Proxy, faulty_proxy

NAMES, S3_HOST = ("h1", "h2", "h3"), "s3"
HEAD = NAMES[0]
PORT, S3_PORT = 6379, 5000
START_S = 90.0
LOSS = {
    # A lost node is known as lost after some 4 s, and not after 30.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
RAY = Path(sys.executable).parent / "ray"


class Job(NamedTuple):
    """A job that runs on a host."""

    host: Host
    log: str
    process: subprocess.Popen

    @property
    def told(self) -> str:
        """Its words for people so far."""
        return self.host.told(self.log)

    def wait_for(self, condition: Callable[[], Any], what: str, limit_s: float = 120.0) -> None:
        """Until the condition holds, which must be before the job ends."""
        wait_until(condition, what, limit_s, self.process, lambda: self.told)

    def ended(self, limit_s: float = 240.0) -> dict[str, Any]:
        """Its summary, {} where it left none, when it has ended."""
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job did not end within {limit_s:.0f} s: {self.told[-3000:]}") from None
        out = self.host.told(self.log, "out").strip()
        return json.loads(out) if out else {}


class RayHosts:
    """The cluster: `h1` is its head. Each host has a scratch and a record of what its decoders opened of its own.

    A token of its own keeps everybody else out: it is in `environment`, which all processes of the hosts have.
    """

    def __init__(self, net: Network, proxy: Proxy, cpus: float) -> None:
        self.net, self.proxy, self.cpus = net, proxy, cpus
        self.s3 = proxy.endpoint
        """The S3 server as the hosts and this process reach it: through `proxy`, which fails when it is told to."""
        self.address = f"{net[HEAD].address}:{PORT}"
        self.environment = {
            **CREDENTIALS,
            **LOSS,
            "AWS_ENDPOINT_URL": self.s3,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._temporary = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # paths of sockets must be short
        for host in net.hosts.values():
            scratch = {"MMA_MRNNET_SCRATCH": str(host.folder / "scratch")}
            host.environment = {**self.environment, **scratch, **fault_environment(host.folder, {"*": "count"})}
            host.private = self._temporary
        self._options: dict[str, tuple[str, ...]] = {}
        self._lost: set[str] = set()

    def close(self) -> None:
        """End the hosts' processes and remove Ray's files."""
        for host in self.net.hosts.values():
            host.clear()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def start(self, *names: str, options: Mapping[str, Sequence[str]] | None = None) -> None:
        """Start Ray on these hosts, the head first, and wait until they have joined; `options` of `ray start` a host."""
        for group in ([HEAD] if HEAD in names else [], [name for name in names if name != HEAD]):
            lives = {name: self._start(name, tuple((options or {}).get(name, ()))) for name in group}
            for name, process in lives.items():
                host = self.net[name]
                wait_until(
                    lambda host=host: "Ray runtime started." in host.told("ray", "out"), f"Ray runs on {name}", START_S,
                    process, lambda host=host: host.told("ray", "out") + host.told("ray"),
                )  # fmt: skip

    def _start(self, name: str, options: tuple[str, ...]) -> subprocess.Popen:
        host = self.net[name]
        self._options[name] = options
        place: tuple[object, ...] = ("--address", self.address)
        if name == HEAD:
            place = ("--head", "--port", PORT, "--temp-dir", str(self._temporary))
            place += () if "--dashboard-host" in options else ("--include-dashboard", "false")
        return host.start(
            RAY, "start", *place, "--node-ip-address", host.address, "--num-cpus", f"{self.cpus:g}",
            "--object-store-memory", "200000000", "--disable-usage-stats", "--block", *options, log="ray",
        )  # fmt: skip

    def cut(self, name: str) -> None:
        """Take a host's link down."""
        self.net[name].cut()
        self._lost.add(name)

    def restore(self) -> None:
        """Bring back the hosts that were cut off, as new nodes: Ray takes none back that it has called dead."""
        for name in sorted(self._lost):
            self.net[name].clear()
            self.net[name].mend()
            self.start(name, options={name: self._options[name]})
        self._lost.clear()

    def job(self, *words: object, log: str = "job", **environment: str) -> Job:
        """A job of this project as a process on the head, on this cluster."""
        command = (sys.executable, "-m", "jobs", *words, "--address", self.address)
        return Job(self.net[HEAD], log, self.net[HEAD].start(*command, log=log, environment=environment))

    def opened(self, name: str) -> list[str]:
        """File names of the videos that this host's decoders have opened."""
        return opened_videos(self.net[name].folder)


@contextmanager
def ray_hosts(folder: Path, *, cpus: float = 1.0) -> Iterator[RayHosts]:
    """Three hosts, and a fourth with the S3 server (its objects in memory), which runs; Ray is yet to be started."""
    with network((*NAMES, S3_HOST), folder) as net:
        server = net[S3_HOST]
        endpoint = f"http://{server.address}:{S3_PORT}"
        process = server.start(sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", S3_PORT, log="moto")
        wait_until(lambda: _answers(f"{endpoint}/moto-api/"), "the S3 server answers", 30, process)
        with faulty_proxy(endpoint, host=net.gateway, probability=0.0) as proxy:
            cluster = RayHosts(net, proxy, cpus)
            try:
                yield cluster
            finally:
                cluster.close()


def wait_until(
    condition: Callable[[], Any],
    what: str,
    limit_s: float,
    process: subprocess.Popen | None = None,
    told: Callable[[], str] = lambda: "",
) -> None:
    """Wait for a condition; AssertionError with what was told where the process ends before, or time runs out."""
    until = time.monotonic() + limit_s
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended ({process.returncode}) before {what}: {told()[-3000:]}")
        if time.monotonic() > until:
            raise AssertionError(f"not within {limit_s:.0f} s: {what}. {told()[-3000:]}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True
