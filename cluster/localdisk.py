"""Files on local (or mounted) disks: written whole or not at all, listed and walked safely.

Crash windows of a write: before the rename only `_tmp-*` exists, which readers skip and a sweep deletes; after it the
whole file stands under its name, and the folder's fsync makes the name last. No instant shows half a file.
"""

import errno
import os
import shutil
import stat as stats
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from cluster.uri import StorageError, display

TEMPORARY = "_tmp-"
# A stale mount, a full disk or a dead link is no fault of the one file.
_NODE_FAULTS = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
}
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}


@contextmanager
def named_errors(path: str) -> Iterator[None]:
    """Turns an OSError on `path` into a one-line StorageError; FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise StorageError(
            f"{display(path)}: {error.strerror or error}",
            retryable=error.errno in _NODE_FAULTS,
            missing=error.errno in (errno.ENOENT, errno.ENOTDIR),
        ) from error


def version_of(path: str) -> str:
    """What changes when the file does: its modification time, in nanoseconds."""
    return str(os.stat(path).st_mtime_ns)


def make_folder(path: str) -> None:
    """Makes the folder and its parents where needed; NotADirectoryError where a file has the name."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from error


def write(path: str, data: bytes, *, create: bool = False) -> None:
    """Puts the file there as a whole, and its folder where needed; `create`: FileExistsError if something is there."""
    folder, name = os.path.split(path)
    make_folder(folder)
    # Names may be 255 bytes long, so the temporary one holds only the beginning of it.
    temporary = os.path.join(folder, f"{TEMPORARY}{name[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if create:
            _link(temporary, path)
        else:
            os.replace(temporary, path)
        _sync_folder(folder)
    finally:
        with suppress(FileNotFoundError):  # renamed
            os.unlink(temporary)


def copy(source: str | os.PathLike[str], path: str) -> None:
    """Puts a copy of a file there as a whole, over what was there; its folder where needed."""
    folder, name = os.path.split(path)
    make_folder(folder)
    temporary = os.path.join(folder, f"{TEMPORARY}{name[:40]}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with open(source, "rb") as original, open(temporary, "xb") as file:
            shutil.copyfileobj(original, file, 8 * 2**20)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(folder)
    finally:
        with suppress(FileNotFoundError):  # renamed
            os.unlink(temporary)


def _link(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # No hard links here (some mounts of object stores): claim the name, then fill it with a rename.
        # A crash between the two leaves an empty file under the name.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(temporary, path)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems refuse to sync a folder: their rename is all there is
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def regular_file(path: str) -> os.stat_result:
    """The stat of a regular file (links followed); OSError or StorageError for a folder, a pipe, a device."""
    found = os.stat(path)
    if not stats.S_ISREG(found.st_mode):
        raise StorageError(f"{display(path)}: {'a folder' if stats.S_ISDIR(found.st_mode) else 'no regular file'}")
    return found


def walk(folder: str) -> Iterator[tuple[str, os.stat_result | None]]:
    """Paths and stats of all files below, hidden ones left out, in order; links are followed, each folder entered once.

    Pipes and devices are left out; links that lead nowhere are not (None), so that a video behind one is not lost
    silently.
    """

    def refuse(error: OSError) -> None:
        with named_errors(error.filename or folder):
            raise error

    seen = set()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        found = os.stat(here)
        if (found.st_dev, found.st_ino) in seen:  # a link back up: its subtree is being walked already
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in files if not name.startswith(".")):
            path = os.path.join(here, name)
            try:
                file = os.stat(path)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ELOOP):
                    raise
                yield path, None
                continue
            if stats.S_ISREG(file.st_mode):
                yield path, file
