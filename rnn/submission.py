"""The csv that challenges take: `File_ID` and the 7 reactions, a row a video (PAPER.md, "Submission")."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rnn.reactions import REACTIONS


def submission_csv(video_ids: Sequence[str], values: npt.ArrayLike, *, brackets: bool = False) -> bytes:
    """Ids of N videos and their intensities (N, 7); `brackets`: ids as `[00000]`.

    Raises ValueError for an id that comes twice, values that are not finite, and numbers that do not fit.
    """
    table = np.asarray(values, np.float64)
    if table.shape != (len(video_ids), len(REACTIONS)):
        raise ValueError(f"values of shape {table.shape} for {len(video_ids)} videos and {len(REACTIONS)} reactions")
    if not np.isfinite(table).all():
        raise ValueError(f"the predictions of {video_ids[int(np.argwhere(~np.isfinite(table))[0][0])]} are not finite")
    if len(set(video_ids)) < len(video_ids):
        twice = next(video for video, rows in Counter(video_ids).items() if rows > 1)
        raise ValueError(f"{twice!r} has two rows of predictions")
    sheet = io.StringIO(newline="")
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(("File_ID", *REACTIONS))
    for video_id, row in zip(video_ids, table):
        writer.writerow((f"[{video_id}]" if brackets else video_id, *(f"{value:.6g}" for value in row)))
    return sheet.getvalue().encode()
