"""The table of a video's frames: one pass over the packets, of which only the first are decoded, before any is read.

Both decoders count and time frames by this table alone, so index and time agree between them by construction. It also
says where decoding may start: at key frames behind which nothing looks back ("closed" groups of pictures).

Opening follows the rules for strangers' files: the demuxer that `sniff` named and no other, no protocol but `file`, and
no files that a QuickTime reference track points to.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from mma.video.container import sniff
from mma.video.errors import VideoError

PROBE_PACKETS = 64
"""Packets decoded on opening until a first frame tells the picture's size and turn."""
MAX_READ_ERRORS = 64
"""Read errors in a row after which the rest of a file counts as lost."""

Progress = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the first frame that can be decoded shows of all of them."""

    stored_px: tuple[int, int]
    """Width and height before it is turned."""
    quarter_turns: int
    """To the left, which make it upright."""
    codec: str
    """FFmpeg's name."""
    rate: float
    """Frames a second as the container says, NaN where it does not."""


@dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """The frames of one video stream in presentation order (N frames), and its packets in file order (P packets)."""

    times_s: NDArray[np.float64]
    """(N,) the container's stamps in seconds."""

    end_s: float
    """End of the last frame, in seconds."""

    frame_of_stamp: dict[int, int] | None
    """Frame number by stamp in ticks; None where packets' stamps are not the frames' (AVI with B-frames), and frames
    are counted as they come instead."""

    frame_of_packet: NDArray[np.int64]
    """(P,) the frame a packet holds; -1 for what an edit list hides."""

    group_starts: NDArray[np.int64]
    """(G,) packet numbers at which decoding may start."""

    picture: Picture

    damage: str | None
    """What reading the packets already showed to be lost."""


