"""Files that a node lays down once: built by one, mapped by all, and never deleted under anybody's hands."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from mma.store.flatfile import allocated, built_once, digest, mapped


def numbers(path, value: int) -> None:
    allocated(path, np.int64, (4,))[:] = value


def taken(path):
    return mapped(path, np.int64, (4,))


def test_it_is_built_once_and_read_only(tmp_path):
    builds = []

    def build(path):
        builds.append(path)
        time.sleep(0.1)
        numbers(path, 7)

    found = []
    users = [
        threading.Thread(target=lambda: found.append(built_once(tmp_path, "k", "a", build, taken))) for _ in range(4)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert len(builds) == 1
    assert [each.tolist() for each in found] == [[7] * 4] * 4
    with pytest.raises(ValueError, match="read-only"):
        found[0][0] = 1


def test_what_is_mapped_stays_and_what_is_not_goes(tmp_path):
    held = built_once(tmp_path, "k", "a", lambda path: numbers(path, 1), taken)
    built_once(tmp_path, "k", "b", lambda path: numbers(path, 2), taken)  # dropped at once
    built_once(tmp_path, "k", "c", lambda path: numbers(path, 3), taken)
    assert sorted(each.name for each in tmp_path.glob("k-*")) == ["k-a", "k-c"]
    assert held.tolist() == [1] * 4


def test_what_was_asked_for_lately_is_kept_for_a_while(tmp_path):
    for name in "ab":
        built_once(tmp_path, "k", name, lambda path: numbers(path, 1), taken)
    assert sorted(each.name for each in tmp_path.glob("k-*")) == ["k-b"]
    built_once(tmp_path, "k", "c", lambda path: numbers(path, 2), taken, keep_s=60)
    assert sorted(each.name for each in tmp_path.glob("k-*")) == ["k-b", "k-c"]
    long_ago = time.time() - 120
    for name in "bc":
        os.utime(tmp_path / f"k-{name}", (long_ago, long_ago))
    built_once(tmp_path, "k", "c", lambda path: numbers(path, 9), taken)  # asked for again
    built_once(tmp_path, "k", "d", lambda path: numbers(path, 3), taken, keep_s=60)
    assert sorted(each.name for each in tmp_path.glob("k-*")) == ["k-c", "k-d"]


def test_nobody_deletes_a_file_between_its_building_and_its_mapping(tmp_path):
    """Two kinds of content in turn: a builder of one used to delete the other's before it was mapped."""
    failed = []

    def user(name: str) -> None:
        for _ in range(60):
            try:
                array = built_once(tmp_path, "k", name, lambda path: numbers(path, 5), taken)
                assert array.tolist() == [5] * 4
                del array
            except Exception as error:
                failed.append(repr(error))

    users = [threading.Thread(target=user, args=(name,)) for name in "abc"]
    for each in users:
        each.start()
    for each in users:
        each.join()
    assert not failed


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(path):
        numbers(path, 1)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        built_once(tmp_path, "k", "a", build, taken)
    assert not [each for each in tmp_path.iterdir() if "lock" not in each.name]


def test_digests_tell_contents_apart():
    assert digest("a", 1) == digest("a", 1) != digest("a1")
