"""From rows of a feature store to videos on one grid of time, a few array operations for all videos of a file at once.

A recurrent network's step means a time, not a frame number (PAPER.md, "Decisions"): each point of a video's grid takes
the nearest frame by time stamp, and nothing where no frame lies near, as in the gap that a failed chunk leaves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mma.store import schema as s

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

VIDEO_FACTS = {
    "video_id": pa.string(),
    "status": pa.string(),
    "error_type": pa.string(),
    "uri": pa.string(),
    "frames": pa.int64(),
    "frames_known": pa.int64(),
    "frames_expected": pa.int64(),
    "duration_s": pa.float64(),
    "source_fps": pa.float64(),
    "interval_s": pa.float64(),
    "width_px": pa.int32(),
    "height_px": pa.int32(),
    "face_px": pa.float64(),
}
"""What is known of each video beside its sequence. `frames` were sampled, `frames_known` of them show the face, and
`frames_expected` would have been there had no chunk failed; `interval_s` is the median between two frames (NaN for
fewer), `face_px` the median side of the face's box."""

UNEVEN = 0.05
"""Largest difference of frame intervals, as a share, up to which one grid is taken without being asked."""

SPARSEST = 100
"""Steps a frame beyond which a video's time stamps are taken for broken: a file of three frames whose last stamp is
wrong would fill the memory with unknown steps."""
BROKEN_STAMPS = "BrokenTimeStamps"
"""`error_type` of such a video: it counts as one that could not be read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GridVideos:
    """N videos of a store, with all descriptors, as they are: nothing filled, nothing scaled."""

    names: tuple[str, ...]
    """The D descriptors."""
    step_s: float
    """Seconds between two points of the grid."""
    values: Floats
    """(S, D), all videos after one another; NaN in a step without a known frame; may be a memory map."""
    offsets: Indices
    """(N + 1,): video n has the rows offsets[n] to offsets[n + 1]; none, where nothing of it could be read."""
    facts: pa.Table
    """`VIDEO_FACTS` of the N videos."""
    key: str = ""
    """A name for the content, where it has one."""

    @property
    def video_ids(self) -> list[str]:
        """In the order of the sequences."""
        return self.facts["video_id"].to_pylist()

    def __len__(self) -> int:
        return len(self.offsets) - 1


def sorted_rows(rows: pa.Table) -> pa.Table:
    """Rows of a store so that a video's chunks follow each other in order."""
    return rows.sort_by([("video_id", "ascending"), ("chunk_index", "ascending")]).combine_chunks()