def open_container(path: str) -> tuple[Any, Any]:
    """The container at `path` and its video stream, by PyAV. Raises VideoError (stages "sniff" and "open")."""
    demuxer = sniff(path)
    options = {"protocol_whitelist": "file", "format_whitelist": demuxer}
    if demuxer == "mov":
        options["format_whitelist"] = "mov,mp4,m4a,3gp,3g2,mj2"
        options |= {"enable_drefs": "0", "use_absolute_path": "0"}
    elif demuxer == "matroska":
        options["format_whitelist"] = "matroska,webm"
    try:
        container = av.open(os.path.abspath(path), format=demuxer, options=options)
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:
        raise VideoError("open", "CannotOpen", f"the {demuxer} container cannot be opened: {_reason(error)}") from error
    pictures = [stream for stream in container.streams.video if not _is_cover(stream)]
    if not pictures:
        kinds = sorted({stream.type for stream in container.streams})
        container.close()
        raise VideoError("open", "NoVideoStream", f"no video stream, only {', '.join(kinds) or 'an empty container'}")
    best = container.streams.best("video")
    stream = next((picture for picture in pictures if best is not None and picture.index == best.index), pictures[0])
    if stream.codec_context is None:
        container.close()
        raise VideoError("open", "UnknownCodec", "the video stream's codec is unknown to this build of FFmpeg")
    # One thread: a decode slot is one core, and frame threads would hold a frame each.
    stream.codec_context.thread_count = 1
    return container, stream


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets in file order, going on after read errors for as long as the container does."""
    errors = 0
    while errors < MAX_READ_ERRORS:
        try:
            for packet in container.demux(stream):
                if packet.size:
                    errors = 0
                    yield packet
            return
        except EOFError:
            return
        except MemoryError:
            raise
        except av.FFmpegError:
            errors += 1


def decode_packet(codec: Any, packet: Any) -> list[Any]:
    """The frames that a packet (None: the stream's end) brings out; none where it cannot be decoded."""
    try:
        return list(codec.decode(packet))
    except MemoryError:
        raise
    except av.FFmpegError:
        return []


def _first_frame(codec: Any, packet: Any) -> Any:
    return next(iter(decode_packet(codec, packet)), None)


def read_index(path: str, progress: Progress = lambda: None) -> FrameIndex:
    """The frames of the video at `path`. `progress` is called now and then.

    Raises VideoError: what `open_container` raises, and "NoFrames" (stage "open") for a stream without a frame, or
    without a picture size and without a frame that can be decoded among the first.
    """
    container, stream = open_container(path)
    with container:
        stamps: list[int] = []
        hidden: list[bool] = []
        keys: list[bool] = []
        trusted = not (container.format.name == "avi" and stream.codec_context.has_b_frames)
        end = 0
        first: Any = None
        for packet in packets(container, stream):
            if first is None and len(stamps) < PROBE_PACKETS:
                first = _first_frame(stream.codec_context, packet)
            trusted = trusted and packet.pts is not None
            stamp = packet.pts if packet.pts is not None else (packet.dts or 0)
            stamps.append(stamp)
            hidden.append(packet.is_discard)
            keys.append(packet.is_keyframe)
            end = max(end, stamp + (packet.duration or 0)) if len(stamps) > 1 else stamp + (packet.duration or 0)
            if len(stamps) % 256 == 0:
                progress()
        tick_s = float(stream.time_base)
        declared = stream.frames if container.format.name.startswith("mov") else 0
        tail_s = _declared_end_s(stream)
        first = _first_frame(stream.codec_context, None) if first is None else first
        size = first or stream.codec_context
        picture = Picture(
            stored_px=(size.width, size.height),
            quarter_turns=round(first.rotation / 90) % 4 if first else 0,
            codec=stream.codec_context.codec.canonical_name,
            rate=float(stream.average_rate or np.nan),
        )
    del first, size, stream, container  # and the decoder with them: another pass has its own
    shown = np.array([not hide for hide in hidden], dtype=bool)
    ticks = np.array(stamps, dtype=np.int64)
    seconds: NDArray[np.float64] = np.multiply(ticks, tick_s, dtype=np.float64)
    if not shown.any():
        raise VideoError("open", "NoFrames", "the video stream holds no frame")
    if not all(picture.stored_px):
        raise VideoError("open", "NoFrames", f"not one of the first {PROBE_PACKETS} packets could be decoded")
    if not trusted or len(np.unique(ticks[shown])) != shown.sum():
        return _counted_index(path, seconds, picture, progress)
    order = np.flatnonzero(shown)[np.argsort(ticks[shown], kind="stable")]
    frame_of_packet = np.full(len(ticks), -1, dtype=np.int64)
    frame_of_packet[order] = np.arange(len(order))
    damage, end_s = None, end * tick_s
    if declared > len(ticks):
        damage = f"the file ends early: {len(ticks)} of {declared} frames are there"
        if len(order) > 1:
            every_s = float(np.median(np.diff(seconds[order])))
            end_s = max(end_s, float(seconds[order[0]]) + (declared - hidden.count(True)) * every_s)
    elif tail_s is not None and tail_s > end_s + max(1.0, 0.02 * tail_s):
        damage = f"the file ends early: frames to {end_s:.2f} s of {tail_s:.2f} s"
        end_s = tail_s
    return FrameIndex(
        times_s=seconds[order],
        end_s=end_s,
        frame_of_stamp={int(ticks[packet]): frame for frame, packet in enumerate(order)},
        frame_of_packet=frame_of_packet,
        group_starts=closed_groups(ticks, np.array(keys, dtype=bool)),
        picture=picture,
        damage=damage,
    )


def closed_groups(stamps: NDArray[np.int64], keys: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Packet numbers where all before is shown before, and all behind is shown behind: int64 (G,), always with 0.

    `stamps` (P,) presentation stamps in file order. A key frame followed by pictures that are shown before it
    (an "open" group) is left out: these look back at the group before.
    """
    before = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(stamps)[:-1]])
    after = np.minimum.accumulate(stamps[::-1])[::-1]
    starts = keys & (before < stamps) & (after >= stamps)
    starts[0] = True
    return np.flatnonzero(starts).astype(np.int64)


def _declared_end_s(stream: Any) -> float | None:
    """The end of the stream as Matroska's statistics tag says it ("00:00:02.000000000")."""
    parts = stream.metadata.get("DURATION", "").split(":")
    try:
        hours, minutes, seconds = (float(part) for part in parts)
    except ValueError:
        return None
    return 3600 * hours + 60 * minutes + seconds


def _counted_index(path: str, packet_times_s: NDArray[np.float64], picture: Picture, progress: Progress) -> FrameIndex:
    """The index for streams whose packets do not say when their picture is shown: everything is decoded once to count.

    The n-th frame gets the n-th packet time if there are as many, else frames are spread evenly by the mean rate.
    """
    container, stream = open_container(path)
    count = 0
    with container:
        step_s = float(1 / stream.average_rate) if stream.average_rate else 0.04
        for packet in itertools.chain(packets(container, stream), [None]):
            count += len(decode_packet(stream.codec_context, packet))
            progress()
    if not count:
        raise VideoError("open", "NoFrames", f"not one of {len(packet_times_s)} packets could be decoded")
    if len(np.unique(packet_times_s)) == count:
        times_s = np.unique(packet_times_s)
    else:
        times_s = packet_times_s.min() + step_s * np.arange(count)
    return FrameIndex(
        times_s=times_s,
        end_s=float(times_s[-1]) + step_s,
        frame_of_stamp=None,
        frame_of_packet=np.full(len(packet_times_s), -1, dtype=np.int64),
        group_starts=np.zeros(1, dtype=np.int64),
        picture=picture,
        damage=None,
    )
