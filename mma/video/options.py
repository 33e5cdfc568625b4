"""The settings of decoding, as `extract` offers them and as the child process gets them."""

from __future__ import annotations

from dataclasses import dataclass, field

from mma.faces import FaceOptions

DECODERS = ("pyav", "decord", "auto")


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How videos are sampled, decoded and guarded."""

    fps: float | None = None
    """Frames a second to take, on the container's own time stamps; None takes every frame."""

    chunk_frames: int = 1024
    """Sampled frames a chunk at most; a full chunk holds 37 KiB of pixels a frame with a face."""

    decoder: str = "pyav"
    """"pyav", "decord" (refused where decord cannot), or "auto" (decord where it can, else PyAV)."""

    memory_bytes: int = 2 << 30
    """Address space the decoding child may take, in bytes; beyond it the video fails with OutOfMemory."""

    timeout_s: float = 60.0
    """Seconds without a new frame after which the child is killed and the video fails with DecodeTimeout."""

    videos_per_child: int = 300
    """Videos after which the child is replaced by a fresh one, so that what decoders leak does not add up."""

    faces: FaceOptions = field(default_factory=FaceOptions)
    """How faces are found, followed and cropped."""

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ValueError(f"--fps {self.fps}: must be above 0 and at most 1000, or left out for all frames")
        if self.chunk_frames < 1:
            raise ValueError(f"--chunk-frames {self.chunk_frames}: must be 1 or more")
        if self.decoder not in DECODERS:
            raise ValueError(f"--decoder {self.decoder}: must be one of {', '.join(DECODERS)}")
        if self.memory_bytes < 768 << 20:
            raise ValueError(f"--decode-memory {self.memory_bytes}: the decoders alone map 600 MiB; give 2 GiB or so")
        if not self.timeout_s > 0:
            raise ValueError(f"--decode-timeout-s {self.timeout_s}: must be above 0")
        if self.videos_per_child < 1:
            raise ValueError(f"--videos-per-child {self.videos_per_child}: must be 1 or more")
