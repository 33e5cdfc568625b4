"""Stores and outputs wherever they lie: one `Folder` for local disks and object stores, and `fetch` for remote videos.

Nothing else in this project opens a store's or an output's files; nothing here asks what they hold. Errors are
`StorageError` (one line, the server's words), wrong URIs and names `ValueError`.
"""

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import localdisk, s3
from cluster.localdisk import TEMPORARY, named_errors
from cluster.uri import StorageError, Uri, check_name, display, parse_uri

if TYPE_CHECKING:
    import pyarrow.fs

__all__ = ["FileInfo", "Folder", "StorageError", "Uri", "check_name", "display", "fetch", "parse_uri", "read", "stat"]

PIECE_BYTES = 8 * 2**20
"""A remote file is fetched in pieces of this size: the memory a fetch needs is two to three of them."""


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """A file as a listing shows it."""

    name: str
    """Relative to the folder listed, posix; may hold surrogates where a file's name is not UTF-8 (`Folder.uri_of`)."""
    bytes: int
    """Its size; -1 for a link that leads nowhere."""
    mtime_s: float
    """Time of the last change, seconds since 1970 by the storage's clock."""
    version: str
    """Changes when the content does: the etag on an object store, else the modification time in nanoseconds."""


Files = list[FileInfo]


class Folder:
    """A folder on disk or a prefix of a bucket. Cheap to make (nothing is asked), and it may be pickled."""

    def __init__(self, uri: str):
        place = parse_uri(uri)
        self._place = place if place.scheme == "file" else parse_uri(str(place).rstrip("/"))

    def __repr__(self) -> str:
        return f"Folder({self.display!r})"

    @property
    def uri(self) -> str:
        """What `Folder` reads back on any node: an absolute path or an s3:// URI, without a slash at its end."""
        return str(self._place).rstrip("/") or "/"

    @property
    def display(self) -> str:
        """The URI as it may be shown."""
        return display(self.uri)

    @property
    def is_local(self) -> bool:
        """Whether it lies on a disk of this machine, or one mounted here."""
        return self._place.scheme == "file"

    def child(self, name: str) -> "Folder":
        """The folder `name` in this one."""
        return Folder(self.uri_of(check_name(name)))

    def uri_of(self, name: str) -> str:
        """The URI of a file that `list` or `walk` named; always UTF-8."""
        return str(self._place.join(check_name(name) if self.is_local else name))

    def _at(self, name: str) -> Uri:
        return self._place.join(check_name(name))

    def list(self, prefix: str = "", suffix: str = "") -> Files:
        """The files right in this folder (no folders), by name; a folder that does not exist is empty."""
        if self.is_local:
            return self._list_local(prefix, suffix)
        found = (_object_info(self._place, entry) for entry in s3.list_objects(self._place, prefix, recursive=False))
        return sorted((f for f in found if f.name and f.name.endswith(suffix)), key=lambda f: f.name)

    def _list_local(self, prefix: str, suffix: str) -> Files:
        found = []
        with named_errors(self.uri):
            try:
                entries = os.scandir(self._place.path)
            except FileNotFoundError:
                return []
            with entries:
                for entry in entries:
                    if entry.name.startswith(prefix) and entry.name.endswith(suffix):
                        with suppress(FileNotFoundError):  # deleted since
                            if entry.is_file():
                                found.append(_local_info(entry.name, entry.stat()))
        return sorted(found, key=lambda f: f.name)

    def walk(self) -> Iterator[FileInfo]:
        """All files below, with relative posix names, in order; hidden ones (`.x`) are left out.

        A local folder that does not exist is an error: a corpus that is not there is not an empty one. (An object store
        has no folders: there it is empty.)
        """
        if not self.is_local:
            for entry in s3.list_objects(self._place, recursive=True):
                info = _object_info(self._place, entry)
                if info.name and not info.name.endswith("/") and not f"/{info.name}".count("/."):
                    yield info
            return
        with named_errors(self.uri):
            for path, found in localdisk.walk(self._place.path):
                name = os.path.relpath(path, self._place.path)
                if found:
                    yield _local_info(name, found)
                else:
                    yield FileInfo(name=name, bytes=-1, mtime_s=0.0, version="")

    def read(self, name: str) -> bytes:
        """The whole content; StorageError with `.missing` if there is none."""
        return self.read_versioned(name)[0]

    def read_versioned(self, name: str) -> tuple[bytes, str]:
        """The content and the version it has (see `FileInfo.version`)."""
        place = self._at(name)
        if not self.is_local:
            data, head = s3.get(place)
            return data, head["ETag"].strip('"')
        with named_errors(place.path), open(place.path, "rb") as file:
            return file.read(), str(os.fstat(file.fileno()).st_mtime_ns)

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        try:
            stat(str(self._at(name)))
        except StorageError as error:
            if error.missing:
                return False
            raise
        return True

    def write(self, name: str, data: bytes) -> str:
        """Puts the file there, whole or not at all, over what was there; gives its version."""
        place = self._at(name)
        if not self.is_local:
            return s3.put(place, data) or ""
        with named_errors(place.path):
            localdisk.write(place.path, data)
            return localdisk.version_of(place.path)

    def put_file(self, name: str, path: Path) -> None:
        """Brings a local file of any size there, whole or not at all, over what was there."""
        place = self._at(name)
        if not self.is_local:
            s3.put_file(place, path)
            return
        with named_errors(place.path):
            localdisk.copy(path, place.path)

    def write_new(self, name: str, data: bytes) -> str:
        """As `write`, but FileExistsError if the name is taken: of two writers exactly one wins. Gives the version."""
        place = self._at(name)
        if not self.is_local:
            version = s3.put(place, data, create=True)
            if version is None:
                raise FileExistsError(f"{display(str(place))} exists")
            return version
        try:
            with named_errors(place.path):
                localdisk.write(place.path, data, create=True)
                return localdisk.version_of(place.path)
        except FileExistsError as error:
            raise FileExistsError(f"{display(place.path)} exists") from error

    def replace_if(self, name: str, data: bytes, version: str, *, limit_s: float | None = None) -> str | None:
        """Replaces an object only if it still has this version; gives the new one, or None. Object stores alone."""
        if self.is_local:
            raise ValueError(f"{self.display}: a conditional replace needs an object store")
        return s3.put(self._at(name), data, if_match=version, limit_s=limit_s)

    def delete(self, names: Iterable[str]) -> None:
        """Deletes files; one that is not there is no error."""
        places = [self._at(name) for name in names]
        if not self.is_local:
            s3.delete(places)
            return
        for place in places:
            with named_errors(place.path), suppress(FileNotFoundError):
                os.unlink(place.path)

    def remove(self) -> None:
        """Deletes everything below, and a local folder itself; one that is not there is no error."""
        if not self.is_local:
            s3.delete([self._at(info.name) for info in self.walk()])
            return
        with named_errors(self.uri), suppress(FileNotFoundError):
            shutil.rmtree(self._place.path)

    def check_writable(self) -> None:
        """Writes and removes a probe (and makes the folder); StorageError with the server's words if that fails."""
        probe = f"{TEMPORARY}probe-{uuid.uuid4().hex[:8]}"
        try:
            self.write(probe, b"may be deleted")
            self.delete([probe])
        except (StorageError, FileExistsError) as error:
            raise StorageError(
                f"cannot write to {self.display}: {error}", retryable=getattr(error, "retryable", False)
            ) from error

    def filesystem(self) -> "tuple[pyarrow.fs.FileSystem, str]":
        """For pyarrow's datasets: the file system, and this folder's path in it."""
        from pyarrow import fs

        if self.is_local:
            return fs.LocalFileSystem(), self._place.path
        return fs.PyFileSystem(fs.FSSpecHandler(s3.filesystem())), f"{self._place.bucket}/{self._place.path}".rstrip(
            "/"
        )

    def sweep_temporaries(self, older_than_s: float) -> int:
        """Deletes what killed writers have left right in this folder, if older than this; gives the count."""
        old = [f.name for f in self.list(prefix=TEMPORARY) if time.time() - f.mtime_s >= older_than_s]
        self.delete(old)
        return len(old)


