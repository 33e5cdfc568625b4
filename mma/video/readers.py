"""Open a video and read its frames: one interface, decord and PyAV behind it.

A file is read straight through, group of pictures by group of pictures; groups without a wanted frame are passed over
undecoded, and within a group decoding ends at the last wanted frame. Nothing seeks, so no container's broken seek table
can move a frame. Frames are numbered and timed by `index` alone, whichever decoder gives the pixels.

PyAV decodes unless decord is asked for: the pixels are the same, and on one core PyAV is the faster (README, "Speed").
decord decodes where it can: a known codec, stamps that can be trusted, groups small enough for its read-ahead. Where it
refuses in mid-stream, PyAV takes over from the first frame not handed out yet.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mma.video import decord_group
from mma.video.chunk import VideoInfo
from mma.video.errors import VideoError
from mma.video.index import FrameIndex, decode_packet, open_container, packets, read_index

Frame = tuple[int, NDArray[np.uint8]]
Run = tuple[int, int, NDArray[np.int64]]
"""Packets to decode, from the first to before the end, and the wanted frames in them."""


class VideoReader:
    """An opened video. `decoder` is "decord", "pyav", or "decord+pyav" once PyAV has taken over in mid-stream."""

    def __init__(self, path: str, index: FrameIndex, *, decoder: str, on_decoded: Callable[[], None]) -> None:
        self._path = path
        self._index = index
        self._on_decoded = on_decoded
        picture = index.picture
        self._stored_px, self._quarter_turns = picture.stored_px, picture.quarter_turns
        self._carrier = decord_group.carrier(picture.codec, turned=self._quarter_turns > 0)
        width_px, height_px = self._stored_px[:: -1 if self._quarter_turns % 2 else 1]
        span_s = float(index.times_s[-1] - index.times_s[0])
        num_frames = len(index.times_s)
        self.times_s = index.times_s
        self.info = VideoInfo(
            width_px=width_px,
            height_px=height_px,
            source_fps=(num_frames - 1) / span_s if span_s > 0 else picture.rate,
            duration_s=max(float(index.end_s - index.times_s[0]), span_s),
            num_frames=num_frames,
        )
        self._lost: list[int] = []
        self._decord_alone = decoder == "decord"
        refusal = self._why_not_decord() if decoder != "pyav" else "not asked for"
        if decoder == "decord" and refusal is not None:
            raise VideoError("open", "DecordRefused", f"{refusal}; --decoder auto reads it by PyAV")
        self.decoder = "pyav" if refusal is not None else "decord"

    @property
    def damage(self) -> str | None:
        """What was lost of the frames asked for, in words for a person; None if nothing. Known after `frames`."""
        parts = [self._index.damage] if self._index.damage else []
        if self._lost:
            first = self._lost[0]
            parts.append(
                f"{len(self._lost)} frames could not be decoded, the first of them {first} "
                f"at {self.times_s[first]:.2f} s"
            )
        return "; ".join(parts) or None

    def frames(self, indices: Iterable[int]) -> Iterator[Frame]:
        """(index, uint8 (H, W, 3) RGB, upright) for each of `indices`, which must increase; lost ones are left out.

        Memory is bounded by one group of pictures (at most `decord_group.GROUP_BYTES`) or, in PyAV, by a few frames.
        """
        wanted = np.asarray(list(indices), dtype=np.int64)
        if len(wanted) and (wanted[0] < 0 or wanted[-1] >= len(self.times_s) or (np.diff(wanted) <= 0).any()):
            raise ValueError(f"indices must increase and lie in 0 to {len(self.times_s) - 1}")
        self._lost = []
        given = -1
        for frame, picture in self._decoded(wanted):
            self._lost.extend(wanted[(wanted > given) & (wanted < frame)].tolist())
            given = frame
            yield frame, picture
        self._lost.extend(wanted[wanted > given].tolist())

    def _decoded(self, wanted: NDArray[np.int64]) -> Iterator[Frame]:
        given = -1
        if self.decoder.startswith("decord"):
            self.decoder = "decord"
            try:
                for found in self._groups_by_decord(wanted):
                    for given, picture in found:
                        yield given, picture
                return
            except decord_group.RefusedError as error:
                if self._decord_alone:
                    raise VideoError("decode", "DecordRefused", f"{error}; --decoder auto goes on by PyAV") from error
                self.decoder = "pyav" if given < 0 else "decord+pyav"
                wanted = wanted[wanted > given]
        yield from self._by_pyav(wanted)

    # --- groups of pictures ---

    def _plan(self, wanted: NDArray[np.int64]) -> Iterator[Run]:
        """(first packet, end packet, wanted frames) of each group with a wanted frame, cut behind its last one."""
        frame_of_packet = self._index.frame_of_packet
        starts = self._index.group_starts
        ends = np.append(starts[1:], len(frame_of_packet))
        packet_of_frame = np.zeros(len(self.times_s), dtype=np.int64)
        shown = np.flatnonzero(frame_of_packet >= 0)
        packet_of_frame[frame_of_packet[shown]] = shown
        needed = packet_of_frame[wanted]
        group_of_wanted = np.searchsorted(starts, needed, side="right") - 1
        for group in np.unique(group_of_wanted):
            here = group_of_wanted == group
            yield int(starts[group]), min(int(needed[here].max()) + 1, int(ends[group])), wanted[here]

    def _runs(self, wanted: NDArray[np.int64], most_frames: float = np.inf) -> Iterator[Run]:
        """The plan, with groups that follow one another joined as long as they hold at most `most_frames`."""
        joined: list[Run] = []
        for first, end, here in self._plan(wanted):
            if joined and (joined[-1][1] != first or end - joined[0][0] > most_frames):
                yield _join(joined)
                joined = []
            joined.append((first, end, here))
        if joined:
            yield _join(joined)

    def _why_not_decord(self) -> str | None:
        if self._carrier is None:
            return "decord does not decode this codec well"
        if self._index.frame_of_stamp is None:
            return "decord needs time stamps on every packet"
        if self._index.damage is not None:
            return "the file is damaged"
        if (self._index.frame_of_packet < 0).any():
            return "an edit list hides frames"
        if importlib.util.find_spec("decord") is None:
            return "decord is not installed"
        lengths = np.diff(np.append(self._index.group_starts, len(self._index.frame_of_packet)))
        frame_bytes = 3 * self._stored_px[0] * self._stored_px[1]
        if int(lengths.max()) * frame_bytes > decord_group.GROUP_BYTES:
            return f"{int(lengths.max())} frames between key frames are too many for decord's read-ahead"
        return None

    def _groups_by_decord(self, wanted: NDArray[np.int64]) -> Iterator[Iterator[Frame]]:
        assert self._carrier is not None
        container, stream = open_container(self._path)
        with container:
            numbered = enumerate(packets(container, stream))
            frame_bytes = 3 * self._stored_px[0] * self._stored_px[1]
            most_frames = min(decord_group.JOINED_FRAMES, decord_group.GROUP_BYTES // frame_bytes)
            for first, end, here in self._runs(wanted, most_frames):
                held = []
                for number, packet in numbered:
                    if number >= first:
                        held.append(packet)
                    if number + 1 >= end:
                        break
                order = np.sort(self._index.frame_of_packet[first:end])
                places = np.searchsorted(order, here)
                pictures = decord_group.decode_group(
                    held, stream, places.tolist(), self._stored_px, carrier=self._carrier, on_decoded=self._on_decoded
                )
                yield ((int(frame), self._upright(picture)) for frame, picture in zip(here, pictures))

    def _by_pyav(self, wanted: NDArray[np.int64]) -> Iterator[Frame]:
        container, stream = open_container(self._path)
        with container:
            codec = stream.codec_context
            numbered = enumerate(packets(container, stream))
            if self._index.frame_of_stamp is None:
                yield from self._counted_by_pyav(codec, (packet for _, packet in numbered), wanted)
                return
            given = -1
            for first, end, here in self._runs(wanted):
                asked = set(here.tolist())
                for decoded in _decode(codec, _between(numbered, first, end)):
                    self._on_decoded()
                    frame = self._index.frame_of_stamp.get(decoded.pts, -1)
                    # A broken stream can give a frame twice, or late: the first counts.
                    if frame in asked and frame > given and not decoded.is_corrupt:
                        given = frame
                        yield frame, self._rgb(decoded)
                codec.flush_buffers()

    def _counted_by_pyav(self, codec: Any, stream_packets: Iterable[Any], wanted: NDArray[np.int64]) -> Iterator[Frame]:
        asked = set(wanted.tolist())
        for frame, decoded in enumerate(_decode(codec, stream_packets)):
            self._on_decoded()
            if frame in asked and not decoded.is_corrupt:
                yield frame, self._rgb(decoded)

    # --- pictures ---

    def _rgb(self, decoded: Any) -> NDArray[np.uint8]:
        # A stream may change its size on the way: the first picture's size holds, as in decord.
        width_px, height_px = self._stored_px
        # One thread: the scaler would start some of its own for each frame.
        return self._upright(decoded.to_ndarray(format="rgb24", width=width_px, height=height_px, threads=1))

    def _upright(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return np.ascontiguousarray(np.rot90(picture, self._quarter_turns)) if self._quarter_turns else picture


def open_video(
    path: str | os.PathLike[str], *, decoder: str = "pyav", on_decoded: Callable[[], None] = lambda: None
) -> VideoReader:
    """The regular local file at `path`, ready to read. `on_decoded` is called for each sign of life.

    `decoder`: "pyav", "decord" (refused where decord cannot), or "auto" (decord where it can, else PyAV).
    Raises VideoError of stages "sniff" and "open".
    """
    local = os.path.abspath(os.fspath(path))
    return VideoReader(local, read_index(local, on_decoded), decoder=decoder, on_decoded=on_decoded)


def _join(runs: list[Run]) -> Run:
    return runs[0][0], runs[-1][1], np.concatenate([wanted for _, _, wanted in runs])


def _between(numbered: Iterator[tuple[int, Any]], first: int, end: int) -> Iterator[Any]:
    for number, packet in numbered:
        if number >= first:
            yield packet
        if number + 1 >= end:
            return


def _decode(codec: Any, stream_packets: Iterable[Any]) -> Iterator[Any]:
    """All frames of the packets, those held back for reordering too; packets that cannot be decoded are passed over."""
    for packet in itertools.chain(stream_packets, [None]):
        yield from decode_packet(codec, packet)
