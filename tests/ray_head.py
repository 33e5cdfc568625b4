"""A Ray head with its job server, on loopback, with a token of its own: a cluster that tests submit to."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = Path(sys.executable).parent / "ray"


@dataclass(frozen=True)
class Head:
    """A running head."""

    url: str
    """Of its job server."""
    address: str
    """For drivers: host:port."""
    token: str
    folder: Path
    """Its own folder, logs and all; short, since Ray puts sockets there."""

    def logs(self) -> str:
        """Everything that Ray and the jobs have written there as text, in one."""
        texts = []
        for path in sorted(self.folder.rglob("*")):
            with contextlib.suppress(OSError):  # sockets, and files that go meanwhile
                if path.is_file():
                    texts.append(path.read_bytes().decode("utf-8", "replace"))
        return "\n".join(texts)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has at the moment."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def ray_head(variables: Mapping[str, str], *, num_cpus: int = 2, limit_s: float = 120.0) -> Iterator[Head]:
    """Start a head whose jobs find `variables` in their environment; its processes end with the block."""
    folder = Path(tempfile.mkdtemp(prefix="mmh-", dir="/tmp"))
    port, dashboard, agent, metrics = free_ports(4)
    head = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", os.urandom(32).hex(), folder)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_", "MLFLOW_"))
    }
    environment |= {
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": head.token,
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        **variables,
    }
    command = [
        str(RAY), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}",
        f"--num-cpus={num_cpus}", "--object-store-memory=100000000", f"--temp-dir={folder / 'ray'}",
    ]  # fmt: skip
    with open(folder / "start.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        until_s = time.monotonic() + limit_s
        while not answers(head):
            assert process.poll() is None, (folder / "start.log").read_text()
            assert time.monotonic() < until_s, (folder / "start.log").read_text()
            time.sleep(0.3)
        yield head
    finally:
        end(process)
        shutil.rmtree(folder, ignore_errors=True)


def answers(head: Head) -> bool:
    """Whether the job server takes requests."""
    request = urllib.request.Request(f"{head.url}/api/jobs/", headers={"Authorization": f"Bearer {head.token}"})
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except OSError:
        return False
    return True


def end(process: subprocess.Popen) -> None:
    """End the head and every process that it has started, each by its own id."""
    own = [process.pid]
    with contextlib.suppress(psutil.NoSuchProcess):
        own += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=15)
    for pid in own:
        with contextlib.suppress(psutil.NoSuchProcess):
            left = psutil.Process(pid)
            left.kill()
            left.wait(timeout=10)
