"""What decoding gives: the facts of a video, and its chunks of face crops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CROP_PX = 112


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """A video's own facts, read once when it is opened."""

    width_px: int
    """Width of the upright picture."""

    height_px: int
    """Height of the upright picture."""

    source_fps: float
    """Mean frames a second by the time stamps; NaN for a still of one frame that says none."""

    duration_s: float
    """From the first frame's stamp to the last one's end."""

    num_frames: int
    """Frames that have a time stamp, lost ones included."""


@dataclass(frozen=True, kw_only=True)
class FaceChunk:
    """At most `chunk_frames` sampled frames of one video, in presentation order; F frames, K of them with a face."""

    chunk_index: int
    """Counts from 0."""

    is_last: bool
    """Whether the video ends here."""

    frame_index: NDArray[np.int32]
    """(F,) frame of the source, counted in presentation order."""

    time_s: NDArray[np.float64]
    """(F,) the container's own stamps, in seconds."""

    face_found: NDArray[np.bool_]
    """(F,)"""

    face_score: NDArray[np.float32]
    """(F,), NaN where no face was found."""

    face_box: NDArray[np.float32]
    """(F, 4) x, y, w, h in px of the upright frame."""

    face_points: NDArray[np.float32]
    """(F, 10) five points as x, y in px; NaN where the detector gives none."""

    num_faces: NDArray[np.int16]
    """(F,) faces the detector saw."""

    faces: NDArray[np.uint8]
    """(K, 112, 112, 3) RGB crops of the frames with a face, in order."""

    info: VideoInfo
    """Facts of the whole video."""

    decoder: str
    """"decord", "pyav", or, on the last chunk, "decord+pyav" where PyAV took over in mid-stream."""

    damage: str | None
    """On the last chunk: what of the video was lost, None if nothing."""

    def __post_init__(self) -> None:
        frames = len(self.frame_index)
        for name in ("time_s", "face_found", "face_score", "face_box", "face_points", "num_faces"):
            if len(getattr(self, name)) != frames:
                raise ValueError(f"{name} holds {len(getattr(self, name))} frames, frame_index {frames}")
        if self.faces.shape != (int(self.face_found.sum()), CROP_PX, CROP_PX, 3):
            raise ValueError(f"faces is {self.faces.shape} for {int(self.face_found.sum())} frames with a face")