def frame_intervals(rows: pa.Table) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Video ids and the median seconds between two frames of each, float64 (N,), NaN where it has fewer than two."""
    rows = sorted_rows(rows.select(["video_id", "chunk_index", "time_s"]))
    ids, first_row = _videos(rows)
    times, frame_offsets = _flat_times(rows, first_row)
    return ids, _median_intervals(times, frame_offsets)


def common_interval(intervals: npt.NDArray[np.float64], ids: Sequence[str]) -> float:
    """The grid's step that the videos share: the median of their frame intervals.

    Raises ValueError where no video has two frames, and where some differ by more than `UNEVEN`.
    """
    known = np.isfinite(intervals)
    if not known.any():
        raise ValueError("no video of the store has two frames, so that the time between them is not known")
    step_s = float(f"{np.median(intervals[known]):.6g}")  # stamps carry rounding errors
    off = np.flatnonzero(known & (np.abs(intervals - step_s) > UNEVEN * step_s))
    if len(off):
        odd = off[np.abs(intervals[off] - step_s).argmax()]
        raise ValueError(
            f"{len(off)} of {known.sum()} videos have frames at another rate than most (every {step_s:.4g} s), such as "
            f"{ids[odd]} (every {intervals[odd]:.4g} s): give the grid's step, --step-s, in seconds"
        )
    return step_s


def to_grid(rows: pa.Table, names: Sequence[str], step_s: float) -> GridVideos:
    """The videos of these rows on a grid of `step_s`.

    A step takes the nearest frame, if it lies within half a step or half the video's own frame interval, whichever is
    longer. Time that a damaged video lost has its steps, also before its first and behind its last frame. A video of
    which next to all steps would lie in gaps (`SPARSEST`) has none, and counts as failed.
    Raises ValueError for descriptors that the rows lack, and a chunk that stands there twice.
    """
    if lacking := [name for name in names if name not in rows.column_names]:
        raise ValueError(f"the store has no descriptor {', '.join(lacking)}")
    rows = sorted_rows(rows)
    ids, first_row = _videos(rows)
    _demand_single_chunks(rows, ids, first_row)
    times, frame_offsets = _flat_times(rows, first_row)
    intervals = _median_intervals(times, frame_offsets)
    values = np.stack([_flat(rows[name]).astype(np.float32) for name in names], axis=1).reshape(-1, len(names))
    known = _flat(rows["face_found"]).astype(bool) & np.isfinite(values).all(axis=1)
    frames = np.diff(frame_offsets)
    some = frames > 0
    first_s, last_s = np.zeros(len(ids)), np.zeros(len(ids))
    first_s[some], last_s[some] = times[frame_offsets[:-1][some]], times[frame_offsets[1:][some] - 1]
    steps = np.where(some, np.floor((last_s - first_s) / step_s + 0.5).astype(np.int64) + 1, 0)
    broken = steps > SPARSEST * frames
    steps[broken] = 0
    lost = _lost_steps(rows, first_row, first_s, last_s, intervals, step_s)
    believed = (steps > 0) & (steps + sum(lost) <= SPARSEST * frames)
    early, late = (np.where(believed, each, 0).astype(np.int64) for each in lost)
    first_s, steps = first_s - early * step_s, steps + early + late
    offsets = np.concatenate([[0], np.cumsum(steps)])
    video = np.repeat(np.arange(len(ids)), steps)
    wanted_s = first_s[video] + (np.arange(offsets[-1]) - offsets[video]) * step_s
    nearest, distance_s = _nearest(times, frame_offsets, wanted_s, video)
    reach_s = np.maximum(step_s, np.nan_to_num(intervals))[video] / 2 * (1 + 1e-3) + 1e-6
    there = known[nearest] & (distance_s <= reach_s) if len(nearest) else np.zeros(0, bool)
    grid = np.full((offsets[-1], len(names)), np.nan, np.float32)
    grid[there] = values[nearest[there]]
    counted = np.add.reduceat(np.append(known, False), frame_offsets[:-1])[: len(ids)] * some if len(ids) else frames
    facts = _facts(rows, ids, first_row, frames, counted, intervals, frame_offsets, known, broken)
    return GridVideos(names=tuple(names), step_s=step_s, values=grid, offsets=offsets, facts=facts)


def _videos(rows: pa.Table) -> tuple[list[str], Indices]:
    """Ids in the order of the rows, and the first row of each with the row count at the end."""
    encoded = rows["video_id"].combine_chunks().dictionary_encode() if rows.num_rows else None
    if encoded is None:
        return [], np.zeros(1, np.int64)
    numbers = encoded.indices.to_numpy()
    first = np.flatnonzero(np.diff(numbers, prepend=-1))
    return encoded.dictionary.to_pylist(), np.append(first, rows.num_rows)


def _demand_single_chunks(rows: pa.Table, ids: Sequence[str], first_row: Indices) -> None:
    chunk = rows["chunk_index"].to_numpy()
    same = np.flatnonzero(np.diff(chunk) <= 0) + 1
    twice = same[~np.isin(same, first_row)]
    if len(twice):
        video = ids[int(np.searchsorted(first_row, twice[0], side="right")) - 1]
        raise ValueError(f"the video {video} has its chunk {chunk[twice[0]]} twice: were two stores copied into one?")


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    return pc.list_flatten(column.combine_chunks()).to_numpy(zero_copy_only=False)


def _flat_times(rows: pa.Table, first_row: Indices) -> tuple[npt.NDArray[np.float64], Indices]:
    """Time stamps of all frames, and the first frame of each video with the count at the end."""
    per_row = np.concatenate([[0], np.cumsum(pc.list_value_length(rows["time_s"]).to_numpy())]).astype(np.int64)
    return _flat(rows["time_s"]).astype(np.float64), per_row[first_row]


def _median_intervals(times: npt.NDArray[np.float64], frame_offsets: Indices) -> npt.NDArray[np.float64]:
    """(N,), sorted by video and length at once, so that no loop over videos is needed."""
    counts = np.maximum(np.diff(frame_offsets) - 1, 0)
    result = np.full(len(counts), np.nan)
    if not counts.sum():
        return result
    gaps = np.diff(times)
    inside = np.ones(len(gaps), bool)
    inside[frame_offsets[1:-1][(frame_offsets[1:-1] > 0) & (frame_offsets[1:-1] < len(times))] - 1] = False
    gaps = gaps[inside]
    video = np.repeat(np.arange(len(counts)), counts)
    gaps = gaps[np.lexsort((gaps, video))]
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    some = counts > 0
    lower, upper = starts[some] + (counts[some] - 1) // 2, starts[some] + counts[some] // 2
    result[some] = (gaps[lower] + gaps[upper]) / 2
    return result


def _lost_steps(
    rows: pa.Table,
    first_row: Indices,
    first_s: npt.NDArray[np.float64],
    last_s: npt.NDArray[np.float64],
    intervals: npt.NDArray[np.float64],
    step_s: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(N,) each, whole: steps that a damaged video, by its own duration, lost before its first frame and behind its
    last."""
    early, late = np.zeros(len(first_s)), np.zeros(len(first_s))
    damaged = pc.is_in(rows["status"], pa.array([s.FAILED, s.PARTIAL])).to_numpy()
    frame_index, source_fps = rows["frame_index"], rows["source_fps"].to_numpy(zero_copy_only=False)
    duration_s = rows["duration_s"].to_numpy(zero_copy_only=False)
    for video in np.flatnonzero(np.add.reduceat(damaged, first_row[:-1]) > 0) if len(first_s) else ():
        spoken = [row for row in range(first_row[video], first_row[video + 1]) if len(frame_index[row])]
        if not spoken or not (source_fps[spoken[0]] > 0 and np.isfinite(duration_s[spoken[0]])):
            continue
        row, frame_s = spoken[0], 1 / source_fps[spoken[0]]
        start_s = first_s[video] - frame_index[row][0].as_py() * frame_s
        # Frames are taken every so often from the first one on: the last of them may lie well before the end.
        every_s = np.fmax(intervals[video], frame_s)
        lost = np.floor((start_s + duration_s[row] - frame_s - last_s[video]) / every_s + 1e-3)
        early[video] = max(np.round((first_s[video] - start_s) / step_s), 0)
        late[video] = max(np.round(lost * every_s / step_s), 0)
    return early, late


