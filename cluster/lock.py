"""One run at a time on a store: a lock that names its holder and outlives nobody.

On disks a `flock` on `_lock`, which the kernel drops with the process. On object stores a `_lock` object, written
conditionally: its holder changes it every `heartbeat_s`, and who sees it unchanged for `takeover_s` by his own clock
may replace it; of two who try, one put succeeds. Clocks of two machines are never compared.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import ClassVar

from cluster.localdisk import make_folder, named_errors
from cluster.storage import Folder, StorageError

LOCK_NAME = "_lock"
_log = logging.getLogger(__name__)


class LockHeld(Exception):  # noqa: N818 -- a state of affairs, not a fault
    """Another live run holds the lock; the message says who (host, pid, run) and since when."""


STORE_ERRORS = (ValueError, OSError, StorageError, LockHeld)
"""What can come of opening, locking and reading a store that a person has named."""


class FileLock:
    """A `flock` on a file, held by this process alone: neither exec'd nor forked children keep it alive."""

    # Strong references: a lock that nobody refers to is held until its process ends, and must still not be inherited.
    _held: ClassVar["set[FileLock]"] = set()

    def __init__(self, path: str):
        self.path = path
        self._handle: int | None = None

    def acquire(self, *, wait: bool = False) -> bool:
        """Takes the lock, or says False (or waits). The file is made where needed."""
        with named_errors(self.path):
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(handle)
                return False
            except BaseException:
                os.close(handle)
                raise
        self._handle = handle
        FileLock._held.add(self)
        return True

    def release(self) -> None:
        """Gives the lock back; the file stays, since deleting it would let two hold 'the' lock."""
        if self._handle is not None:
            FileLock._held.discard(self)
            os.close(self._handle)
            self._handle = None

    def write(self, data: bytes) -> None:
        """Replaces the content of the locked file."""
        assert self._handle is not None, "write() needs the lock"
        with named_errors(self.path):
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, data, 0)

    @staticmethod
    def _forget_in_child() -> None:
        # A forked child shares the open file: closing its copy leaves the parent's lock as it is.
        for lock in list(FileLock._held):
            lock.release()


os.register_at_fork(after_in_child=FileLock._forget_in_child)


