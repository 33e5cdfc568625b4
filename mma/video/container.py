"""Which container a file is, by its first bytes: the gate before any decoder.

Decoders guess a format from content and name, and some formats are lists of other files or addresses (HLS playlists,
ffconcat): a text file named .mp4 made decord play another file (RAY.md, "Decoding"). So a file is opened only if it is
a regular local file, by its absolute path (which no protocol prefix can stand before), and with the one demuxer that
`sniff` named.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from mma.video.errors import VideoError

HEAD_BYTES = 1024

_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp")
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")


def _is_transport_stream(head: bytes) -> bool:
    for packet_bytes, start in ((188, 0), (192, 4), (204, 0)):
        marks = range(start, len(head), packet_bytes)
        if len(marks) >= 3 and all(head[at] == 0x47 for at in marks):
            return True
    return False


_TESTS: tuple[tuple[str, Callable[[bytes], bool]], ...] = (
    ("mov", lambda head: head[4:8] in _MOV_BOXES),
    ("matroska", lambda head: head.startswith(b"\x1a\x45\xdf\xa3")),
    ("avi", lambda head: head.startswith(b"RIFF") and head[8:12] == b"AVI "),
    ("flv", lambda head: head.startswith(b"FLV\x01")),
    ("asf", lambda head: head.startswith(_ASF_HEADER)),
    ("ogg", lambda head: head.startswith(b"OggS")),
    ("mpeg", lambda head: head.startswith(b"\x00\x00\x01\xba")),
    ("mpegts", _is_transport_stream),
)

CONTAINERS = tuple(name for name, _ in _TESTS)
"""FFmpeg's names of the demuxers that may be used: mov (mp4, mov, 3gp), matroska (and webm), avi, flv, asf (wmv), ogg,
mpeg (program stream, vob) and mpegts (also m2ts)."""


def sniff(path: str | os.PathLike[str]) -> str:
    """The demuxer (one of `CONTAINERS`) for the regular local file at `path`, by its first bytes.

    A symbolic link to a regular file passes. Raises VideoError (stage "sniff") for anything that is not a regular file,
    for an empty file, and for first bytes that are none of the known containers; nothing but a regular file is opened.
    """
    local = Path(os.path.abspath(os.fspath(path)))
    try:
        kind = local.stat().st_mode
    except (OSError, ValueError) as error:
        raise VideoError("sniff", "Unreadable", f"cannot look at the file: {_reason(error)}") from error
    if not stat.S_ISREG(kind):
        raise VideoError("sniff", "NotAFile", f"not a regular file but a {_kind_name(kind)}")
    try:
        with local.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise VideoError("sniff", "Unreadable", f"cannot read the file: {_reason(error)}") from error
    if not head:
        raise VideoError("sniff", "EmptyFile", "the file is empty (0 bytes)")
    for name, test in _TESTS:
        if test(head):
            return name
    raise VideoError("sniff", "NotAVideo", f"{_looks_like(head)}: none of the containers {', '.join(CONTAINERS)}")


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)


def _kind_name(kind: int) -> str:
    names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(kind), "device")


def _looks_like(head: bytes) -> str:
    """What a person would call these bytes: only for the message."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:32].lower()
    for mark, name in (
        (b"#extm3u", "an HLS playlist"),
        (b"ffconcat", "an ffconcat list"),
        (b"<!doctype", "a web page"),
        (b"<html", "a web page"),
        (b"[internetshortcut", "a link to a web address"),
        (b"http", "a web address"),
        (b"\x89png", "a PNG picture"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"gif8", "a GIF picture"),
    ):
        if start.startswith(mark):
            return f"the file holds {name}"
    text = all(byte >= 32 or byte in b"\t\r\n" for byte in head)
    return "the file holds text" if text else f"the first bytes are {head[:8].hex(' ')}"
