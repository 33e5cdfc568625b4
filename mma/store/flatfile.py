"""Arrays that a node lays down once and all its processes map: built by who needs them first, deleted when unused.

The name says what the content is (a digest of the store's files and of what was asked), so a changed store makes
another file. A mapped file is held by a shared lock that lives exactly as long as its mapping, so that a build can
delete every file of its kind that nobody uses.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Mapped = TypeVar("Mapped")


def digest(*told: object) -> str:
    """A name for what the arguments say, all of them plain values."""
    return hashlib.blake2b(repr(told).encode(), digest_size=16).hexdigest()


def built_once(
    scratch: Path,
    kind: str,
    name: str,
    build: Callable[[Path], None],
    use: Callable[[Path], Mapped],
    *,
    keep_s: float = 0.0,
) -> Mapped:
    """What `use` makes of the file `<kind>-<name>` of a scratch folder, which `build` makes where it is not there.

    Whoever comes meanwhile waits, until `use` has mapped the file too: files of the same kind that nobody maps, and
    nobody has asked for within `keep_s` seconds, are deleted before another is built.
    """
    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = scratch / f"{kind}-{name}"
    with _locked(scratch / f"_{kind}-lock"):
        if not path.exists():
            _delete_unused(scratch, kind, keep_s)
            temporary = scratch / f"_tmp-{kind}-{os.getpid()}"
            try:
                build(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        os.utime(path)
        return use(path)


def mapped(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.ndarray:
    """The file as a read-only array, held until the last view of it is gone. The first size may be -1: all there is."""
    with open(path, "rb") as file:
        # mmap keeps a duplicate of the descriptor, and with it the lock, until the last view of the map is gone.
        fcntl.flock(file, fcntl.LOCK_SH)
        if 0 in shape:  # nothing can be mapped
            return np.zeros(shape, dtype)
        if shape[0] == -1:
            return np.memmap(file, dtype, mode="r").reshape(shape)
        return np.memmap(file, dtype, mode="r", shape=shape)


def allocated(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new writable file of this size. Raises OSError where the disk is too small: under a mapping, a full disk would
    kill the process."""
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "r+b") as target:
        os.posix_fallocate(target.fileno(), 0, count)
        return np.memmap(target, dtype, mode="r+", shape=shape)


def _delete_unused(scratch: Path, kind: str, keep_s: float) -> None:
    """Needs the kind's lock: nobody maps a file in between, and whoever built a temporary one is gone."""
    kept = {path for path in scratch.glob(f"{kind}-*") if time.time() - path.stat().st_mtime < keep_s}
    for old in [*scratch.glob(f"_tmp-{kind}-*"), *(set(scratch.glob(f"{kind}-*")) - kept)]:
        with open(old, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            old.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