class StoreLock:
    """The lock of a store, as a context manager; LockHeld if another run has it, StorageError if storage fails.

    `holder` is the run's id. On an object store `acquire` needs up to `heartbeat_s` to see that a holder lives and
    `takeover_s` to see that it does not; `on_wait` is told so once. A holder must look at `lost` before each write:
    it is True once another has taken the lock, or may have since no heartbeat got through for `takeover_s`; `on_lost`
    is called once then, from the heartbeat's thread.
    """

    def __init__(
        self,
        folder: Folder,
        holder: str,
        *,
        heartbeat_s: float = 15.0,
        takeover_s: float = 60.0,
        on_lost: Callable[[], None] | None = None,
        on_wait: Callable[[str], None] | None = None,
    ):
        if not 0 < heartbeat_s * 2 <= takeover_s:
            raise ValueError("takeover_s must be at least twice heartbeat_s")
        self._folder, self._heartbeat_s, self._takeover_s = folder, heartbeat_s, takeover_s
        self._on_lost, self._on_wait = on_lost, on_wait
        self._who = {
            "run": holder,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "key": uuid.uuid4().hex,
        }
        self._flock: FileLock | None = None
        self._version = ""
        self._last_beat_s = 0.0
        self._gone = False
        self.trouble = ""
        """Why the heartbeats that failed last did so, in the server's words; empty after one that got through."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "StoreLock":
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    @property
    def lost(self) -> bool:
        """Whether another run has taken the lock, or may have by now: then nothing more may be written."""
        # By time as well: a process that was stopped for minutes must know before its next heartbeat does.
        late = self._thread is not None and _now_s() - self._last_beat_s > self._takeover_s
        return self._gone or late

    def acquire(self) -> None:
        """Takes the lock or raises LockHeld, which names the holder."""
        if self._folder.is_local:
            self._acquire_flock()
        else:
            self._acquire_object()

    def release(self) -> None:
        """Gives the lock back; harmless without one."""
        if self._flock is not None:
            self._flock.write(b"")
            self._flock.release()
            self._flock = None
        if self._thread is not None:
            lost = self.lost
            self._stop.set()
            self._thread.join()
            self._thread = None
            if not lost and not self._gone:
                try:
                    self._folder.replace_if(LOCK_NAME, b"{}", self._version)
                except StorageError as error:
                    _log.warning("the lock could not be released and lapses in %.0f s: %s", self._takeover_s, error)

    def _acquire_flock(self) -> None:
        path = os.path.join(self._folder.uri, LOCK_NAME)
        with named_errors(self._folder.uri):
            make_folder(self._folder.uri)
        flock = FileLock(path)
        if not flock.acquire():
            raise LockHeld(self._held_by(self._folder.read(LOCK_NAME)))
        flock.write(json.dumps(self._who).encode())
        self._flock = flock

    def _acquire_object(self) -> None:
        asked_s = _now_s()
        try:
            self._version = self._folder.write_new(LOCK_NAME, self._content(0))
        except FileExistsError:
            asked_s = self._take_over()
        self._check_conditions_are_honoured()
        self._last_beat_s = asked_s
        self._stop.clear()
        self._thread = threading.Thread(target=self._beat, name="store-lock", daemon=True)
        self._thread.start()

    def _take_over(self) -> float:
        """Waits until the object is free or has been silent for long enough, and replaces it; its time of asking."""
        seen_version, seen_s, told = None, 0.0, False
        while True:
            content, version = self._folder.read_versioned(LOCK_NAME)
            free = not _parse(content)
            if not free and seen_version not in (None, version):
                raise LockHeld(self._held_by(content))
            if free or (seen_version is not None and _now_s() - seen_s >= self._takeover_s):
                asked_s = _now_s()
                taken = self._folder.replace_if(LOCK_NAME, self._content(0), version)
                if taken is None:
                    raise LockHeld(self._held_by(self._folder.read(LOCK_NAME)))
                self._version = taken
                return asked_s
            if seen_version is None:
                seen_version, seen_s = version, _now_s()
            if self._on_wait and not told:
                told = True
                self._on_wait(
                    f"{self._held_by(content)}; waiting up to {self._takeover_s:.0f} s to see whether it lives"
                )
            time.sleep(min(self._heartbeat_s / 4, 5.0))

    def _check_conditions_are_honoured(self) -> None:
        """A server that ignores the conditions of a put would let two runs write: refuse it."""
        with suppress(FileExistsError):
            self._folder.write_new(LOCK_NAME, b"{}")
            raise StorageError(
                f"{self._folder.display}: this object store ignores If-None-Match, so it cannot be locked"
            )
        if self._folder.replace_if(LOCK_NAME, b"{}", "0" * 32) is not None:
            raise StorageError(f"{self._folder.display}: this object store ignores If-Match, so it cannot be locked")

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(self._heartbeat_s):
            count += 1
            try:
                if not self.lost and self._beat_once(count):
                    self.trouble = ""
                    continue
            except StorageError as error:
                _log.warning("a heartbeat of the lock failed: %s", error)
                self.trouble = f"no heartbeat got through for {_now_s() - self._last_beat_s:.0f} s: {error}"
                continue
            self._gone = True
            if self._on_lost:
                self._on_lost()
            return

    def _beat_once(self, count: int) -> bool:
        """Whether the lock is still ours: changes the object, or finds that another has."""
        for _ in range(2):
            asked_s = _now_s()
            version = self._folder.replace_if(
                LOCK_NAME, self._content(count), self._version, limit_s=self._takeover_s / 2
            )
            if version is not None:
                self._version, self._last_beat_s = version, asked_s
                return True
            # A beat that was given up here may have arrived there all the same: then it is ours to replace.
            content, self._version = self._folder.read_versioned(LOCK_NAME)
            if _parse(content).get("key") != self._who["key"]:
                return False
        return False

    def _content(self, beat: int) -> bytes:
        return json.dumps({**self._who, "beat": beat}).encode()

    def _held_by(self, content: bytes) -> str:
        who = _parse(content)
        if not who:
            return f"{self._folder.display} is in use by another run (which has not given its name yet)"
        return (
            f"{self._folder.display} is in use by run {who.get('run')} (host {who.get('host')}, pid {who.get('pid')}, "
            f"since {who.get('since')})"
        )


def _parse(content: bytes) -> dict:
    """Who a `_lock` names; nothing where it is free, or being written."""
    try:
        who = json.loads(content or b"{}")
    except ValueError:
        return {}
    return who if isinstance(who, dict) else {}


def _now_s() -> float:
    # Goes on while a machine sleeps, as the observer's clock does (Linux; elsewhere monotonic is what there is).
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