def read(uri: str) -> bytes:
    """The whole content of one small file or object."""
    place = parse_uri(uri)
    if place.scheme == "file":
        with named_errors(place.path):
            localdisk.regular_file(place.path)
            return Path(place.path).read_bytes()
    return s3.get(_object(place))[0]


def stat(uri: str) -> FileInfo:
    """Size and version of one file or object; its name is the URI's last segment."""
    place = parse_uri(uri)
    if place.scheme == "file":
        with named_errors(place.path):
            return _local_info(place.name, localdisk.regular_file(place.path))
    head = s3.head(_object(place))
    return FileInfo(
        name=place.name,
        bytes=head["ContentLength"],
        mtime_s=head["LastModified"].timestamp(),
        version=head["ETag"].strip('"'),
    )


def fetch(uri: str, local_path: str | Path, max_bytes: int | None = None, version: str = "") -> Path:
    """Brings a remote file to `local_path` in pieces and gives its path; a local file is not copied: its own path.

    Each piece is retried by itself, and all are of one version (`version` if given). StorageError if the file is larger
    than `max_bytes` or changes meanwhile; nothing is left at `local_path` then.
    """
    place = parse_uri(uri)
    if place.scheme == "file":
        with named_errors(place.path):
            localdisk.regular_file(place.path)
        return Path(place.path)
    place, local = _object(place), Path(local_path)
    try:
        with named_errors(str(local)):
            _fetch_pieces(place, local, max_bytes, version)
    except BaseException:
        local.unlink(missing_ok=True)
        raise
    return local


def _fetch_pieces(place: Uri, local: Path, max_bytes: int | None, version: str) -> None:
    shown, done, total = display(str(place)), 0, 1
    with open(local, "wb") as file:
        while done < total:
            data, head = s3.get(place, start=done, length=PIECE_BYTES, if_match=version)
            # A server that does not know ranges sends everything, which is refused below if it is more than a piece.
            total = int(head["ContentRange"].rpartition("/")[2]) if "ContentRange" in head else len(data)
            version = version or head["ETag"].strip('"')
            if max_bytes is not None and total > max_bytes:
                raise StorageError(f"{shown}: {total:,} bytes, more than the {max_bytes:,} expected")
            if len(data) != min(PIECE_BYTES, total - done):
                raise StorageError(f"{shown}: {len(data)} bytes came instead of a piece", retryable=True)
            file.write(data)
            done += len(data)


def _object(place: Uri) -> Uri:
    if not place.path:
        raise ValueError(f"{display(str(place))} names a bucket, not an object")
    return place


def _object_info(folder: Uri, entry: dict) -> FileInfo:
    start = len(folder.path) + 1 if folder.path else 0
    return FileInfo(
        name=entry["Key"][start:],
        bytes=entry["Size"],
        mtime_s=entry["LastModified"].timestamp(),
        version=entry["ETag"].strip('"'),
    )


def _local_info(name: str, found: os.stat_result) -> FileInfo:
    return FileInfo(name=name, bytes=found.st_size, mtime_s=found.st_mtime, version=str(found.st_mtime_ns))
