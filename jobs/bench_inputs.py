"""What the bench runs on, made from nothing and alike every time: clips, feature stores, sequences, a model."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.storage import Folder
from jobs.models import load_weights
from jobs.outcome import InputError
from mma.descriptors import MMA26
from mma.faces.options import YUNET_FILE, FaceOptions
from mma.store import schema as s
from mma.store.writer import parquet_bytes

NETWORK = "random:0:tiny"
"""Untrained weights are as fast as trained ones."""
CLIP_PX = (640, 480)
STEP_S = 0.1
STEPS = (20, 600)
"""Shortest and longest sequence: 2 to 60 s, 310 steps in the mean of uniform lengths."""
HUME_VIDEOS, HUME_ALL = 15_806, 25_067
"""Training videos of Hume-Reaction, and videos of all its splits."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything; the defaults are the full version."""

    drawn: int = 8
    """Clips that are drawn; the corpora are copies of them."""
    clip_s: tuple[float, float] = (3.0, 8.0)
    """Shortest and longest, 12 frames a second."""
    clips: int = 300
    """Of the extraction beside bare processes."""
    fast_clips: int = 200
    """Of those without a detector."""
    decode_clips: int = 16
    rerun_rows: int = 100_000
    plan_rows: int = 1_000_000
    engine_videos: int = 20_000
    memory_clips: int = 60
    """Ten times as many beside."""
    train_videos: int = HUME_VIDEOS
    train_batches: int = 16
    """Of 128 videos, a turn."""
    predict_videos: int = HUME_ALL
    crops: int = 8_000
    turns: int = 3
    short_turns: int = 5
    """Of rows whose turns take seconds."""


