"""The parent's side of decoding: one child process, held through many videos, replaced when it fails or grows old.

Waiting is bounded: a video that gives no frame for `timeout_s` costs its child, never the caller. Whatever happens in
the child comes out as a `VideoError` of that one video.

On Linux the child dies with the *thread* that started it (PR_SET_PDEATHSIG means threads). Use a slot from threads that
live as long as it does; a child found dead between two videos is replaced without a word.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import mma
from mma.video.assemble import ChunkBuilder
from mma.video.chunk import FaceChunk, VideoInfo
from mma.video.errors import VideoError
from mma.video.options import DecodeOptions
from mma.video.wire import receive, unpack_faces

START_S = 120.0
"""Seconds a fresh child may take to import its decoders; a cold network disk is slow."""

PIPE_BYTES = 2**18
"""Room for half a message, where Linux has 64 KB: fewer turns of two processes on one core. All pipes of a user share
64 MB."""

_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
} | {"MALLOC_ARENA_MAX": "2"}


class _EndedError(Exception):
    """The child closed its channel."""


class _SilentError(Exception):
    """No byte came in time."""


class DecodeSlot:
    """One decoding child and its videos, one at a time. Not for several threads at once."""

    def __init__(self, options: DecodeOptions) -> None:
        self.options = options
        self.videos_done = 0
        """Videos ended so far, failed ones included."""
        self._child: subprocess.Popen[bytes] | None = None
        self._started_by: threading.Thread | None = None
        self._videos_of_child = 0

    @property
    def child_pid(self) -> int | None:
        """The running child's process id, None before the first video and after a failure."""
        return self._child.pid if self._child is not None else None

    def chunks(self, path: str | os.PathLike[str]) -> Iterator[FaceChunk]:
        """The chunks of the regular local file at `path`, in order, at least one; each is complete when it comes.

        Chunks depend on the file and the options alone. Raises VideoError; where frames came before the failure, they
        are handed out first, as a chunk that is not the last. Memory is bounded by one chunk. A generator closed before
        its end costs the child.
        """
        local = os.path.abspath(os.fspath(path))
        options = asdict(self.options)
        if options["faces"]["detector_weights"]:  # the child works in another folder
            options["faces"]["detector_weights"] = os.path.abspath(options["faces"]["detector_weights"])
        child = self._child_with_request(json.dumps({"path": local, "options": options}))
        builder = ChunkBuilder(self.options.chunk_frames)
        finished = False
        try:
            while not finished:
                try:
                    header, payload = self._next_message(child, self.options.timeout_s)
                except _EndedError:
                    raise self._why_ended(child, builder) from None
                except _SilentError:
                    raise VideoError(
                        "decode",
                        "DecodeTimeout",
                        f"no new frame for {self.options.timeout_s:g} s, {builder.reached}; the decoder was killed "
                        "(raise --decode-timeout-s if the video is sound)",
                    ) from None
                kind = header["kind"]
                if kind == "open":
                    builder.opened(VideoInfo(**header["info"]), header["decoder"])
                elif kind == "frames":
                    yield from builder.add(*unpack_faces(header["count"], payload))
                elif kind == "error":
                    finished = header["type"] != "OutOfMemory"  # that child ends itself
                    raise VideoError(header["stage"], header["type"], header["message"])
                elif kind == "end":
                    finished = True
                    yield builder.last(header["decoder"], header["damage"])
        except VideoError:
            if builder.rows_held:
                yield builder.cut()
            raise
        finally:
            self.videos_done += 1
            self._videos_of_child += 1
            if not finished or self._videos_of_child >= self.options.videos_per_child:
                self._end_child(kill=not finished)

    def close(self) -> None:
        """End the child. The slot can be used again; a new child is then started."""
        self._end_child(kill=False)

    def __enter__(self) -> DecodeSlot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the child ---

    def _child_with_request(self, request: str) -> subprocess.Popen[bytes]:
        """A child that has taken the request. One that died since its last video is replaced, once."""
        for fresh in (self._child is None, True):
            if self._child is None:
                self._child = self._start_child()
            assert self._child.stdin is not None
            try:
                self._child.stdin.write(request.encode() + b"\n")
                self._child.stdin.flush()
                self._next_message(self._child, START_S)
                return self._child
            except (BrokenPipeError, _EndedError, _SilentError) as error:
                self._end_child(kill=True)
                if fresh:
                    raise VideoError("child", "ChildLost", "the decoding child ended before it took a video") from error
        raise AssertionError("unreachable: the second child is fresh")

    def _start_child(self) -> subprocess.Popen[bytes]:
        # The folder that holds the package, so that the child finds the same code from wherever it is started.
        root = str(Path(next(iter(mma.__path__))).resolve().parent)
        search_path = os.pathsep.join(part for part in (os.environ.get("PYTHONPATH"), root) if part)
        command = [sys.executable, "-m", "mma.video.child", str(os.getpid()), str(self.options.memory_bytes)]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=root,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": search_path},
            close_fds=True,
        )
        self._started_by = threading.current_thread()
        self._videos_of_child = 0
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # beyond what this user's pipes may take
                fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # type: ignore[arg-type]
        try:
            self._next_message(child, START_S)
        except (_EndedError, _SilentError):
            child.kill()
            code = child.wait()
            raise VideoError(
                "child", "ChildStart", f"the decoding child did not start (exit code {code}); its words are on stderr"
            ) from None
        return child

    def _end_child(self, *, kill: bool) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        assert child.stdout is not None
        if kill:
            child.kill()
        with contextlib.suppress(BrokenPipeError):  # it may be gone already, with a request unread
            child.stdin.close()
        try:
            child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()

    def _next_message(self, child: subprocess.Popen[bytes], timeout_s: float) -> tuple[dict[str, Any], bytearray]:
        """The child's next message. Raises _SilentError after `timeout_s` without a byte, _EndedError at its end."""
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        ready = select.poll()
        ready.register(descriptor, select.POLLIN)

        def read_exactly(count: int) -> bytearray:
            data = bytearray(count)
            missing = memoryview(data)
            deadline_s = time.monotonic() + timeout_s
            while missing:
                if not ready.poll(max(0.0, deadline_s - time.monotonic()) * 1000):
                    raise _SilentError
                got = os.readv(descriptor, [missing])
                if not got:
                    raise _EndedError
                missing = missing[got:]
            return data

        return receive(read_exactly)

    def _why_ended(self, child: subprocess.Popen[bytes], builder: ChunkBuilder) -> VideoError:
        """The error for a child that went without a word."""
        try:
            code = child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return VideoError("child", "DecoderCrashed", f"the decoder closed its channel, {builder.reached}")
        if code == -signal.SIGKILL:
            if self._started_by is not None and not self._started_by.is_alive():
                return VideoError("child", "ChildLost", "the thread that started the decoding child has ended")
            return VideoError(
                "decode",
                "OutOfMemory",
                f"the decoder was killed by SIGKILL, {builder.reached}: most likely the kernel's answer to "
                "memory running out",
            )
        if code < 0:
            name = signal.Signals(-code).name
            return VideoError("decode", "DecoderCrashed", f"the decoder crashed with {name}, {builder.reached}")
        return VideoError("decode", "DecoderCrashed", f"the decoder ended with exit code {code}, {builder.reached}")
