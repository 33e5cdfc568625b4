"""Which frames of a video `--fps` takes, by the container's own time stamps.

Worked example, variable frame rate: a phone clip with the stamps (seconds)

    frame      0     1     2     3     4     5     6
    time_s  0.00  0.03  0.07  0.50  0.53  0.57  1.00

at fps=4 has the grid points 0.00, 0.25, 0.50, 0.75, 1.00, counted from the first frame. The nearest frames are
0 (0.00), 2 (0.07, .18 away; frame 3 is .25 away), 3 (0.50), 5 (0.57) and 6 (1.00). At fps=8 the points 0.125 and 0.25
both have frame 2 nearest: it is taken once, so that a video slower than `fps` is never filled up with copies.
The stamps may start anywhere, also below zero: stamps from -0.30 with the same gaps give the same frames.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LAST_POINT_SLACK_S = 0.001
"""A last frame so little before a grid point counts for it: Matroska rounds stamps to whole milliseconds."""


def sample_indices(times_s: NDArray[np.float64], fps: float | None) -> NDArray[np.int64]:
    """The frames to take, strictly increasing: the nearest to each grid point `times_s[0] + k / fps`; all for None.

    `times_s` float64 (N,), not decreasing, in seconds. The grid ends with the last point at or before the last
    stamp (or 1 ms behind it). Of two frames equally near, the earlier is taken. Returns int64 (M,), 1 <= M <= N (0 for
    an empty video).
    """
    times_s = np.asarray(times_s, dtype=np.float64)
    if times_s.ndim != 1 or not np.isfinite(times_s).all() or (np.diff(times_s) < 0).any():
        raise ValueError("times_s: must be one row of finite seconds that do not decrease")
    if fps is None or len(times_s) == 0:
        return np.arange(len(times_s), dtype=np.int64)
    if not (np.isfinite(fps) and fps > 0):
        raise ValueError(f"fps is {fps}: must be above 0, or left out for all frames")
    since_first_s = times_s - times_s[0]
    # The borders between nearest frames; of the frames and not of the grid points,
    # so that the work is N steps however long a gap between two stamps is.
    midpoints_s = (since_first_s[1:] + since_first_s[:-1]) / 2
    tie = 1e-6  # in grid steps: rounding of the arithmetic
    last_point = np.floor((since_first_s[-1] + LAST_POINT_SLACK_S) * fps + tie)
    # Frame i is nearest to the points k with midpoints[i-1] < k / fps <= midpoints[i].
    first_point = np.concatenate([[0.0], np.floor(midpoints_s * fps + tie) + 1])
    end_point = np.concatenate([np.floor(midpoints_s * fps + tie), [np.inf]])
    taken = (first_point <= end_point) & (first_point <= last_point)
    return np.flatnonzero(taken).astype(np.int64)
