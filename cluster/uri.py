"""Where a thing lies: local paths, `file://` and `s3://` URIs, names inside a folder, and the error all storage raises.

Tables and options come from strangers: whatever names another scheme, or leaves its folder, is refused here.
"""

import os
import re
from dataclasses import dataclass, replace
from urllib.parse import quote_from_bytes, unquote_to_bytes

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_USER_INFO = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)(?:[^/@]*@|[^/]*:.*@)", re.DOTALL)
_SIGNED = re.compile(r"(signature|credential|token|secret|password|accesskeyid|sig|key)=", re.IGNORECASE)
_BUCKET = re.compile(r"^(?:[A-Za-z0-9][A-Za-z0-9._-]{1,254}|arn:[A-Za-z0-9:._-]+)$")


class StorageError(Exception):
    """Storage said no: one line, in the words of the server or the system.

    `missing`: there is no such object or file. `retryable`: the fault lies with the server, the network, the
    credentials or this node and not with the one object, so that a later try may succeed with the object as it is.
    Neither: this object cannot be had (forbidden, too large, a folder).
    """

    def __init__(self, message: str, *, retryable: bool = False, missing: bool = False):
        super().__init__(" ".join(message.split()))
        self.retryable = retryable
        self.missing = missing

    def __reduce__(self):
        return _storage_error, (self.args[0], self.retryable, self.missing)


def _storage_error(message: str, retryable: bool, missing: bool) -> StorageError:
    return StorageError(message, retryable=retryable, missing=missing)


@dataclass(frozen=True, kw_only=True)
class Uri:
    """One place: a local path, or a bucket and a key. `str()` gives what `parse_uri` reads back."""

    scheme: str
    """`file` or `s3`."""
    path: str
    """The absolute local path; for `s3` the key, without a leading slash."""
    bucket: str = ""
    """The bucket of an `s3` URI."""

    def __str__(self) -> str:
        if self.scheme == "s3":
            return f"s3://{self.bucket}/{self.path}"
        try:
            self.path.encode("utf-8")
        except UnicodeEncodeError:  # a file name that is not UTF-8 on disk: text columns could not hold it as it is
            return "file://" + quote_from_bytes(os.fsencode(self.path))
        return self.path

    @property
    def name(self) -> str:
        """The last segment."""
        return self.path.rstrip("/").rpartition("/")[2]

    def join(self, name: str) -> "Uri":
        """What lies under `name` (posix, relative) in this folder; the name is not checked here."""
        folder = self.path.rstrip("/")
        return replace(self, path=f"{folder}/{name}" if folder or self.scheme == "file" else name)


def parse_uri(uri: str) -> Uri:
    """Reads a local path, `file://` (percent-encoded as usual) or `s3://bucket/key`; ValueError on anything else.

    Local paths become absolute, since workers have other working directories. The error never shows a password.
    """
    uri = os.fspath(uri)
    if not uri or "\0" in uri:
        raise ValueError(f"{display(uri)!r} is no place: give a local path, a file:// or an s3:// URI")
    found = _SCHEME.match(uri)
    if not found:
        return Uri(scheme="file", path=os.path.abspath(os.path.expanduser(uri) if uri.startswith("~/") else uri))
    scheme, rest = found[1].lower(), uri[found.end() :]
    if scheme == "file":
        path = os.fsdecode(unquote_to_bytes(rest.removeprefix("localhost") if rest.startswith("localhost/") else rest))
        if not path.startswith("/") or "\0" in path:
            raise ValueError(f"{display(uri)}: a file:// URI names an absolute path of this machine, as file:///folder")
        return Uri(scheme="file", path=os.path.abspath(path))
    if scheme != "s3":
        raise ValueError(f"{display(uri)}: only local paths, file:// and s3:// URIs are read")
    # An access point's ARN holds a slash: arn:aws:s3:region:account:accesspoint/name.
    point = re.match(r"^(arn:[^/@]*:accesspoint/[^/@]+)(?:/|$)", rest)
    bucket = point[1] if point else rest.partition("/")[0]
    if not _BUCKET.match(bucket.replace("/", ":")):
        raise ValueError(
            f"{display(uri)}: s3://bucket/key needs a bucket's name, and credentials belong in the environment (AWS_*)"
        )
    return Uri(scheme="s3", bucket=bucket, path=rest[len(bucket) :].removeprefix("/"))


def display(uri: str) -> str:
    """The URI as it may be shown: one line, without user info and without a signed query string."""
    shown = _USER_INFO.sub(r"\1***@", uri)
    head, mark, query = shown.partition("?")
    if mark and _SCHEME.match(shown) and _SIGNED.search(query):
        shown = head + "?***"
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in shown)


def one_line(error: BaseException) -> str:
    """An error's words in one line of at most 300 characters, as they may be shown; its kind where it has none."""
    return display(" ".join(str(error).split()))[:300] or type(error).__name__


def check_name(name: str) -> str:
    """Gives a relative posix name back if it stays within its folder, else ValueError."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\0" in name or "\\" in name:
        raise ValueError(f"{display(name)!r} is no name inside a folder: no '..', no leading or double slash, no '\\'")
    if max(len(os.fsencode(part)) for part in parts) > 255:
        raise ValueError(f"{display(name)[:60]!r}… is longer than a file's name may be (255 bytes)")
    return name
