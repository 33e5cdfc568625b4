"""Odd test videos, made by PyAV: what strangers' corpora hold, one function a peculiarity.

`write_clip` encodes a moving test card whose every frame shows its own number as a bright bar, so that a test can tell
which frame it was given (`frame_number`) whatever the codec did to the picture.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

NUMBER_BITS = 12
"""Frame numbers up to 4,095 are painted, a bit a block, along the top of the picture."""


def card(number: int, width_px: int = 192, height_px: int = 128) -> np.ndarray:
    """The test card of one frame: colour gradients that move, and the frame's number in black and white blocks."""
    y, x = np.mgrid[0:height_px, 0:width_px].astype(np.float32)
    picture = np.stack(
        [
            90 + 60 * np.sin((x + 3 * number) / 17),
            110 + 50 * np.cos((y - 2 * number) / 23),
            100 + 70 * np.sin((x + y + number) / 31),
        ],
        axis=-1,
    ).astype(np.uint8)
    side = width_px // NUMBER_BITS
    for bit in range(NUMBER_BITS):
        picture[: height_px // 4, bit * side : (bit + 1) * side] = 235 if number >> bit & 1 else 20
    return picture


def frame_number(picture: np.ndarray) -> int:
    """The number painted on a decoded card, uint8 (H, W, 3), upright and at its own size."""
    side = picture.shape[1] // NUMBER_BITS
    rows = slice(picture.shape[0] // 16, picture.shape[0] // 6)
    blocks = [
        picture[rows, bit * side + side // 4 : (bit + 1) * side - side // 4].mean() > 128 for bit in range(NUMBER_BITS)
    ]
    return sum(1 << bit for bit, bright in enumerate(blocks) if bright)


def write_clip(
    path: Path,
    *,
    frames: int = 40,
    fps: int = 20,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size_px: tuple[int, int] = (192, 128),
    gop: int = 10,
    b_frames: int = 2,
    times_s: Sequence[float] | None = None,
    first_time_s: float = 0.0,
    rotate_deg: int = 0,
    options: dict[str, str] | None = None,
    format: str | None = None,
    colour: dict[str, int] | None = None,
    audio: bool = False,
    picture: Callable[[int, int, int], np.ndarray] = card,
) -> Path:
    """Encode `frames` test cards to `path`; `times_s` gives each frame its own stamp (variable frame rate).

    `rotate_deg` writes a rotation tag: the clockwise turn that a player must give the stored picture, which is
    stored turned the other way round, so that upright frames show the card upright.
    """
    width_px, height_px = size_px
    with av.open(str(path), "w", format=format) as out:
        stream: Any = out.add_stream(codec, rate=fps, options=options or {})
        turned = rotate_deg in (90, 270)
        stream.width, stream.height = (height_px, width_px) if turned else (width_px, height_px)
        stream.pix_fmt = pix_fmt
        stream.codec_context.gop_size = gop
        stream.codec_context.thread_count = 1
        tick = Fraction(1, 1000) if times_s is not None else Fraction(1, fps)
        stream.codec_context.time_base = stream.time_base = tick
        if codec in ("libx264", "mpeg4"):
            stream.codec_context.max_b_frames = b_frames
        for name, value in (colour or {}).items():
            setattr(stream.codec_context, name, value)
        sound: Any = out.add_stream("aac", rate=16000, layout="mono") if audio else None
        for number in range(frames):
            upright = picture(number, width_px, height_px)
            stored = np.ascontiguousarray(np.rot90(upright, rotate_deg // 90))
            frame = av.VideoFrame.from_ndarray(stored, format="rgb24")
            if colour:
                frame = frame.reformat(
                    format=pix_fmt,
                    dst_colorspace=colour.get("colorspace"),
                    dst_color_range=colour.get("color_range"),
                )
            time_s = (times_s[number] if times_s is not None else number / fps) + first_time_s
            frame.pts, frame.time_base = round(time_s / tick), tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound is not None:
            _mux_silence(out, sound, seconds=frames / fps)
    if rotate_deg:
        _set_mp4_rotation(path, rotate_deg)
    return path


def write_audio_only(path: Path, *, seconds: float = 1.0) -> Path:
    """An mp4 that holds sound alone."""
    with av.open(str(path), "w") as out:
        _mux_silence(out, out.add_stream("aac", rate=16000, layout="mono"), seconds=seconds)
    return path


def _mux_silence(out: Any, sound: Any, *, seconds: float) -> None:
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
        out.mux(sound.encode(frame))
    out.mux(sound.encode(None))


def _set_mp4_rotation(path: Path, clockwise_deg: int) -> None:
    """Write the turn into the track header's matrix (ISO/IEC 14496-12, 8.3.2), as phones do."""
    one, a, b = 0x10000, *{90: (0, 0x10000), 180: (-0x10000, 0), 270: (0, -0x10000)}[clockwise_deg]
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") - 4
    matrix_at = at + 8 + 4 + 20 + 16  # version 0: times, ids and duration take 20 bytes, then layer to reserved
    matrix = np.array([a, b, 0, -b, a, 0, 0, 0, 0x40000000], dtype=">i4")
    assert int.from_bytes(data[matrix_at : matrix_at + 4], "big") == one
    data[matrix_at : matrix_at + 36] = matrix.tobytes()
    path.write_bytes(bytes(data))


def remux(source: Path, target: Path, *, times: int = 1, format: str | None = None, faststart: bool = False) -> Path:
    """The packets of `source` written `times` times over, one after the other, without encoding anew."""
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(target), "w", format=format, options=options) as out:
        stream: Any = None
        shift = 0
        for _ in range(times):
            with av.open(str(source)) as given:
                template = given.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(template)
                end = 0
                for packet in given.demux(template):
                    if packet.size == 0:
                        continue
                    end = max(end, packet.pts + packet.duration)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    out.mux(packet)
                shift += end
    return target


def truncate(path: Path, target: Path, *, keep: float = 0.6) -> Path:
    """The first part of an mp4 whose index stands in front, as a broken download leaves it."""
    whole = remux(path, target.with_name(f"whole-{target.name}"), faststart=True)
    data = whole.read_bytes()
    whole.unlink()
    target.write_bytes(data[: int(len(data) * keep)])
    return target


def without_index(path: Path, target: Path) -> Path:
    """An mp4 cut before its `moov` box, which stands at the end: no decoder can read it."""
    data = path.read_bytes()
    target.write_bytes(data[: data.index(b"moov") - 4])
    return target


def scratch_bytes(path: Path, target: Path, *, every: int = 1500, start: float = 0.3) -> Path:
    """The same file with single bytes of its coded pictures overwritten: bit rot that keeps every packet's length."""
    data = bytearray(path.read_bytes())
    media = data.index(b"mdat") + 4
    end = data.index(b"moov", media) if b"moov" in data[media:] else len(data)
    for at in range(media + int((end - media) * start), end - 64, every):
        data[at : at + 8] = b"\x5a" * 8
    target.write_bytes(bytes(data))
    return target


def zero_frames(path: Path) -> Path:
    """An mp4 with a video track and not one sample in it (an initialisation segment of a stream)."""
    with av.open(
        str(path), "w", format="mp4", options={"movflags": "empty_moov+default_base_moof+frag_keyframe"}
    ) as out:
        stream: Any = out.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        out.start_encoding()
    return path


def in_memory(path: Path) -> io.BytesIO:
    """The file's bytes as a file object."""
    return io.BytesIO(path.read_bytes())
