"""Labels and features by id, never by position; and what had no partner, said aloud."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rnn.labels import ReactionLabels

SHOWN = 3
"""Ids named of each kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Join:
    """What matched."""

    index: npt.NDArray[np.int64]
    """(V,) for each video with features its row of the labels, -1 for none."""
    matched: int
    """Videos with features and a row of labels."""
    unlabelled: Mapping[str, int]
    """By split (`none` for no split), matched videos whose row has no known label."""
    without_row: tuple[str, ...]
    """Videos with features that the labels do not name."""
    without_features: tuple[str, ...]
    """Rows with a label whose video has no features."""

    def told(self) -> str:
        """One line for people."""
        unlabelled = ", ".join(f"{count:,} of {split}" for split, count in self.unlabelled.items())
        parts = [f"{self.matched:,} videos have features and a row of labels"]
        if unlabelled:
            parts.append(f"without a known label: {unlabelled}")
        for words, ids in (
            ("features, but no row of labels", self.without_row),
            ("a label, but no features", self.without_features),
        ):
            if ids:
                parts.append(f"{len(ids):,} have {words} ({', '.join(ids[:SHOWN])}{', …' if len(ids) > SHOWN else ''})")
        return "; ".join(parts)


def join(labels: ReactionLabels, feature_ids: Sequence[str]) -> Join:
    """Raises ValueError where nothing matches, with an id of each side."""
    rows = {video: row for row, video in enumerate(labels.video_ids)}
    index = np.array([rows.get(video, -1) for video in feature_ids], np.int64)
    if not (index >= 0).any():
        ours = feature_ids[0] if len(feature_ids) else "none at all"
        theirs = labels.video_ids[0] if labels.video_ids else "none at all"
        raise ValueError(
            f"no video of the store stands in the labels: the store names them such as {ours!r}, the labels such as "
            f"{theirs!r}; extract --video-id decides how a store names videos"
        )
    known = labels.labelled
    matched = index[index >= 0]
    there = set(feature_ids)
    return Join(
        index=index,
        matched=len(matched),
        unlabelled=dict(Counter(labels.splits[row] or "none" for row in matched if not known[row])),
        without_row=tuple(video for video, row in zip(feature_ids, index) if row < 0),
        without_features=tuple(v for v, has in zip(labels.video_ids, known) if has and v not in there),
    )
