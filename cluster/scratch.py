"""Node-local scratch for remote videos: one file at a time, under a cap that all processes of the node share.

Every process has a folder of its own whose `_owner` file it holds locked. A killed process loses that lock, and the
next start, or the next process that waits for room, deletes what it left. Room is reserved before a byte is fetched:
the sum of the reservations, kept under one locked ledger, never exceeds the cap.
"""

import atexit
import os
import re
import shutil
import stat as stats
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster import storage
from cluster.localdisk import named_errors
from cluster.lock import FileLock
from cluster.uri import StorageError, display, parse_uri

ENVIRONMENT = "MMA_MRNNET_SCRATCH"
CAP_BYTES = 16 * 2**30
_POLL_S = 0.2
_OWN_NAME = re.compile(r"\d+-[0-9a-f]{8}")


def node_folder(root: str | Path | None, kind: str) -> Path:
    """The user's folder for one kind of content (faces, sequences) under `root`, by default where `Scratch` has its
    own; processes of the node share what lies there. It need not exist."""
    parent = Path(root or os.environ.get(ENVIRONMENT) or tempfile.gettempdir()).absolute()
    return parent / f"mma-mrnnet-{kind}-{os.getuid()}"


class Scratch:
    """Scratch space of this process, in a folder of the user under `root` (default $MMA_MRNNET_SCRATCH, or the system's
    temporary folder). Not to be pickled: each process makes its own. Threads may share one.

    `cap_bytes`: most bytes of all processes of the node together. `wait_s`: longest wait for room.
    A process that asks for a second file while it holds one can wait for itself: give back first.
    """

    def __init__(self, root: str | Path | None = None, cap_bytes: int = CAP_BYTES, wait_s: float = 600.0):
        if cap_bytes <= 0:
            raise ValueError(f"--scratch-bytes must be more than 0, not {cap_bytes}")
        # Never the given folder itself: what lies there already must not be taken for scratch and swept.
        self.root = node_folder(root, "scratch")
        self._cap_bytes, self._wait_s = cap_bytes, wait_s
        self._reserved_bytes = 0
        # Only one thread at a time may hold the ledger for this process: its reservation is one number.
        self._threads = threading.Lock()
        _private_folder(self.root)
        with self._ledger():
            self._sweep()
            self._folder = self.root / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
            with named_errors(str(self._folder)):
                self._folder.mkdir(mode=0o700)
            self._owner = FileLock(str(self._folder / "_owner"))
            self._owner.acquire()
        self._pid = os.getpid()
        atexit.register(self.close)

    @property
    def folder(self) -> Path:
        """This process's own folder, for small files that it needs as long as it lives."""
        return self._folder

    def close(self) -> None:
        """Removes this process's folder; done at its end by itself, and by the next start where it was killed."""
        atexit.unregister(self.close)
        if os.getpid() != self._pid:  # a forked child ends: the folder is its parent's
            return
        with self._ledger():
            shutil.rmtree(self._folder, ignore_errors=True)
            self._owner.release()

    def sweep(self) -> int:
        """Deletes the folders of processes that are gone; gives their count. Every start does so by itself."""
        with self._ledger():
            return self._sweep()

    @contextmanager
    def fetched(self, uri: str, size: int | None = None, version: str = "") -> Iterator[Path]:
        """A local file with the content of `uri`, whose name ends with the original's; deleted afterwards.

        A local URI gives its own path. `size` and `version` are the listing's (asked for if not given): a file that has
        changed since is a StorageError, as is one larger than the cap, or no room within `wait_s`.
        """
        if parse_uri(uri).scheme == "file":
            yield storage.fetch(uri, "")
            return
        if size is None:
            found = storage.stat(uri)
            size, version = found.bytes, version or found.version
        self._reserve(size, display(uri))
        local = self._folder / f"{uuid.uuid4().hex[:8]}-{_plain_name(parse_uri(uri).name)}"
        try:
            yield storage.fetch(uri, local, max_bytes=size, version=version)
        finally:
            local.unlink(missing_ok=True)
            with self._ledger():
                self._note(-size)

    def _reserve(self, size: int, shown: str) -> None:
        if size > self._cap_bytes:
            raise StorageError(
                f"{shown}: {size:,} bytes, more than the scratch space of {self._cap_bytes:,}: raise --scratch-bytes"
            )
        until = time.monotonic() + self._wait_s
        while True:
            with self._ledger():
                self._sweep()
                if self._taken() + size <= self._cap_bytes:
                    self._note(size)
                    return
            if time.monotonic() >= until:
                raise StorageError(
                    f"{shown}: no room for {size:,} bytes within {self._wait_s:.0f} s in the {self._cap_bytes:,} of "
                    f"{self.root}: raise --scratch-bytes",
                    retryable=True,
                )
            time.sleep(_POLL_S)

    @contextmanager
    def _ledger(self) -> Iterator[None]:
        lock = FileLock(str(self.root / "_ledger"))
        with self._threads:
            lock.acquire(wait=True)
            try:
                yield
            finally:
                lock.release()

    def _taken(self) -> int:
        total = 0
        for note in self.root.glob("*/_reserved"):
            with suppress(FileNotFoundError):
                total += int(note.read_text() or 0)
        return total

    def _note(self, more_bytes: int) -> None:
        self._reserved_bytes += more_bytes
        with named_errors(str(self._folder)):
            (self._folder / "_reserved").write_text(str(self._reserved_bytes))

    def _sweep(self) -> int:
        """Needs the ledger: a folder is made and its owner locked under it, so none is seen in between."""
        swept = 0
        for folder in self.root.iterdir():
            if not _OWN_NAME.fullmatch(folder.name) or folder == getattr(self, "_folder", None):
                continue
            owner = FileLock(str(folder / "_owner"))
            if owner.acquire():
                shutil.rmtree(folder, ignore_errors=True)
                owner.release()
                swept += 1
        return swept


def _private_folder(root: Path) -> None:
    with named_errors(str(root)):
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = root.lstat()
    # Anybody may make a folder or a link of this name in a shared temporary folder.
    if not stats.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StorageError(
            f"{root}: scratch must be a folder of this user that nobody else can write to; set {ENVIRONMENT} to another"
        )
    root.chmod(0o700)  # made by hand, perhaps: faces are nobody else's to look at


def _plain_name(name: str) -> str:
    """The end of a name, its extension with it, in letters that no tool reads anything into."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:].lstrip("-.") or "video"
