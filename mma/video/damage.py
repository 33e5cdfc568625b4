"""Bad and odd files, made from good clips: what `synth --damaged K` adds to a corpus.

Real corpora hold all of these. Each comes with the status that `extract` must give it, so that a test can demand it.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from mma.video.readers import open_video


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a kind is made from."""

    clip: Path
    random: np.random.Generator
    round: int
    """How often the kinds were gone through before."""


def write_damaged(
    folder: str | os.PathLike[str], good_clips: Sequence[str | os.PathLike[str]], k: int, seed: int
) -> list[dict[str, Any]]:
    """Write `k` files into `folder`, going round the kinds, and say what each is.

    Returns a dict a file: "name", "kind", and "expected": "failed", "partial", "ok" or "no_face". The same clips and
    seed give the same bytes. `good_clips` are local files that can be read, at least one, with at least 4 frames.
    """
    if k and not good_clips:
        raise ValueError("good_clips is empty: damaged files are made from good ones; make at least one clip")
    random = np.random.default_rng(seed)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(k):
        turn, place = divmod(number, len(KINDS))
        kind, make = KINDS[place]
        source = _Source(clip=Path(good_clips[int(random.integers(len(good_clips)))]), random=random, round=turn)
        data, expected, suffix = make(source)
        name = f"damaged_{number:03d}{suffix}"
        (target / name).write_bytes(data)
        written.append({"name": name, "kind": kind, "expected": expected})
    return written


Made = tuple[bytes, str, str]
"""The file's bytes, the expected status, and the end of its name."""


def _empty(_source: _Source) -> Made:
    return b"", "failed", ".mp4"


def _truncated(source: _Source) -> Made:
    """The index stands in front, the last part of the pictures is gone."""
    with tempfile.TemporaryDirectory() as scratch:  # the muxer opens the file anew to move the index
        whole = Path(scratch) / "whole.mp4"
        with av.open(str(source.clip)) as given, av.open(str(whole), "w", options={"movflags": "faststart"}) as out:
            template = given.streams.video[0]
            stream = out.add_stream_from_template(template)
            for packet in given.demux(template):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        data = whole.read_bytes()
    pictures_at = data.index(b"mdat") + 4
    kept = source.random.uniform(0.55, 0.8)
    return data[: pictures_at + int((len(data) - pictures_at) * kept)], "partial", ".mp4"


def _garbage(source: _Source) -> Made:
    noise = source.random.bytes(int(source.random.integers(20_000, 60_000)))
    # Every other one looks like an mp4 at first.
    return (b"\x00\x00\x00\x18ftypisom" + noise if source.round % 2 else b"\xfe" + noise), "failed", ".mp4"


def _zero_frames(source: _Source) -> Made:
    """A video track without a picture, as a recording that was stopped at once."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4", options={"movflags": "empty_moov"}) as out:
        stream: Any = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        out.start_encoding()
    return memory.getvalue(), "failed", ".mp4"


def _audio_only(source: _Source) -> Made:
    memory = io.BytesIO()
    tone = (0.2 * np.sin(np.arange(16384) * source.random.uniform(0.05, 0.2))).astype(np.float32)
    with av.open(memory, "w", format="mp4") as out:
        sound = out.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(tone[None, start : start + 1024], format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, start, Fraction(1, 16000)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return memory.getvalue(), "failed", ".mp4"


def _wrongly_named(source: _Source) -> Made:
    """A text, an mp4 called .avi, a playlist and a picture, one after the other."""
    kinds: list[Callable[[], Made]] = [
        lambda: (b"This clip was removed at the request of its owner.\n", "failed", ".mp4"),
        lambda: (source.clip.read_bytes(), "ok", ".avi"),
        lambda: (f"#EXTM3U\n#EXTINF:5,\n{source.clip.name}\n#EXT-X-ENDLIST\n".encode(), "failed", ".mp4"),
        lambda: (_picture(source), "failed", ".mp4"),
    ]
    return kinds[source.round % len(kinds)]()


def _picture(source: _Source) -> bytes:
    memory = io.BytesIO()
    with av.open(memory, "w", format="image2pipe") as out:
        stream: Any = out.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        noise = source.random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        out.mux(stream.encode(None))
    return memory.getvalue()


def _rotated(source: _Source) -> Made:
    """Stored on its side or upside down, with the tag that turns it upright, as phones record."""
    reader = open_video(source.clip, decoder="pyav")
    clockwise_deg = int(source.random.choice([90, 180, 270]))
    stored = (
        np.ascontiguousarray(np.rot90(picture, clockwise_deg // 90))
        for _, picture in reader.frames(range(reader.info.num_frames))
    )
    return tagged(_encode(stored, reader.info.source_fps), clockwise_deg), "ok", ".mp4"


def _faceless(source: _Source) -> Made:
    """Soft colours that drift: nothing that a detector could take for a face."""
    info = open_video(source.clip, decoder="pyav").info
    height_px, width_px = info.height_px // 2 * 2, info.width_px // 2 * 2
    y, x = np.mgrid[0:height_px, 0:width_px] / max(height_px, width_px)
    phase = source.random.uniform(0, 6, size=3)

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for number in range(min(info.num_frames, 60)):
            waves = [np.sin(2 * x + phase[c] + 0.03 * number) * np.cos(1.5 * y + phase[c]) for c in range(3)]
            yield (120 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)

    return _encode(pictures(), info.source_fps), "no_face", ".mp4"


KINDS: tuple[tuple[str, Callable[[_Source], Made]], ...] = (
    ("empty", _empty),
    ("truncated", _truncated),
    ("garbage", _garbage),
    ("zero-frame", _zero_frames),
    ("audio-only", _audio_only),
    ("wrongly-named", _wrongly_named),
    ("rotated", _rotated),
    ("face-less", _faceless),
)
"""In the order in which they are gone round."""


def _encode(pictures: Iterator[NDArray[np.uint8]], fps: float) -> bytes:
    """An h264 mp4 of uint8 (H, W, 3) pictures; an odd row or column is cut off."""
    memory = io.BytesIO()
    rate = Fraction(fps if np.isfinite(fps) else 25).limit_denominator(1001)
    with av.open(memory, "w", format="mp4") as out:
        stream: Any = out.add_stream("libx264", rate=rate, options={"crf": "18", "preset": "ultrafast"})
        # Slower presets of x264 gave other bytes each time at widths that 16 does not divide.
        stream.codec_context.thread_count = 1
        for number, picture in enumerate(pictures):
            height_px, width_px = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
            if number == 0:
                stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height_px, :width_px]), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return memory.getvalue()


def tagged(mp4: bytes, clockwise_deg: int) -> bytes:
    """The same mp4 with a track header matrix that turns it clockwise on playing (ISO/IEC 14496-12, 8.3.2)."""
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[clockwise_deg]
    one = 1 << 16  # 16.16 fixed point; the last column is 2.30
    matrix = np.array([cosine * one, sine * one, 0, -sine * one, cosine * one, 0, 0, 0, one << 14], dtype=">i4")
    at = mp4.index(b"tkhd") + 4 + 4 + 20 + 16  # flags, times and ids (version 0), layer to reserved
    return mp4[:at] + matrix.tobytes() + mp4[at + 36 :]
