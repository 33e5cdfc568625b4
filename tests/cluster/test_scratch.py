import itertools
import os
import subprocess
import sys
import threading
import time

import pytest
from s3_server import CREDENTIALS, make_bucket, shared_moto

from cluster.scratch import Scratch
from cluster.storage import Folder, StorageError


@pytest.fixture(scope="module")
def endpoint():
    return shared_moto()


@pytest.fixture
def videos(endpoint, monkeypatch):
    for key, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(key, value)
    folder = Folder(f"s3://{make_bucket(endpoint)}/videos")
    for name in ("a.mp4", "b.mp4"):
        folder.write(name, name.encode() * 20)  # 100 bytes each
    return folder


@pytest.fixture
def scratch(tmp_path):
    scratch = Scratch(tmp_path, cap_bytes=150, wait_s=0.5)
    yield scratch
    scratch.close()


def _files(root):
    return sorted(p.name for p in root.rglob("*") if p.is_file() and p.name not in ("_owner", "_ledger", "_reserved"))


def test_a_remote_video_is_a_regular_local_file_for_as_long_as_it_is_used(scratch, videos, tmp_path):
    with scratch.fetched(videos.uri_of("a.mp4"), 100) as local:
        assert local.is_file()
        assert not local.is_symlink()
        assert local.name.endswith("-a.mp4")
        assert local.read_bytes() == b"a.mp4" * 20
    assert _files(tmp_path) == []


def test_its_name_is_harmless_whatever_the_key_is(scratch, videos, tmp_path):
    for name in ["a b;rm -rf $HOME.mp4", "..%2f..%2fx.mp4", "ü" * 50 + ".mp4", "..mp4"]:
        videos.write(name, b"1")
        with scratch.fetched(videos.uri_of(name)) as local:
            assert local.parent.parent == scratch.root
            assert local.name.isascii()
            assert not set(local.name) & set(" ;$%/")
            assert local.name.endswith("mp4")


def test_a_local_video_is_not_copied(scratch, tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"1" * 1000)
    with scratch.fetched(str(tmp_path / "v.mp4"), 1000) as local:
        assert local == tmp_path / "v.mp4"
    assert local.exists()


def test_a_failed_fetch_and_a_failed_use_give_the_room_back(scratch, videos, tmp_path):
    with pytest.raises(StorageError, match="does not exist"), scratch.fetched(videos.uri_of("none.mp4"), 100):
        pass
    with pytest.raises(StorageError, match="100 bytes, more than the 99 expected"):
        scratch.fetched(videos.uri_of("a.mp4"), 99).__enter__()
    with pytest.raises(RuntimeError), scratch.fetched(videos.uri_of("a.mp4"), 100):
        raise RuntimeError
    with scratch.fetched(videos.uri_of("a.mp4"), 150):
        assert len(_files(tmp_path)) == 1
    assert _files(tmp_path) == []


def test_a_video_larger_than_the_cap_names_the_option(scratch, videos):
    with pytest.raises(StorageError, match="151 bytes, more than the scratch space of 150: raise --scratch-bytes") as e:
        scratch.fetched(videos.uri_of("a.mp4"), 151).__enter__()
    assert not e.value.retryable


def test_no_room_in_time_names_the_option_and_is_no_fault_of_the_video(scratch, videos):
    with scratch.fetched(videos.uri_of("a.mp4"), 100):
        with pytest.raises(StorageError, match=r"no room for 100 bytes within 0 s in the 150 .*--scratch-bytes") as e:
            scratch.fetched(videos.uri_of("b.mp4"), 100).__enter__()
        assert e.value.retryable


_USE = """
import sys, time
from cluster.scratch import Scratch
scratch = Scratch(sys.argv[1], cap_bytes=150, wait_s=30)
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    with scratch.fetched(sys.argv[2], 100) as local:
        print("in", time.monotonic(), flush=True)
        time.sleep(float(sys.argv[4]))
        print("out", time.monotonic(), flush=True)
"""


def _start(root, uri, times, hold_s):
    process = subprocess.Popen(
        [sys.executable, "-c", _USE, str(root), uri, str(times), str(hold_s)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_keep_to_the_cap_together(videos, tmp_path):
    users = [_start(tmp_path, videos.uri_of(name), 3, 0.1) for name in ("a.mp4", "b.mp4")]
    spans = []
    for user in users:
        lines = user.communicate(timeout=30)[0].split()
        times = [float(word) for word in lines if word[0].isdigit()]
        assert len(times) == 6
        spans += list(zip(times[::2], times[1::2]))
    spans.sort()
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans)), "two files of 100 bytes at once"
    assert _files(tmp_path) == []


def test_what_a_killed_process_left_is_gone_at_the_next_start_and_a_live_ones_stays(videos, tmp_path):
    killed = _start(tmp_path, videos.uri_of("a.mp4"), 1, 60)
    assert killed.stdout.readline().startswith("in")
    killed.kill()
    killed.wait()
    assert len(_files(tmp_path)) == 1
    (tmp_path / "my videos").mkdir()
    (tmp_path / "my videos" / "x.mp4").write_bytes(b"1")
    live = _start(tmp_path, videos.uri_of("b.mp4"), 1, 60)
    try:
        assert live.stdout.readline().startswith("in")
        names = _files(tmp_path)
        assert len(names) == 2
        assert any(name.endswith("-b.mp4") for name in names)
        second = Scratch(tmp_path, cap_bytes=150)
        assert _files(tmp_path) == names, "the live process's file, and the stranger's folder, stay"
        second.close()
    finally:
        live.kill()
        live.wait()


def test_who_waits_for_room_gets_that_of_a_process_killed_meanwhile(videos, tmp_path):
    holder = _start(tmp_path, videos.uri_of("a.mp4"), 1, 60)
    assert holder.stdout.readline().startswith("in")
    waiting = Scratch(tmp_path, cap_bytes=150, wait_s=20)
    threading.Timer(0.5, holder.kill).start()
    start = time.monotonic()
    with waiting.fetched(videos.uri_of("b.mp4"), 100):
        assert time.monotonic() - start > 0.4
    holder.wait()
    waiting.close()


def test_a_clean_exit_removes_its_folder_and_a_forked_child_does_not(videos, tmp_path):
    code = """
import os, sys
from cluster.scratch import Scratch
scratch = Scratch(sys.argv[1])
if not os.fork():
    sys.exit()
os.wait()
assert scratch._folder.exists()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], check=True)
    [root] = tmp_path.iterdir()
    assert [p.name for p in root.iterdir()] == ["_ledger"]


def test_the_root_is_private_and_a_strangers_is_refused(scratch, tmp_path, monkeypatch):
    assert scratch.root.stat().st_mode & 0o777 == 0o700
    open_root = tmp_path / "open" / f"mma-mrnnet-scratch-{os.getuid()}"
    open_root.mkdir(parents=True)
    open_root.chmod(0o777)
    with pytest.raises(StorageError, match="set MMA_MRNNET_SCRATCH to another"):
        Scratch(tmp_path / "open")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / open_root.name).symlink_to(tmp_path)
    with pytest.raises(StorageError, match="set MMA_MRNNET_SCRATCH"):
        Scratch(tmp_path / "linked")
    monkeypatch.setenv("MMA_MRNNET_SCRATCH", str(tmp_path / "chosen"))
    chosen = Scratch()
    assert chosen.root.parent == tmp_path / "chosen"
    chosen.close()


def test_a_cap_of_nothing_is_refused():
    with pytest.raises(ValueError, match="--scratch-bytes"):
        Scratch(cap_bytes=0)
