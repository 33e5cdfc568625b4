"""One group of pictures through decord, all of it or nothing.

decord reads ahead without bound, counts frames that do not come, and fills gaps with copies of their neighbours without
a word (RAY.md, "Decoding"). So it never sees a stranger's file: it gets the packets of one closed group, written into a
small mp4 (or Matroska) in memory, which bounds its read-ahead to the group; its FFmpeg's error messages are counted;
and a group with one error, or with another number of frames than packets, is refused as a whole: PyAV then decodes it.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

GROUP_BYTES = 176 << 20
"""RGB bytes of the largest group that decord may hold at once: 267 frames of 640 x 360, 66 of 1280 x 720."""

CARRIERS = {"h264": "mp4", "hevc": "mp4", "mpeg4": "mp4", "vp9": "matroska", "vp8": "matroska", "mjpeg": "matroska"}
"""What decord's FFmpeg 4.0 decodes to the same pixels as PyAV's (checked by test), and the container it comes in."""


def carrier(codec: str, *, turned: bool) -> str | None:
    """The container in which decord gets a group of this codec; None if it should not."""
    known = CARRIERS.get(codec)
    # An mp4 would carry the rotation tag along, and decord would turn the frames itself.
    return "matroska" if known is not None and turned else known


JOINED_FRAMES = 96
"""Short groups that follow one another are read together up to so many frames: opening decord costs 5 ms."""

_ERROR_LEVEL = 16  # AV_LOG_ERROR; lower is worse
_LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class RefusedError(Exception):
    """decord does not give this group; the text says why."""


class ErrorWatch:
    """Counts the error messages of decord's own FFmpeg, the only sign of pictures that were patched up."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("decord")
        if package is None or package.origin is None:
            raise RefusedError("decord is not installed")
        beside = Path(package.origin).parent.parent / "decord.libs"
        libraries = list(beside.glob("libavutil-*.so*"))
        if len(libraries) != 1:
            raise RefusedError("decord's FFmpeg was not found, so that its errors cannot be watched")
        self.errors = 0
        self._callback = _LOG_CALLBACK(self._heard)  # kept: FFmpeg holds no reference
        ctypes.CDLL(str(libraries[0])).av_log_set_callback(self._callback)

    def _heard(self, _context: int, level: int, _format: bytes, _arguments: int) -> None:
        if level & 0xFF <= _ERROR_LEVEL:
            self.errors += 1


@functools.cache
def load() -> tuple[Any, ErrorWatch]:
    """The decord module and the watch on its messages, once a process. Raises RefusedError where it cannot be had."""
    watch = ErrorWatch()
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        raise RefusedError(f"decord cannot be imported: {error}") from error
    return decord, watch


def decode_group(
    packets: Sequence[Any],
    template: Any,
    wanted: Sequence[int],
    stored_px: tuple[int, int],
    *,
    carrier: str,
    on_decoded: Callable[[], None],
) -> Iterator[NDArray[np.uint8]]:
    """The `wanted` frames (positions in the group's presentation order, increasing) as uint8 (H, W, 3), as stored,
    `stored_px` (width, height). The whole group is decoded and checked before this returns.

    `packets` are PyAV packets in file order, from a key frame to the last one needed; they are used up: rewritten and
    of no use afterwards. Raises RefusedError, and MemoryError.
    """
    decord, watch = load()
    several_keys = sum(packet.is_keyframe for packet in packets) > 1
    try:
        carried = _carry(packets, template, carrier)
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise RefusedError(f"the packets cannot be written into {carrier}: {error}") from error
    watch.errors = 0
    try:
        # A share of the frames: whole numbers below 2 mean no limit or one copy.
        reader = decord.VideoReader(carried, num_threads=1, fault_tol=1e-4)
        if len(reader) != len(packets):
            raise RefusedError(f"decord counts {len(reader)} frames in {len(packets)} packets")
        frames = []
        position = 0
        for place in wanted:
            if place > position and several_keys:
                for _ in range(place - position):  # skip_frames would seek
                    reader.next()
            elif place > position:
                reader.skip_frames(place - position)
            frames.append(reader.next())  # left in decord's memory: a copy beside it would double the peak
            on_decoded()
            position = place + 1
        del reader
    except (decord.DECORDError, RuntimeError, AssertionError, StopIteration) as error:
        if "bad_alloc" in str(error):
            raise MemoryError("decord") from error
        raise RefusedError(f"decord: {(str(error).splitlines() or ['no message'])[0]}") from error
    if any(frame.shape[1::-1] != stored_px for frame in frames):
        raise RefusedError("decord turned or scaled the picture")
    if watch.errors:
        raise RefusedError(f"decord's FFmpeg reported {watch.errors} errors")
    frames.reverse()
    return (frames.pop().asnumpy() for _ in range(len(frames)))


def _carry(packets: Sequence[Any], template: Any, carrier: str) -> io.BytesIO:
    memory = io.BytesIO()
    with av.open(memory, "w", format=carrier) as out:
        stream = out.add_stream_from_template(template)
        for packet in packets:
            packet.stream = stream
            out.mux(packet)
    memory.seek(0)
    return memory