def _nearest(
    times: npt.NDArray[np.float64], frame_offsets: Indices, wanted_s: npt.NDArray[np.float64], video: Indices
) -> tuple[Indices, npt.NDArray[np.float64]]:
    """For each wanted time the number of the nearest frame of its video (of two, the earlier) and its distance."""
    if not len(wanted_s):
        return np.zeros(0, np.int64), np.zeros(0)
    low, high = frame_offsets[video], frame_offsets[video + 1] - 1
    # One search for all videos: their times laid behind one another, far enough apart.
    origin = np.repeat(np.arange(len(frame_offsets) - 1), np.diff(frame_offsets))
    span = float(times.max() - times.min()) + 1.0
    base = times.min()
    place = np.searchsorted(times - base + origin * (2 * span), wanted_s - base + video * (2 * span))
    after, before = np.clip(place, low, high), np.clip(place - 1, low, high)
    nearer_before = np.abs(wanted_s - times[before]) <= np.abs(times[after] - wanted_s) + 1e-9
    nearest = np.where(nearer_before, before, after)
    return nearest, np.abs(times[nearest] - wanted_s)


def _facts(
    rows: pa.Table,
    ids: list[str],
    first_row: Indices,
    frames: Indices,
    frames_known: Indices,
    intervals: npt.NDArray[np.float64],
    frame_offsets: Indices,
    known: npt.NDArray[np.bool_],
    broken: npt.NDArray[np.bool_],
) -> pa.Table:
    starts = first_row[:-1]
    failed = pc.equal(rows["status"], s.FAILED).to_numpy()
    any_failed = np.add.reduceat(failed, starts) > 0 if len(ids) else np.zeros(0, bool)
    readable = np.add.reduceat(~failed, starts) > 0 if len(ids) else np.zeros(0, bool)
    # A video's first row that could be read speaks for it; where none could, its first one.
    spoken = np.array([_first_readable(failed, a, b) for a, b in itertools.pairwise(first_row)], np.int64)
    firsts = rows.take(pa.array(spoken, pa.int64()))
    statuses = np.array(firsts["status"].to_pylist(), object)
    statuses[any_failed & readable] = s.PARTIAL
    statuses[readable & (frames_known == 0)] = s.NO_FACE
    statuses[broken] = s.FAILED
    errors = np.array(_first_errors(rows, failed, first_row), object)
    errors[broken] = BROKEN_STAMPS
    partial = np.flatnonzero(statuses == s.PARTIAL)
    duration_s = firsts["duration_s"].to_numpy(zero_copy_only=False).astype(np.float64)
    expected = frames.copy()
    for video in partial:
        if np.isfinite(duration_s[video]) and np.isfinite(intervals[video]):
            expected[video] = max(frames[video], round(duration_s[video] / max(intervals[video], 1e-6)))
    columns = {
        "video_id": ids,
        "status": statuses.tolist(),
        "error_type": errors.tolist(),
        "uri": firsts["uri"],
        "frames": frames,
        "frames_known": frames_known,
        "frames_expected": expected,
        "duration_s": duration_s,
        "source_fps": firsts["source_fps"],
        "interval_s": intervals,
        "width_px": firsts["width_px"],
        "height_px": firsts["height_px"],
        "face_px": _face_sizes(rows, frame_offsets, known),
    }
    return pa.table({name: pa.array(columns[name], kind) if not isinstance(columns[name], pa.ChunkedArray)
                     else columns[name].cast(kind) for name, kind in VIDEO_FACTS.items()})  # fmt: skip


def _first_readable(failed: npt.NDArray[np.bool_], start: int, end: int) -> int:
    here = np.flatnonzero(~failed[start:end])
    return int(start + (here[0] if len(here) else 0))


def _first_errors(rows: pa.Table, failed: npt.NDArray[np.bool_], first_row: Indices) -> list[str | None]:
    errors = rows["error_type"].to_pylist()
    return [next((e for e in errors[a:b] if e), None) for a, b in itertools.pairwise(first_row)]


def _face_sizes(rows: pa.Table, frame_offsets: Indices, known: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """(N,) the median longer side of the face's box in px; NaN where boxes are not recorded."""
    boxes = pc.list_flatten(rows["face_box"].combine_chunks())
    sides = boxes.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)[:, 2:].max(axis=1)
    result = np.full(len(frame_offsets) - 1, np.nan)
    usable = known & np.isfinite(sides)
    for video, (a, b) in enumerate(itertools.pairwise(frame_offsets)):
        here = sides[a:b][usable[a:b]]
        if len(here):
            result[video] = np.median(here)
    return result
