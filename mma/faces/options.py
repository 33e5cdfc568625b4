"""Settings of face finding: which detector, how often it looks, and what it accepts."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mma.faces.alignment import GEOMETRY

YUNET_FILE = "face_detection_yunet_2023mar.onnx"
"""The name of YuNet's weights in the OpenCV model zoo."""

_OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "haar": {"detect_size_px": 240, "min_score": 0.0, "smooth_s": 0.06},
    "yunet": {"detect_size_px": 320, "min_score": 0.6, "smooth_s": 0.0},
    "none": {"detect_size_px": 320, "min_score": 0.0, "smooth_s": 0.0},  # the first two mean nothing there
}


@dataclass(frozen=True, kw_only=True)
class FaceOptions:
    """How faces are found in a video. None stands for the detector's own value, which `resolved` fills in."""

    detector: Literal["haar", "yunet", "none"] = "haar"
    """`haar`: OpenCV's bundled cascade, boxes alone. `yunet`: a small network, boxes and five points, needs
    `detector_weights`. `none`: the frame is the face, for clips that are crops already."""
    detector_weights: str | None = None
    """Local path of YuNet's ONNX file (face_detection_yunet_2023mar.onnx of the OpenCV model zoo)."""
    detect_every: int = 1
    """The detector looks at every k-th sampled frame and at a video's last one; boxes in between are
    interpolated in time."""
    detect_size_px: int | None = None
    """Longer side of the picture that the detector sees, px; never enlarged. Own values: haar 240 (on a real clip it
    found 472 faces of 472 in 17 ms a frame, at 320 px 470 in 26 ms), yunet 320 (2 ms)."""
    min_score: float | None = None
    """Detections with a smaller score are dropped. Own values: haar 0 (the last stage's weight, open upwards),
    yunet .6 (a confidence in [0, 1])."""
    min_face_px: int = 32
    """Faces whose longer edge is shorter than this in the frame are dropped, px. Haar cannot see faces under 24 px of
    the picture it gets, whatever stands here."""
    smooth_s: float | None = None
    """Time constant of the smoothing of a followed face's box and points over detections, s; 0 is none. Own values:
    haar .06 (on a real clip its box centres moved 1.1 % of the side a frame, so .7 %, no further from the face),
    yunet 0."""
    window_frames: int = 64
    """The person to follow is chosen over this many sampled frames: the largest sum of areas x share of frames
    present."""
    lost_s: float = 1.0
    """A person unseen for longer than this, s, and in at least two detections, is lost, and another may be chosen."""

    def __post_init__(self) -> None:
        if self.detector not in _OWN_SETTINGS:
            raise ValueError(f"--detector {self.detector}: unknown; choose haar, yunet or none")
        if self.detector == "yunet" and not self.detector_weights:
            raise ValueError(
                f"--detector yunet needs --detector-weights FILE: {YUNET_FILE} of the OpenCV model zoo "
                "(face_detection_yunet), or choose --detector haar"
            )
        for name, least in {"detect_every": 1, "detect_size_px": 32, "min_face_px": 1, "window_frames": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give {least} or more")
        if not self.lost_s > 0:
            raise ValueError(f"--lost-s {self.lost_s}: give seconds above 0")
        if self.smooth_s is not None and not self.smooth_s >= 0:
            raise ValueError(f"--smooth-s {self.smooth_s}: give seconds, 0 for none")

    def resolved(self) -> FaceOptions:
        """The same with every None replaced by the detector's own value."""
        own = {name: value for name, value in _OWN_SETTINGS[self.detector].items() if getattr(self, name) is None}
        return replace(self, **own)

    def spec(self) -> dict[str, Any]:
        """What two stores must share to be comparable, as JSON values; raises as `weights_sha256` does.

        Settings with their resolved values, the weights by content (not by path) and the crop geometry.
        """
        settings = asdict(self.resolved())
        del settings["detector_weights"]
        return {**settings, "weights_sha256": self.weights_sha256(), "crop": GEOMETRY.spec()}

    def weights_sha256(self) -> str | None:
        """The sha256 of the detector's weights, None for detectors without; raises FileNotFoundError, one line."""
        if self.detector != "yunet":
            return None
        return hashlib.sha256(self.weights_file().read_bytes()).hexdigest()

    def weights_file(self) -> Path:
        """YuNet's weights as a path that exists; raises FileNotFoundError with one line that says how to get them."""
        path = Path(self.detector_weights or "")
        if not path.is_file():
            raise FileNotFoundError(
                f"--detector-weights {path}: no such file; get {YUNET_FILE} of the OpenCV model zoo "
                "(face_detection_yunet), or choose --detector haar"
            )
        return path