FULL = Sizes()
SMALL = Sizes(
    drawn=4,
    clips=20,
    fast_clips=20,
    decode_clips=4,
    rerun_rows=10_000,
    plan_rows=1_000_000,
    engine_videos=2_560,
    memory_clips=2,
    train_videos=1_500,
    train_batches=2,
    predict_videos=1_500,
    crops=2_000,
    turns=1,
    short_turns=2,
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run of the bench: where its inputs lie, how large they are, and what of the machine it takes."""

    folder: Path
    sizes: Sizes
    cores: int = 2
    detector_weights: str | None = None
    """YuNet's file."""
    turns: int = 1
    short_turns: int = 1
    small: bool = False

    @property
    def network(self) -> str:
        """A checkpoint's path: what a command loads is what its user would have it load."""
        return str(_checkpoint(self.folder))

    def faces(self, detector: str, every: int) -> FaceOptions:
        """A detector that looks at every so many frames."""
        return FaceOptions(detector=detector, detect_every=every, detector_weights=self.detector_weights)  # type: ignore[arg-type]


def yunet_file(given: str | None) -> str | None:
    """Path of YuNet's weights: as given, MMA_YUNET's, or beside this checkout; None where there is none."""
    beside = Path(__file__).parents[2] / "shared" / "assets" / YUNET_FILE
    path = Path(given or os.environ.get("MMA_YUNET") or beside)
    if given and not path.is_file():
        raise InputError(f"--detector-weights {given}: there is no such file")
    return str(path) if path.is_file() else None


@functools.cache
def _checkpoint(folder: Path) -> Path:
    path = folder / "network.safetensors"
    path.write_bytes(load_weights(NETWORK).data)
    return path


# --- clips ---


@functools.cache
def clips(bench: Bench, count: int) -> Path:
    """A folder of so many mp4 clips of 640 x 480: copies of a few drawn ones, each a file of its own."""
    folder = bench.folder / f"clips-{count}"
    folder.mkdir()
    drawn = _drawn(bench)
    for number in range(count):
        shutil.copy(drawn[number % len(drawn)], folder / f"{number:05d}.mp4")
    return folder


def clip_paths(bench: Bench, count: int) -> list[str]:
    """The same as paths."""
    return sorted(map(str, clips(bench, count).iterdir()))


@functools.cache
def _drawn(bench: Bench) -> list[Path]:
    from rnn import made

    plan = made.plan_corpus(made.CorpusOptions(videos=bench.sizes.drawn, seconds=bench.sizes.clip_s))
    folder = bench.folder / "drawn"
    folder.mkdir()
    with multiprocessing.get_context("spawn").Pool(bench.cores) as pool:
        return pool.starmap(_draw, [(clip, folder / f"{number}.mp4") for number, clip in enumerate(plan)])


def _draw(clip: Any, path: Path) -> Path:
    import cv2

    from mma.drawing import draw_frame, sample_identity, sample_scene
    from mma.drawing.clip import write_clip
    from rnn import made

    cv2.setNumThreads(1)
    width_px, height_px = CLIP_PX
    identity = sample_identity(np.random.default_rng(clip.subject.seed), skin_tone=clip.subject.tone)
    scene = sample_scene(np.random.default_rng([clip.seed, 7]), width_px=width_px, height_px=height_px)
    timeline = made.play(clip, made.frame_times(clip))
    states = [{name: float(each[k]) for name, each in timeline.controls.items()} for k in range(len(timeline.times_s))]
    frames = (
        draw_frame(identity, scene, state, time_s=float(time_s), seed=number)
        for number, (state, time_s) in enumerate(zip(states, timeline.times_s))
    )
    write_clip(path, frames, fps=clip.fps)
    return path


# --- feature stores ---


def store_spec(network: str = NETWORK) -> dict[str, Any]:
    """What `extract --mma <network> --detector none` writes under."""
    weights = load_weights(network)
    return s.make_spec(
        descriptors=weights.descriptors,
        weights=weights.spec,
        crop=weights.crop,
        detector=FaceOptions(detector="none").spec(),
        sampling={"fps": None},
        precision="float32",
    )


def write_store(
    folder: Folder, videos: pa.Table, steps: npt.NDArray[np.int64], *, file_videos: int, network: str = NETWORK
) -> None:
    """A store with a row a video of so many frames each, `file_videos` to a file; descriptors are noise.

    Args:
        folder: empty.
        videos: rows of `jobs.plan.PLAN_SCHEMA`.
        steps: (N,) frames of each, `STEP_S` apart.
        file_videos: N to a file.
        network: whose descriptors they are said to be.
    """
    spec = store_spec(network)
    schema = s.store_schema(MMA26, spec)
    folder.write(s.SPEC_FILE, json.dumps(spec).encode())
    pool = np.random.default_rng(0).random(int(steps.max()) * file_videos, np.float32)
    for start in range(0, videos.num_rows, file_videos):
        own = steps[start : start + file_videos]
        rows = _store_rows(videos.slice(start, file_videos), own, pool[: own.sum()])
        folder.write(f"part-bench-{start:07d}.parquet", parquet_bytes(rows.select(schema.names).cast(schema)))


def _store_rows(videos: pa.Table, steps: npt.NDArray[np.int64], noise: npt.NDArray[np.float32]) -> pa.Table:
    count, total = len(steps), int(steps.sum())
    offsets = pa.array(np.concatenate([[0], np.cumsum(steps)]), pa.int32())
    position = np.arange(total) - np.repeat(np.cumsum(steps) - steps, steps)
    ids = videos["video_id"].combine_chunks()
    known: dict[str, Any] = {
        "work_id": ids,
        "video_id": ids,
        "uri": videos["uri"].combine_chunks(),
        "decoder": pa.array(["decord"] * count),
        "run_id": pa.array(["bench"] * count),
        "source_version": videos["version"].combine_chunks(),
        "source_bytes": videos["bytes"].combine_chunks(),
        "chunk_index": np.zeros(count),
        "num_chunks": np.ones(count),
        "status": pa.array([s.OK] * count),
        "first_frame": np.zeros(count),
        "num_frames": steps,
        "width_px": np.full(count, CLIP_PX[0]),
        "height_px": np.full(count, CLIP_PX[1]),
        "source_fps": np.full(count, 1 / STEP_S),
        "duration_s": steps * STEP_S,
    }
    columns = {
        name: known[name] if isinstance(known.get(name), pa.Array) else pa.array(known.get(name, [None] * count), kind)
        for name, kind in s.VIDEO_COLUMNS.items()
    }
    frames: dict[str, npt.NDArray[Any]] = {
        "frame_index": position,
        "time_s": position * STEP_S,
        "face_found": np.ones(total, bool),
        "face_score": np.full(total, np.nan, np.float32),
        "face_box": np.tile(np.array([0, 0, *CLIP_PX], np.float32), total),
        "face_points": np.full(10 * total, np.nan, np.float32),
        "num_faces": np.ones(total, np.int16),
        **{name: np.roll(noise, 997 * number) for number, name in enumerate(MMA26.names)},
    }
    for name, kind in s.frame_columns(MMA26).items():
        fixed = pa.types.is_fixed_size_list(kind)
        flat = pa.array(frames[name], kind.value_type if fixed else kind)
        items = pa.FixedSizeListArray.from_arrays(flat, kind.list_size) if fixed else flat
        columns[name] = pa.ListArray.from_arrays(offsets, items)
    return pa.table(columns)


# --- sequences ---


@functools.cache
def sequence_files(bench: Bench) -> dict[str, str]:
    """Flat files of synthetic sequences in Hume-Reaction's shape: `uniform` lengths from 2 to 60 s, and lengths of
    which `most` are short (uniform in their logarithm, 17 s in the mean)."""
    rng = np.random.default_rng(0)
    count = bench.sizes.train_videos
    low, high = STEPS
    lengths = {
        "uniform": rng.integers(low, high + 1, count),
        "short": np.exp(rng.uniform(np.log(low), np.log(high), count)).astype(np.int64),
    }
    files = {}
    for name, each in lengths.items():
        folder = bench.folder / f"sequences-{name}"
        folder.mkdir()
        values = np.lib.format.open_memmap(
            folder / "values.npy", mode="w+", dtype=np.float32, shape=(int(each.sum()), len(MMA26))
        )
        for start in range(0, len(values), 2**18):
            part = values[start : start + 2**18]
            part[:] = rng.standard_normal(part.shape, np.float32)
        values.flush()
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(each)]).astype(np.int64))
        np.save(folder / "labels.npy", rng.random((count, 7), np.float32))
        files[name] = str(folder)
    return files


