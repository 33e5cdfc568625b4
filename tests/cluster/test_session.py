"""A cluster that cannot be had is one line, at once."""

from __future__ import annotations

import socket
import time

import pytest
import ray
from ray.exceptions import AuthenticationError
from ray_head import free_ports

from cluster import session
from cluster.session import SessionError, ray_session


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process of its own: the tests' Ray is not taken."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **settings: pytest.fail("Ray was asked, which waits for minutes"))


def test_an_address_where_nothing_listens_is_told_at_once():
    started_s = time.monotonic()
    (port,) = free_ports(1)
    with pytest.raises(SessionError, match=rf"--address 127.0.0.1:{port}: .*refused\. Is it up"):
        ray_session(f"127.0.0.1:{port}").__enter__()
    assert time.monotonic() - started_s < 5


def test_a_host_that_never_answers_is_told_in_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "KNOCK_S", 0.2)
    # A queue of one that is full: further connections are neither taken nor refused.
    with socket.socket() as silent, socket.socket() as first, socket.socket() as second:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(silent.getsockname())
        with pytest.raises(SessionError, match="timed out"):
            ray_session(f"127.0.0.1:{silent.getsockname()[1]}").__enter__()


def test_a_token_of_another_cluster_is_told(monkeypatch: pytest.MonkeyPatch):
    def refuse(**settings: object) -> None:
        raise AuthenticationError("Unauthorized")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.socket() as cluster:
        cluster.bind(("127.0.0.1", 0))
        cluster.listen()
        with pytest.raises(SessionError, match=r"Unauthorized.*its token"):
            ray_session(f"127.0.0.1:{cluster.getsockname()[1]}").__enter__()
