"""Hosts of their own on one machine: network namespaces on one bridge, each with a link, an address and a host name.

The bridge has an address as well, so that this process reaches every host (a submitting laptop, an S3 client), and
servers here are reached by them. A host's processes are all those in its namespace; nothing else is ever ended. Needs
root and iproute2; `why_not()` says what is missing. A killed test run leaves no process (they die with it), and its
namespaces go with the next run's start.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PREFIX = "mmat"
"""Of the names of namespaces and links; the pid of the test run follows, and a letter for each network of it."""
_LETTERS = itertools.cycle(string.ascii_lowercase)
_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET, _CLONE_NEWUTS, _CLONE_NEWNS = 0x40000000, 0x04000000, 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE, _PR_SET_PDEATHSIG = 0x1000, 0x4000, 0x40000, 1


def why_not() -> str | None:
    """Why this machine makes no hosts, with the mend; None where it does."""
    if not sys.platform.startswith("linux"):
        return "hosts of their own need Linux's network namespaces"
    if os.geteuid() != 0:
        return "network namespaces need root: run the tests as root (in a container, with CAP_SYS_ADMIN, CAP_NET_ADMIN)"
    if shutil.which("ip") is None:
        return "ip is missing: apt-get install iproute2"
    name = f"{PREFIX}{os.getpid()}p"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespace can be made ({tried.stderr.strip()}): give the container CAP_SYS_ADMIN"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return None


def _ip(*words: str) -> str:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Host:
    """One host; made by `network`."""

    name: str
    """Its host name."""
    address: str
    namespace: str
    link: str
    """The bridge's end of its cable."""
    folder: Path
    """Its processes' output, a file each."""
    environment: dict[str, str] = field(default_factory=dict)
    """What its processes get beside this process's own."""
    private: Path | None = None
    """A folder that each host has for itself, though its path is the same on all; all else is shared."""
    _started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, *command: object, log: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen:
        """A process on this host; stdout to `<log>.out` in its folder, stderr to `<log>.err`.

        It ends with this test run: to be called from the main thread, whose end it would take for the run's.
        """
        (self.folder / "private").mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{log}.out", "w") as out, open(self.folder / f"{log}.err", "w") as err:
            process = subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, **self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=self._enter,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def _enter(self) -> None:
        """In the child, before its program: into the host."""
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        handle = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY)
        failed = _LIBC.setns(handle, _CLONE_NEWNET) or _LIBC.unshare(_CLONE_NEWUTS | _CLONE_NEWNS)
        failed = failed or _LIBC.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        if self.private is not None:
            own, place = (os.fsencode(path) for path in (self.folder / "private", self.private))
            failed = failed or _LIBC.mount(own, place, None, _MS_BIND, None)
        if failed:
            os._exit(71)  # a process of no host would be a process of this one
        os.close(handle)
        socket.sethostname(self.name)

    def told(self, log: str, stream: str = "err") -> str:
        """What a process has said so far."""
        return (self.folder / f"{log}.{stream}").read_text(errors="replace")

    def cut(self) -> None:
        """Pull its cable: nobody is told, nothing arrives any more."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        _ip("link", "set", self.link, "up")

    def processes(self) -> list[int]:
        """The processes in this host."""
        return [int(word) for word in _ip("netns", "pids", self.namespace).split()]

    def clear(self, limit_s: float = 15.0) -> None:
        """End all its processes."""
        until = time.monotonic() + limit_s
        while pids := self.processes():
            if time.monotonic() > until:
                raise RuntimeError(f"processes of {self.name} do not end: {pids}")
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self._started:
                process.poll()  # a zombie is still in its namespace
            time.sleep(0.02)
        for process in self._started:
            process.wait()
        self._started.clear()


@dataclass(frozen=True)
class Network:
    """The hosts by name, and the address of this process on their bridge."""

    hosts: dict[str, Host]
    gateway: str

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]


@contextmanager
def network(names: Sequence[str], folder: Path) -> Iterator[Network]:
    """Hosts of these names. Everything is undone at the end, also where making them failed half-way."""
    _sweep()
    subnet = _free_subnet()
    own = f"{PREFIX}{os.getpid()}{next(_LETTERS)}"
    bridge = f"{own}b"
    with ExitStack() as undo:
        _ip("link", "add", bridge, "type", "bridge")
        undo.callback(_quietly, "link", "del", bridge)
        _ip("addr", "add", f"{subnet}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        hosts = {}
        for number, name in enumerate(names, start=1):
            host = Host(
                name, f"{subnet}.{number}", namespace=f"{own}n{number}", link=f"{own}v{number}", folder=folder / name
            )
            _ip("netns", "add", host.namespace)
            undo.callback(_quietly, "netns", "del", host.namespace)
            _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            undo.callback(_quietly, "link", "del", host.link)
            _ip("link", "set", host.link, "master", bridge, "up")
            for words in (("addr", "add", f"{host.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                _ip("-n", host.namespace, *words)
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            undo.callback(host.clear)
            hosts[name] = host
        yield Network(hosts, f"{subnet}.254")


def _quietly(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True)


def _free_subnet() -> str:
    """The first three numbers of a private network that this machine knows no address in."""
    known = _ip("-4", "addr", "show") + _ip("-4", "route", "show")
    return next(each for each in (f"10.77.{number}" for number in range(256)) if f"{each}." not in known)


def _sweep() -> None:
    """Delete what test runs that are gone have left."""
    found = re.findall(rf"\b{PREFIX}(\d+)([a-z]n\d+|p)\b", _ip("netns", "list"))
    links: Any = re.findall(rf"\b{PREFIX}(\d+)([a-z](?:v\d+|b))\b", _ip("-o", "link", "show"))
    for kind, names in (("netns", found), ("link", links)):
        for pid, rest in names:
            if not Path(f"/proc/{pid}").exists():
                if kind == "netns":
                    _end_all(f"{PREFIX}{pid}{rest}")
                _quietly(kind, "del", f"{PREFIX}{pid}{rest}")


def _end_all(namespace: str) -> None:
    for pid in _ip("netns", "pids", namespace).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