def read_sequences(folder: str) -> Any:
    """What `sequence_files` put down, as a training takes it; the values are mapped."""
    from rnn.sequences import Sequences
    from rnn.training.loop import LabelledSequences

    place = Path(folder)
    offsets = np.load(place / "offsets.npy")
    values = np.load(place / "values.npy", mmap_mode="r")
    outside = np.zeros(len(offsets) - 1, np.float32)
    sequences = Sequences(names=MMA26.names, values=values, offsets=offsets, outside=outside)
    return LabelledSequences(sequences=sequences, labels=np.load(place / "labels.npy"))


def write_model(path: Path, steps: int) -> None:
    """A masked RNN of the recommended shape with random weights, as `train` leaves one."""
    from rnn.model import NO_CALIBRATION, ReactionModel
    from rnn.network import NetworkConfig, random_rnn
    from rnn.sequences import Normaliser, SequenceOptions
    from rnn.training.options import PRESETS

    width = len(MMA26)
    plain = Normaliser(
        names=MMA26.names, mean=(0.5,) * width, scale=(0.3,) * width, low=(0.0,) * width, high=(1.0,) * width
    )
    model = ReactionModel(
        networks=(random_rnn(width, steps, NetworkConfig(**PRESETS["recommended"]["network"]), seed=0),),
        seeds=(0,),
        calibrations=(NO_CALIBRATION,),
        sequence=SequenceOptions(),
        normaliser=plain,
        step_s=STEP_S,
        fallback=(0.5,) * 7,
        spec=store_spec(),
    )
    path.write_bytes(model.dump())
