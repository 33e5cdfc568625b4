"""Rows of `bench extract`: extraction beside the same work without Ray, and beside what one would otherwise use."""

from __future__ import annotations

import functools
import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from cluster.storage import Folder
from jobs.bench_engine import ENGINE_ROWS, demand
from jobs.bench_gpu import GPU_EXTRACT_ROWS
from jobs.bench_inputs import CLIP_PX, Bench, clip_paths, clips
from jobs.bench_process import Ran, SideError, run_side
from jobs.bench_table import (
    CountsDifferError,
    Figure,
    Row,
    SkippedError,
    Turn,
    ratio_figure,
    steady_rate,
    take_turns,
)
from mma.store import schema as s
from mma.store.reader import read_file, store_files

DETECT_EVERY = 10
"""Of the Haar cascade, which on every frame would be nearly all of the work."""
STEADY, LOADER, DECODE_YUNET, DECODE_HAAR, MEMORY = 0.95, 1.3, 0.55, 0.37, 1.08
"""Ratios that the small version reached on a quiet machine of two cores."""
SIZE = f"{CLIP_PX[0]} x {CLIP_PX[1]}"


# --- sides ---


def extracted(bench: Bench, count: int, *words: str, tree: bool = False) -> Turn:
    """`extract` into a fresh store: a turn with what the store holds then; `tree`: with the memory it took."""
    store = bench.folder / "stores" / f"{len(list((bench.folder / 'stores').glob('*')))}"
    store.mkdir(parents=True)
    command = ["--videos", str(clips(bench, count)), "--store", str(store), "--mma", bench.network, *words]
    ran = run_side(
        "jobs.bench_ours:extraction",
        bench.folder / "sides",
        tree=tree,
        words=[*command, "--num-cpus", str(bench.cores)],
    )
    if ran.found["exit_code"]:
        raise SideError(f"extract ended with {ran.found['exit_code']}: {ran.found['summary']}")
    videos = stored_videos(Folder(str(store)))
    rate = steady_rate([(time_s, frames) for time_s, _, frames in ran.found["came"]])
    return turn_of(videos, rate, ran)


def stored_videos(folder: Folder) -> dict[str, int]:
    """Frames of each video in a store. Raises CountsDifferError where one is not `ok`, or stands there twice."""
    frames: Counter[str] = Counter()
    rows = 0
    for name in store_files(folder):
        table = read_file(folder, name, ["video_id", "chunk_index", "num_frames", "status"])
        for row in table.to_pylist():
            if row["status"] != s.OK:
                raise CountsDifferError(f"the store has {row['video_id']!r} as {row['status']}")
            frames[row["video_id"]] += row["num_frames"]
            rows += row["chunk_index"] == 0
    if rows != len(frames):
        raise CountsDifferError(f"the store has {rows} first rows of {len(frames)} videos")
    return dict(frames)


def turn_of(videos: dict[str, int], rate: float, ran: Ran) -> Turn:
    """A turn whose counts are those of videos and their frames."""
    counts = {"videos": len(videos), "frames": sum(videos.values())}
    return Turn(counts=counts, videos=videos, rate=rate, seconds=ran.seconds, memory_bytes=ran.tree_bytes)


def plain(bench: Bench, side: str, *, share: float = 0.3, **request: Any) -> Turn:
    """A plain alternative (or `decoding`) of which each video's frames came at some time."""
    ran = run_side(side, bench.folder / "sides", **request)
    return turn_of(ran.found["videos"], steady_rate(ran.found["arrivals"], share=share), ran)


# --- rows ---


@functools.cache
def _with_detector(bench: Bench) -> dict[str, list[Turn]]:
    """`extract` and bare processes over the same clips, both with the Haar cascade."""
    count = bench.sizes.clips
    request: dict[str, Any] = {
        "paths": clip_paths(bench, count),
        "faces": asdict(bench.faces("haar", DETECT_EVERY)),
        "mma": bench.network,
    }
    return take_turns(
        {
            "extract": lambda: extracted(bench, count, "--detect-every", str(DETECT_EVERY)),
            "bare": lambda: plain(bench, "jobs.bench_bare:bare_processes", processes=bench.cores, **request),
        },
        bench.turns,
    )


def steady(bench: Bench) -> Sequence[Figure]:
    """Frames a second once all runs."""
    found = _with_detector(bench)
    return [
        ratio_figure(found["extract"], found["bare"], name="ratio", of="frames/s", to_reach=0.95, reached=STEADY),
    ]


def command(bench: Bench) -> Sequence[Figure]:
    """Seconds of the whole command, from the shell and back."""
    found = _with_detector(bench)
    ours, theirs = ([turn.seconds for turn in found[side]] for side in ("extract", "bare"))
    return [
        Figure(
            name="more",
            value=statistics.median(mine - other for mine, other in zip(ours, theirs)),
            unit="s",
            ours=statistics.median(ours),
            theirs=statistics.median(theirs),
            of="s",
            to_reach=12.0,
            at_most=True,
        )
    ]


@functools.cache
def _unaided(bench: Bench, count: int, turn: int) -> Turn:
    """`extract` without a detector, its memory watched where a row needs it: one run for all rows that ask for it."""
    watched = count in (bench.sizes.memory_clips, 10 * bench.sizes.memory_clips)
    return extracted(bench, count, "--detector", "none", tree=watched)


