"""The decoding child: a process that may crash, hang or run out of memory, and takes one video with it, no more.

Started by exec as `python -m mma.video.child PARENT_PID MEMORY_BYTES`, by `mma.video.slot` alone. It reads one JSON
request a line on standard input ({"path": ..., "options": DecodeOptions' fields}) and writes `mma.video.wire` messages
on a private copy of its standard output; the end of standard input ends it. Its first act is to tie its life to its
parent's (RAY.md, "Ray Data"): a worker killed together with its driver leaves nobody else to end it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import resource
import signal
import sys
import time
from typing import Any

from mma.allocation import keep_memory

PR_SET_PDEATHSIG = 1
GROUP_FRAMES = 16
"""Frames a message at most: 600 KB of crops."""

GROUP_S = 1.0
"""Seconds after which a smaller group is sent too."""

TICK_S = 0.5
"""Seconds between signs of life when no frame is due."""


def guard(parent_pid: int, memory_bytes: int) -> None:
    """Die with the parent, hold to the memory limit, dump no core."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))  # macOS has no such limit
    if os.getppid() != parent_pid:  # it died before the first line took hold
        os._exit(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def private_output() -> int:
    """A descriptor for messages alone; what else is written on descriptor 1 goes to nobody."""
    channel = os.dup(1)
    os.set_inheritable(channel, False)
    silence(1)
    return channel


def silence(descriptor: int) -> None:
    """Point a descriptor at nobody."""
    nobody = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, descriptor)
    os.close(nobody)


class Outbox:
    """Sends faces in small groups, and signs of life in between."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._waiting: list[Any] = []
        self._sent_s = time.monotonic()
        self.last_frame = -1
        self.sent_frames = 0

    def message(self, header: dict[str, Any]) -> None:
        """Send at once, after the faces that wait."""
        from mma.video.wire import send

        self.flush()
        send(self._channel, header)
        self._sent_s = time.monotonic()

    def add(self, faces: list[Any]) -> None:
        """Take faces; send them once they are a group, or late."""
        for face in faces:
            self._waiting.append(face)
            if len(self._waiting) >= GROUP_FRAMES:
                self.flush()
        if self._waiting and time.monotonic() - self._sent_s > GROUP_S:
            self.flush()

    def flush(self) -> None:
        """Send the faces that wait."""
        from mma.video.wire import pack_faces, send

        if self._waiting:
            count, rows, crops = pack_faces(self._waiting)
            self._waiting = []
            send(self._channel, {"kind": "frames", "count": count}, rows, *crops)
            self.sent_frames += count
            self._sent_s = time.monotonic()

    def drop(self) -> None:
        """Forget the faces that wait (when memory has run out)."""
        self._waiting = []

    def tick(self) -> None:
        """A sign of life, if the last message is a while ago."""
        if time.monotonic() - self._sent_s > TICK_S:
            self.message({"kind": "tick", "frame": self.last_frame})


def decode(path: str, options: Any, outbox: Outbox, detector: Any) -> None:
    """One video through open, sample, follow and crop, into messages. Raises VideoError.

    detector: `mma.faces.make_detector` of the options.
    """
    from dataclasses import asdict

    from mma.faces import FaceFollower
    from mma.video import readers
    from mma.video.errors import VideoError
    from mma.video.sampling import sample_indices

    reader = readers.open_video(path, decoder=options.decoder, on_decoded=outbox.tick)
    outbox.message({"kind": "open", "info": asdict(reader.info), "decoder": reader.decoder})
    follower = FaceFollower(options.faces, detector)
    for frame, picture in reader.frames(sample_indices(reader.times_s, options.fps)):
        try:
            outbox.add(follower.push(frame, float(reader.times_s[frame]), picture))
        except (MemoryError, VideoError, BrokenPipeError):
            raise
        except Exception as error:
            if lacks_memory(error):
                raise
            raise VideoError("face", type(error).__name__, f"at frame {frame}: {error}") from error
        outbox.last_frame = frame
        outbox.tick()
    outbox.add(follower.finish())
    outbox.flush()
    if not outbox.sent_frames:
        raise VideoError("decode", "NoFrames", reader.damage or "not one frame could be decoded")
    outbox.message({"kind": "end", "decoder": reader.decoder, "damage": reader.damage})


def serve(channel: int) -> None:
    """Answer requests until standard input ends."""
    import cv2

    from mma.faces import FaceOptions, make_detector
    from mma.video import decord_group, readers  # noqa: F401  (loaded before the first video's clock runs)
    from mma.video.errors import VideoError
    from mma.video.options import DecodeOptions

    cv2.setNumThreads(1)
    silence(2)  # from here on: decoders' chatter, a line a broken packet
    outbox = Outbox(channel)
    outbox.message({"kind": "ready"})
    detector_of = functools.lru_cache(maxsize=1)(make_detector)  # loading Haar's cascade takes 9 ms
    for line in sys.stdin:
        request = json.loads(line)
        fields = request["options"]
        options = DecodeOptions(**{**fields, "faces": FaceOptions(**fields["faces"])})
        outbox = Outbox(channel)
        if options.decoder != "pyav":
            with contextlib.suppress(decord_group.RefusedError):  # told of, or done without, when a video needs it
                decord_group.load()
        if options.faces.detector == "yunet":  # onnxruntime is large
            with contextlib.suppress(Exception):  # told of below, as the video's error
                detector_of(options.faces)
        outbox.message({"kind": "taken"})
        try:
            decode(request["path"], options, outbox, detector_of(options.faces))
        except VideoError as error:
            outbox.message({"kind": "error", "stage": error.stage, "type": error.error_type, "message": error.message})
        except MemoryError:
            out_of_memory(outbox, options.memory_bytes)
        except BrokenPipeError:
            return
        except Exception as error:
            if lacks_memory(error):
                out_of_memory(outbox, options.memory_bytes)
            message = f"{type(error).__name__}: {error}"
            outbox.message({"kind": "error", "stage": "decode", "type": "DecoderError", "message": message[:500]})


def lacks_memory(error: Exception) -> bool:
    """Whether a library's own exception stands for want of memory: OpenCV's and onnxruntime's do."""
    import cv2

    words = ("bad_alloc", "Failed to allocate memory", "Cannot allocate memory", "failed to map segment")
    return getattr(error, "code", None) == cv2.Error.StsNoMem or any(each in str(error) for each in words)


def out_of_memory(outbox: Outbox, memory_bytes: int) -> None:
    """Say so, and end: what a decoder leaves behind after this is not to be relied on."""
    outbox.drop()
    message = (
        f"more than {memory_bytes / 2**20:.0f} MiB of address space needed, after frame {outbox.last_frame}; "
        "raise --decode-memory if the video is sound"
    )
    outbox.message({"kind": "error", "stage": "decode", "type": "OutOfMemory", "message": message})
    os._exit(1)


def main() -> None:
    """Guard, then serve."""
    guard(int(sys.argv[1]), int(sys.argv[2]))
    keep_memory()
    channel = private_output()
    # Interrupts are the parent's to handle: Ctrl-C reaches the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(channel)


if __name__ == "__main__":
    main()
