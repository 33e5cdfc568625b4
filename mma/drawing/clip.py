"""Writing drawn frames as an mp4 clip, with encoder settings that are the same for every clip (CORPUS.md, gate 6)."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from os import PathLike, fspath

import av
import cv2
import numpy as np
from numpy.typing import NDArray


def write_clip(path: str | PathLike[str], frames: Iterable[NDArray[np.uint8]], *, fps: float, crf: int = 23) -> None:
    """Write RGB frames, uint8 (H, W, 3) with even H and W, as h264 in an mp4 at the local `path`.

    One frame is in memory at a time; the encoder runs on one thread, so that equal frames give equal bytes. The file
    carries no metadata of ours. ValueError: no frame, frames of different or odd sizes, or not uint8 RGB.
    """
    if not fps > 0:
        raise ValueError(f"fps is {fps}: give a value above 0")
    with av.open(
        fspath(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"}
    ) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"
        # x264's macroblock tree was seen to give equal frames different bytes, by where they lie in memory: left out.
        settings = {"preset": "veryfast", "threads": "1", "flags": "+bitexact", "x264-params": "mbtree=0"}
        stream.options = {"crf": str(crf), **settings}
        size: tuple[int, ...] | None = None
        for number, frame in enumerate(frames):
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise ValueError(f"frame {number} is {frame.dtype} {frame.shape}: give uint8 (H, W, 3)")
            if size is None:
                size = frame.shape
                if size[0] % 2 or size[1] % 2:
                    raise ValueError(f"frames are {size[1]} x {size[0]} px: yuv420p takes even sizes alone")
                stream.height, stream.width = size[0], size[1]
            if frame.shape != size:
                raise ValueError(f"frame {number} is {frame.shape}, the first one {size}: one clip has one size")
            # Not left to the encoder's own conversion, which rounds by where a frame lies in memory.
            planes = cv2.cvtColor(frame, cv2.COLOR_RGB2YUV_I420)
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.asarray(planes, np.uint8), format="yuv420p")):
                container.mux(packet)
        if size is None:
            raise ValueError("a clip needs at least one frame")
        for packet in stream.encode(None):
            container.mux(packet)
