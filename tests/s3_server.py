"""An S3 server (moto, a process of its own) and a proxy that injects faults in front of it, for tests.

Use `shared_moto()` and `faulty_proxy()` directly, or import the fixtures `moto_endpoint` and `s3_bucket` (an empty bucket
a test, with AWS_* set) by name into a test module or conftest.py: all share one server.
"""

import atexit
import ctypes
import functools
import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cluster.storage import Folder

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: a killed test run leaves no server behind


def start_moto(start_limit_s: float = 30.0) -> tuple[str, subprocess.Popen]:
    """Starts moto's server on a free loopback port; its endpoint and its process, which `stop(process)` ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **CREDENTIALS},
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    until = time.monotonic() + start_limit_s
    while True:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=2).close()
            return endpoint, process
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                stop(process)
                raise RuntimeError(f"moto's server did not answer within {start_limit_s:.0f} s") from None
            time.sleep(0.1)


@functools.cache
def shared_moto() -> str:
    """The endpoint of the one moto server of this test process, started by the first who asks; it ends with the process."""
    endpoint, process = start_moto()
    atexit.register(stop, process)
    return endpoint


def stop(process: subprocess.Popen) -> None:
    """Ends the server, by its own process id."""
    process.kill()
    process.wait()


def upload_folder(folder: Path, uri: str) -> None:
    """Copy a folder, with all below it, to an `s3://` place."""
    for path in folder.rglob("*"):
        if path.is_file():
            Folder("/".join((uri, *path.relative_to(folder).parts[:-1]))).write(path.name, path.read_bytes())


def make_bucket(endpoint: str, prefix: str = "test") -> str:
    """A new, empty bucket; its name."""
    name = f"{prefix}-{uuid.uuid4().hex[:12]}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{name}", method="PUT"), timeout=30).close()
    return name


@dataclass
class Proxy:
    """A running proxy; its fields may be changed while it runs."""

    endpoint: str
    """Its URL, for AWS_ENDPOINT_URL."""
    kinds: tuple[str, ...]
    """Faults to draw from: `500`, `503` (SlowDown), `reset`, `stall` (no answer), `cut` (half of the body, then
    closed), `lost` (the request is carried out, its answer is not brought back)."""
    probability: float
    """Of a fault, for each request that `only` selects."""
    max_faults: int
    """After so many the proxy only forwards."""
    stall_s: float
    """How long a stalled request is held, at most."""
    only: Callable[[str, str], bool]
    """Which requests may fail: (method, path with query)."""
    seed: int = 0
    serial: bool = False
    """One request at a time: moto checks and stores in two steps, so its conditional puts are atomic only so."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """What was asked, in order: (method, path with query)."""
    faults: list[str] = field(default_factory=list)
    """What was injected, in order."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self.turn = threading.Lock()
        self.stopped = threading.Event()

    def fail(self, kinds: tuple[str, ...], probability: float, *, seed: int = 0, stall_s: float = 60.0) -> None:
        """Fail from now on, as a new proxy of this seed would."""
        with self._lock:
            self.faults.clear()
            self._random = random.Random(seed)
            self.kinds, self.probability, self.stall_s = kinds, probability, stall_s

    def all_counted(self, retries: int) -> bool:
        """Whether a job's summary counts the requests sent again, but for those after it: its own two files, the lock.

        Resets and lost answers may be mended by the HTTP client itself.
        """
        return retries >= sum(fault in ("500", "503", "stall") for fault in self.faults) - 3 > 0

    def draw(self, method: str, path: str) -> str:
        """The fault for this request, or ''."""
        with self._lock:
            self.requests.append((method, path))
            hit = self.only(method, path) and self._random.random() < self.probability
            if not hit or len(self.faults) >= self.max_faults:
                return ""
            self.faults.append(self._random.choice(self.kinds))
            return self.faults[-1]


@contextmanager
def faulty_proxy(
    upstream: str,
    *,
    kinds: tuple[str, ...] = ("500",),
    probability: float = 1.0,
    seed: int = 0,
    max_faults: int = 10**9,
    stall_s: float = 60.0,
    only: Callable[[str, str], bool] = lambda method, path: True,
    serial: bool = False,
    host: str = "127.0.0.1",
) -> Iterator[Proxy]:
    """A proxy on a free port of `host` in front of an HTTP endpoint, in threads of this process."""
    proxy = Proxy("", kinds, probability, max_faults, stall_s, only, seed, serial)
    server = _Server((host, 0), _Handler)
    server.proxy, server.upstream = proxy, urlsplit(upstream)
    proxy.endpoint = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: Proxy
    upstream: object

    def handle_error(self, request, client_address):  # a client that went away is no news
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_):
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.proxy.draw(self.command, self.path)
        if fault in ("500", "503"):
            self._error(*(("500", "InternalError") if fault == "500" else ("503", "SlowDown")))
        elif fault == "reset":
            self._reset()
        elif fault == "stall":
            self.server.proxy.stopped.wait(self.server.proxy.stall_s)
            self._reset()
        elif self.server.proxy.serial:
            with self.server.proxy.turn:
                self._forward(body, fault)
        else:
            self._forward(body, fault)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

    def _forward(self, body: bytes, fault: str) -> None:
        upstream = http.client.HTTPConnection(self.server.upstream.hostname, self.server.upstream.port, timeout=60)
        try:
            skipped = ("connection", "expect")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in skipped}
            upstream.request(self.command, self.path, body, headers)
            answer = upstream.getresponse()
            if fault == "lost":
                answer.read()
                self._reset()
                return
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("connection", "transfer-encoding", "date", "server"):
                    self.send_header(key, value)
            if answer.length is None and self.command != "HEAD":
                self.send_header("Connection", "close")
                self.close_connection = True
            self.end_headers()
            left = (answer.length or 0) // 2 if fault == "cut" else None
            while piece := answer.read(65536 if left is None else min(65536, left)):
                self.wfile.write(piece)
                left = None if left is None else left - len(piece)
            if fault == "cut":
                self._reset()
        finally:
            upstream.close()

    def _error(self, status: str, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>Injected {code}.</Message></Error>".encode()
        self.send_response(int(status))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _reset(self) -> None:
        # Closing with unsent data dropped sends a reset instead of a tidy end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close_connection = True
        self.connection.close()


@pytest.fixture(scope="session")
def moto_endpoint() -> str:
    """The endpoint of one moto server for all tests of the session."""
    return shared_moto()


@pytest.fixture
def s3_bucket(moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an empty bucket, with AWS_ENDPOINT_URL and dummy credentials in the environment."""
    for key, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": moto_endpoint}.items():
        monkeypatch.setenv(key, value)
    return make_bucket(moto_endpoint)
