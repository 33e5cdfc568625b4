"""Frames from the child, a few at a time, put together into chunks of a fixed size."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mma.video.chunk import FaceChunk, VideoInfo
from mma.video.wire import CROP_SHAPE, ROW


class ChunkBuilder:
    """Collects frames of one video; a full chunk is given once it is known whether another frame follows.

    So chunk borders depend on the frames' number alone, never on the sizes of the messages that brought them.
    """

    def __init__(self, chunk_frames: int) -> None:
        self._chunk_frames = chunk_frames
        self._info: VideoInfo | None = None
        self._decoder = ""
        self._chunks_given = 0
        self._last_frame = -1
        self._new_buffers()

    def _new_buffers(self) -> None:
        self._rows = np.empty(self._chunk_frames, dtype=ROW)
        # Pages that no face is written to are never touched, so this costs what is found.
        self._crops = np.empty((self._chunk_frames, *CROP_SHAPE), dtype=np.uint8)
        self.rows_held = 0
        self._crops_held = 0

    @property
    def reached(self) -> str:
        """How far the video came, for messages."""
        return f"after frame {self._last_frame}" if self._last_frame >= 0 else "before the first frame"

    def opened(self, info: VideoInfo, decoder: str) -> None:
        """Keep the video's facts for its chunks."""
        self._info = info
        self._decoder = decoder

    def add(self, rows: NDArray[np.void], crops: NDArray[np.uint8]) -> Iterator[FaceChunk]:
        """Take frames (rows of `ROW`, and the crops of those found) and give the chunks that they push out."""
        crop = 0
        for row in rows:
            if self.rows_held == self._chunk_frames:
                yield self.cut()
            self._rows[self.rows_held] = row
            self.rows_held += 1
            self._last_frame = int(row["frame_index"])
            if row["face_found"]:
                self._crops[self._crops_held] = crops[crop]
                self._crops_held += 1
                crop += 1

    def cut(self) -> FaceChunk:
        """What is held, as a chunk that is not the last."""
        return self._give(is_last=False, decoder=self._decoder, damage=None)

    def last(self, decoder: str, damage: str | None) -> FaceChunk:
        """What is held, as the last chunk."""
        return self._give(is_last=True, decoder=decoder, damage=damage)

    def _give(self, *, is_last: bool, decoder: str, damage: str | None) -> FaceChunk:
        assert self._info is not None, "frames before the message that the video is open"
        rows = self._rows[: self.rows_held]
        chunk = FaceChunk(
            chunk_index=self._chunks_given,
            is_last=is_last,
            faces=self._crops[: self._crops_held],
            info=self._info,
            decoder=decoder,
            damage=damage,
            **{name: np.ascontiguousarray(rows[name]) for name in ROW.names or ()},
        )
        self._chunks_given += 1
        self._new_buffers()
        return chunk