@functools.cache
def _without_detector(bench: Bench) -> dict[str, list[Turn]]:
    """`extract` and the ways without this project over the same clips, each frame scaled as a whole."""
    count = bench.sizes.fast_clips
    request: dict[str, Any] = {"paths": clip_paths(bench, count), "mma": bench.network}
    template = functools.partial(plain, bench, "jobs.bench_bare:template", cpus=bench.cores, **request)
    turns = itertools.count()
    sides: dict[str, Callable[[], Turn]] = {
        "extract": lambda: _unaided(bench, count, next(turns)),
        "loader": lambda: plain(bench, "jobs.bench_bare:data_loader", workers=2, **request),
    }
    if not bench.small:
        sides["template"] = lambda: template(resize=False)
        sides["template, frames scaled by the reader"] = lambda: template(resize=True)
    return take_turns(sides, bench.turns)


def beside_template(bench: Bench) -> Sequence[Figure]:
    """Ray Data's way with videos, and the same where its reader scales the frames."""
    if bench.small:
        raise SkippedError("left to the full version: a Ray of its own each takes its sides half a minute to start")
    found = _without_detector(bench)
    scaled = found["template, frames scaled by the reader"]
    return [
        ratio_figure(found["extract"], found["template"], name="ratio", of="frames/s", to_reach=3.0),
        ratio_figure(found["extract"], scaled, name="ratio where its reader scales the frames", of="frames/s"),
    ]


def beside_loader(bench: Bench) -> Sequence[Figure]:
    """A DataLoader whose workers decode."""
    found = _without_detector(bench)
    goals = {"to_reach": 1.0, "reached": LOADER}
    return [ratio_figure(found["extract"], found["loader"], name="ratio", of="frames/s", **goals)]


def memory(bench: Bench) -> Sequence[Figure]:
    """All processes of the command together, with few clips and with ten times as many."""
    few, many = bench.sizes.memory_clips, 10 * bench.sizes.memory_clips
    peaks: dict[int, list[float]] = {few: [], many: []}
    for turn in range(bench.turns):
        for count in (few, many):
            found = _unaided(bench, count, turn)
            demand(found.counts["videos"], count, "videos committed")
            peaks[count].append(found.memory_bytes / 1e9)
    ours, theirs = statistics.median(peaks[many]), statistics.median(peaks[few])
    ratio = statistics.median(more / less for more, less in zip(peaks[many], peaks[few]))
    settings = {"of": "GB", "to_reach": 1.1, "at_most": True, "reached": MEMORY}
    return [Figure(name="ratio", value=ratio, ours=ours, theirs=theirs, **settings)]  # type: ignore[arg-type]


def _decoding(bench: Bench, detector: str, every: int, to_reach: float, reached: float) -> Sequence[Figure]:
    paths = clip_paths(bench, bench.sizes.decode_clips)
    faces = asdict(bench.faces(detector, every))
    found = take_turns(
        {
            "ours": lambda: plain(bench, "jobs.bench_ours:decoding", share=0.05, paths=paths, faces=faces),
            "decord": lambda: plain(bench, "jobs.bench_bare:full_frames", share=0.05, paths=paths),
        },
        bench.short_turns,
    )
    goals = {"to_reach": to_reach, "reached": reached}
    return [ratio_figure(found["ours"], found["decord"], name="ratio", of="frames/s", **goals)]


def decode_yunet(bench: Bench) -> Sequence[Figure]:
    """With YuNet at its own 320 px on every 5th frame."""
    if bench.detector_weights is None:
        raise SkippedError("YuNet's file is not here: give --detector-weights, or set MMA_YUNET")
    return _decoding(bench, "yunet", 5, 0.6, DECODE_YUNET)


def decode_haar(bench: Bench) -> Sequence[Figure]:
    """With the Haar cascade at its own 240 px on every 10th frame."""
    return _decoding(bench, "haar", DETECT_EVERY, 0.35, DECODE_HAAR)


ROWS = (
    Row(
        id="steady",
        measured=f"extraction at steady state: {SIZE}, Haar every {DETECT_EVERY} frames, `tiny` trunk",
        beside="the same decoding, cropping and network in bare processes, one a core, without Ray",
        measure=steady,
    ),
    Row(id="command", measured="the whole command, its start included", beside="the same", measure=command),
    Row(
        id="template",
        measured="extraction without a detector, `tiny` trunk",
        beside="`ray.data.read_videos` and `map_batches`, the same network",
        measure=beside_template,
    ),
    Row(
        id="loader",
        measured="the same",
        beside="a PyTorch DataLoader with decord, two workers, the same network",
        measure=beside_loader,
    ),
    Row(
        id="decode-yunet",
        measured=f"decoding, detecting and cropping on one core, {SIZE}, YuNet at 320 px every 5 frames",
        beside="decord reading full frames on one core",
        measure=decode_yunet,
    ),
    Row(
        id="decode-haar",
        measured=f"the same with the Haar cascade at 240 px every {DETECT_EVERY} frames",
        beside="the same",
        measure=decode_haar,
    ),
    *ENGINE_ROWS,
    Row(
        id="memory",
        measured="peak memory of all processes, ten times the clips",
        beside="once the clips",
        measure=memory,
    ),
    *GPU_EXTRACT_ROWS,
)
