"""The one error of video decoding, with the three fields that a failed row of the feature store holds."""

from __future__ import annotations

STAGES = ("fetch", "sniff", "open", "decode", "face", "child")
MESSAGE_CHARACTERS = 500


class VideoError(Exception):
    """A video that cannot be read, or not to its end.

    `stage` says where it went wrong (one of `STAGES`), `error_type` is a short class such as "NotAVideo",
    "NoVideoStream", "NoFrames", "DamagedStream", "DecodeTimeout", "DecoderCrashed" or "OutOfMemory", and `message` is
    one line of at most 500 characters for a person. Messages leave out the path: the caller knows the video's name.
    """

    def __init__(self, stage: str, error_type: str, message: str) -> None:
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}: must be one of {', '.join(STAGES)}")
        self.stage = stage
        self.error_type = error_type
        self.message = " ".join(message.split())[:MESSAGE_CHARACTERS]
        super().__init__(stage, error_type, self.message)

    def __str__(self) -> str:
        return f"{self.error_type} ({self.stage}): {self.message}"
