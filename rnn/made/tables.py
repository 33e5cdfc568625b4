"""The tables of a made corpus, by the columns that other tools read (DESIGN.md, CORPUS.md, PAPER.md).

Truth stands in `truth_table` and in the `true_` columns of `frame_table` alone; no training job reads those.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from mma.descriptors import MMA26
from rnn.made.plan import Clip
from rnn.made.timeline import Timeline, play
from rnn.reactions import REACTIONS

OCCURS_FROM = 0.4
"""An action unit of this intensity or more occurs."""
UNKNOWN_BAND = (0.3, 0.5)
"""Intensities from the first to below the second are unknown to the annotators: else an F1 is threshold noise."""

_FLIP_SHARE = 0.05
_LAG_S = 0.2
_MOVES_FROM_PER_S = 0.25


def frame_table(clip: Clip, timeline: Timeline) -> pa.Table:
    """Rows of `frames.parquet`, one a time of `timeline`.

    `video_id`, `frame` (int32), `time_s`, `subject`, `split`; the annotators' labels under the descriptors' names:
    `valence`, `arousal`, `expression` (string, null = unknown), `AU01` ... `AU26` (0 or 1, null = unknown); then the
    truth, `true_<descriptor>` and `true_expression` as in `Timeline.truth`. Annotators lag by .2 s in valence and
    arousal and flip 5 % of the labels while a face moves, both scaled by `clip.label_noise`.
    """
    times_s, truth = timeline.times_s, timeline.truth
    frame = np.rint(times_s * clip.fps).astype(np.int32)
    around = np.concatenate([times_s - _LAG_S * clip.label_noise, times_s - 0.05, times_s + 0.05])
    others = {name: np.split(values, 3) for name, values in play(clip, around).truth.items()}
    # One row of draws a frame of the clip, so that the labels of some frames agree with those of all.
    drawn = np.random.default_rng([clip.seed, 2]).random((max(clip.num_frames, int(frame.max(initial=0)) + 1), 18))
    flips = drawn[frame] < _FLIP_SHARE * clip.label_noise

    columns: dict[str, pa.Array] = {
        "video_id": pa.array([clip.video_id] * len(frame), pa.string()),
        "frame": pa.array(frame),
        "time_s": pa.array(times_s),
        "subject": pa.array([clip.subject.subject] * len(frame), pa.string()),
        "split": pa.array([clip.split] * len(frame), pa.string()),
        "valence": pa.array(others["true_valence"][0]),
        "arousal": pa.array(others["true_arousal"][0]),
    }
    moving = np.zeros(len(frame), dtype=bool)
    occurrences = {}
    for i, au in enumerate(MMA26.action_units):
        intensity, (_, before, after) = truth[f"true_{au}"], others[f"true_{au}"]
        au_moves = np.abs(after - before) / 0.1 > _MOVES_FROM_PER_S
        moving |= au_moves
        occurs = (intensity >= OCCURS_FROM) ^ (flips[:, i] & au_moves)
        unknown = (intensity >= UNKNOWN_BAND[0]) & (intensity < UNKNOWN_BAND[1])
        occurrences[au] = pa.array(occurs.astype(np.float32), mask=unknown)
    columns["expression"] = pa.array(_annotated_expression(truth, flips[:, -1] & moving), pa.string())
    columns |= occurrences
    columns |= {
        name: pa.array(values, pa.string()) if values.dtype == object else pa.array(values)
        for name, values in truth.items()
    }
    return pa.table(columns)


def _annotated_expression(truth: dict[str, np.ndarray], flipped: np.ndarray) -> np.ndarray:
    """A flip takes an onset or offset for neutral, or neutral for the class that is coming or going; object (T,)."""
    others = [name for name in MMA26.expressions if name != "neutral"]
    strongest = np.array(others, dtype=object)[np.argmax([truth[f"true_{name}"] for name in others], axis=0)]
    seen = truth["true_expression"].copy()
    neutral = seen == "neutral"
    known = np.array([name is not None for name in seen], dtype=bool)
    seen[flipped & neutral] = strongest[flipped & neutral]
    seen[flipped & known & ~neutral] = "neutral"
    return seen


def truth_table(clips: Sequence[Clip]) -> pa.Table:
    """`truth.parquet`, a row a video: `video_id`, `split`, `subject`, the 7 labels of every split under their names,
    the felt and the shown intensities under `felt_` and `shown_`; float64."""
    columns: dict[str, pa.Array] = {
        "video_id": pa.array([clip.video_id for clip in clips], pa.string()),
        "split": pa.array([clip.split for clip in clips], pa.string()),
        "subject": pa.array([clip.subject.subject for clip in clips], pa.string()),
    }
    for prefix, rows in (
        ("", [clip.labels for clip in clips]),
        ("felt_", [clip.felt for clip in clips]),
        ("shown_", [clip.shown for clip in clips]),
    ):
        for i, reaction in enumerate(REACTIONS):
            columns[prefix + reaction] = pa.array([row[i] for row in rows], pa.float64())
    return pa.table(columns)


def data_info(clips: Sequence[Clip]) -> pa.Table:
    """`data_info.csv` in the ABAW5 layout (PAPER.md, "Hume-Reaction, as distributed"): `File_ID` with brackets,
    `Split`, the 7 reactions (null for Test, an empty field in csv), `Age`, `Country`."""
    return pa.table(
        {
            "File_ID": pa.array([f"[{clip.video_id}]" for clip in clips], pa.string()),
            "Split": pa.array([clip.split for clip in clips], pa.string()),
        }
        | {
            reaction: pa.array([None if clip.split == "Test" else clip.labels[i] for clip in clips], pa.float64())
            for i, reaction in enumerate(REACTIONS)
        }
        | {
            "Age": pa.array([clip.subject.age for clip in clips], pa.int32()),
            "Country": pa.array([clip.subject.country for clip in clips], pa.string()),
        }
    )


def subjects_table(clips: Sequence[Clip]) -> pa.Table:
    """`subjects.csv`, a row a video: `video_id`, `subject`, and the drawn `tone` for the subgroup table."""
    return pa.table(
        {
            "video_id": pa.array([clip.video_id for clip in clips], pa.string()),
            "subject": pa.array([clip.subject.subject for clip in clips], pa.string()),
            "tone": pa.array([clip.subject.tone for clip in clips], pa.float64()),
        }
    )
