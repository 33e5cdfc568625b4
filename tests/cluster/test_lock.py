import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from s3_server import CREDENTIALS, faulty_proxy, make_bucket, shared_moto

from cluster.lock import LOCK_NAME, FileLock, LockHeld, StoreLock
from cluster.storage import Folder, StorageError

_HOLD = """
import sys, time
from cluster.lock import StoreLock
from cluster.storage import Folder
lock = StoreLock(Folder(sys.argv[1]), "run-of-the-child", heartbeat_s=.1, takeover_s=2.0)
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


def _start_holder(uri):
    holder = subprocess.Popen([sys.executable, "-c", _HOLD, uri], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.fixture(scope="module")
def endpoint():
    return shared_moto()


@pytest.fixture
def remote(endpoint, monkeypatch):
    for key, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint, "AWS_MAX_ATTEMPTS": "2"}.items():
        monkeypatch.setenv(key, value)
    return Folder(f"s3://{make_bucket(endpoint)}/store")


def _quick(folder, holder="me", **settings):
    return StoreLock(folder, holder, **{"heartbeat_s": 0.1, "takeover_s": 2.0, **settings})


def test_a_second_run_is_told_who_holds_the_store_until_sigkill_frees_it(tmp_path):
    store = Folder(str(tmp_path / "store"))
    holder = _start_holder(store.uri)
    try:
        with pytest.raises(LockHeld, match=rf"run-of-the-child \(host .+, pid {holder.pid}, since 20..-"):
            StoreLock(store, "second").acquire()
    finally:
        holder.kill()
        holder.wait()
    start = time.monotonic()
    with StoreLock(store, "third") as lock:
        assert not lock.lost
        with pytest.raises(LockHeld, match="in use by run third"):
            StoreLock(store, "fourth").acquire()
    StoreLock(store, "fifth").acquire()
    assert time.monotonic() - start < 2


def test_a_lock_goes_with_its_process_though_its_children_live_on(tmp_path):
    code = """
import os, subprocess, sys, time
from cluster.lock import StoreLock
from cluster.storage import Folder
StoreLock(Folder(sys.argv[1]), "parent").acquire()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], close_fds=False)
running, told = os.pipe()
fork = os.fork()
if not fork:
    os.write(told, b"1")  # only now has it let go of what it shares with its parent
    time.sleep(30)
os.read(running, 1)
print(child.pid, fork, flush=True)
time.sleep(30)
"""
    store = Folder(str(tmp_path))
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", code, store.uri], stdout=subprocess.PIPE, text=True
    )
    children = [int(pid) for pid in parent.stdout.readline().split()]
    try:
        with pytest.raises(LockHeld):
            StoreLock(store, "me").acquire()
        parent.kill()
        parent.wait()
        for pid in children:
            os.kill(pid, 0)  # alive
        StoreLock(store, "me").acquire()
    finally:
        for pid in [parent.pid, *children]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def test_a_forked_child_that_ends_does_not_free_its_parents_lock(tmp_path):
    lock = FileLock(str(tmp_path / "x"))
    assert lock.acquire()
    code = os.fork()
    if not code:
        os._exit(0)
    os.waitpid(code, 0)
    assert not FileLock(str(tmp_path / "x")).acquire()
    lock.release()
    assert FileLock(str(tmp_path / "x")).acquire()


def test_a_store_that_cannot_be_locked_says_why(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="file"):
        StoreLock(Folder(str(tmp_path / "file")), "me").acquire()


def test_remote_lock_names_a_live_holder_quickly_and_is_free_after_release(remote):
    told = []
    with _quick(remote, "first"):
        start = time.monotonic()
        with pytest.raises(LockHeld, match=rf"in use by run first \(host .+, pid {os.getpid()}, since"):
            _quick(remote, "second", takeover_s=30.0, on_wait=told.append).acquire()
        assert time.monotonic() - start < 5
        assert len(told) == 1
        assert "waiting up to 30 s" in told[0]
    start = time.monotonic()
    with _quick(remote, "third", takeover_s=30.0):
        assert json.loads(remote.read(LOCK_NAME))["run"] == "third"
    assert time.monotonic() - start < 5
    assert remote.read(LOCK_NAME) == b"{}"


def test_remote_lock_of_a_killed_run_is_taken_over_after_silence(remote):
    holder = _start_holder(remote.uri)
    holder.kill()
    holder.wait()
    start = time.monotonic()
    with _quick(remote) as lock:
        assert 2.0 <= time.monotonic() - start < 6
        time.sleep(0.5)
        assert not lock.lost
        assert json.loads(remote.read(LOCK_NAME))["beat"] >= 1


def test_of_several_that_take_over_a_silent_lock_exactly_one_wins(remote, endpoint, monkeypatch):
    with faulty_proxy(endpoint, probability=0, serial=True) as proxy:  # moto's own conditional puts are not atomic
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        remote.write(LOCK_NAME, b'{"run": "dead"}')
        locks = [_quick(remote, f"run-{i}") for i in range(5)]
        held = []

        def take(lock):
            try:
                lock.acquire()
            except LockHeld as error:
                held.append(str(error))

        threads = [threading.Thread(target=take, args=(lock,)) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winner = json.loads(remote.read(LOCK_NAME))["run"]
        assert len(held) == 4
        assert all(f"in use by run {winner} " in words for words in held)
        for lock in locks:
            lock.release()


def test_a_holder_whose_lock_was_taken_is_told_and_does_not_take_it_back(remote):
    told = threading.Event()
    lock = _quick(remote, on_lost=told.set)
    lock.acquire()
    remote.write(LOCK_NAME, b'{"run": "thief", "key": "other"}')
    assert told.wait(5)
    assert lock.lost
    lock.release()
    assert json.loads(remote.read(LOCK_NAME))["run"] == "thief"


def test_a_holder_cut_off_from_the_server_stops_before_another_may_take_over(remote, endpoint, monkeypatch):
    told = threading.Event()
    with faulty_proxy(endpoint, kinds=("stall",), probability=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        lock = _quick(remote, on_lost=told.set)
        lock.acquire()
        time.sleep(0.5)
        assert not lock.lost
        proxy.probability = 1.0
        start = time.monotonic()
        while not lock.lost:
            assert time.monotonic() - start < 5
            time.sleep(0.02)
        assert 1.0 < time.monotonic() - start <= 2.5
        assert told.wait(5)
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        lock.release()


def test_a_heartbeat_whose_answer_is_lost_does_not_lose_the_lock(remote, endpoint, monkeypatch):
    with faulty_proxy(endpoint, kinds=("lost",), probability=0, only=lambda method, _: method == "PUT") as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        with _quick(remote, takeover_s=5.0) as lock:
            proxy.max_faults = 2
            proxy.probability = 1.0
            deadline = time.monotonic() + 4
            beat = 0
            while beat < 3 and time.monotonic() < deadline:
                time.sleep(0.1)
                beat = json.loads(remote.read(LOCK_NAME))["beat"] if len(proxy.faults) == 2 else 0
            assert beat >= 3
            assert not lock.lost


def test_a_server_that_ignores_conditions_is_refused(remote, monkeypatch):
    monkeypatch.setattr(Folder, "write_new", Folder.write)
    with pytest.raises(StorageError, match="ignores If-None-Match"):
        _quick(remote).acquire()
    monkeypatch.undo()


def test_heartbeat_and_takeover_must_fit():
    with pytest.raises(ValueError, match="takeover_s"):
        StoreLock(Folder("s3://bucket/x"), "me", heartbeat_s=40, takeover_s=60)
