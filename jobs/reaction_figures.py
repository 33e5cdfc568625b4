"""The pictures of a reaction report, each as the text of an <img> source: scatter, calibration, timelines, a frame."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import matplotlib.figure
import numpy as np
import numpy.typing as npt

from mma.descriptors import VALENCE_AROUSAL
from rnn.reactions import REACTIONS

INK, FAINT, LINE = "#1b6ca8", "#9aa7b2", "#d1495b"
MOST_POINTS = 2000
"""Points drawn of a scatter; of more, an even choice."""
BINS = 10
MOST_UNITS = 5
"""Action units drawn of a video: those that move most."""
BLUR_SQUARES = 6
"""Squares along each side of a blurred face."""


def scatter(values: npt.NDArray[np.float64], labels: npt.NDArray[np.float32]) -> str:
    """Labels against predictions, a panel a reaction."""
    figure, panels = _panels("prediction", "label")
    for column, axes in enumerate(panels):
        known = np.flatnonzero(np.isfinite(labels[:, column]))
        shown = known[:: max(1, -(-len(known) // MOST_POINTS))]
        axes.plot(values[shown, column], labels[shown, column], ".", color=INK, alpha=0.25, markersize=3)
    return png_source(figure)


def calibration(values: npt.NDArray[np.float64], labels: npt.NDArray[np.float32]) -> str:
    """The mean label in tenths of the videos by prediction; a calibrated model lies on the line."""
    figure, panels = _panels("mean prediction of a tenth", "mean label")
    for column, axes in enumerate(panels):
        known = np.flatnonzero(np.isfinite(labels[:, column]))
        parts = [part for part in np.array_split(known[np.argsort(values[known, column])], BINS) if len(part)]
        x = [values[part, column].mean() for part in parts]
        y = [labels[part, column].mean() for part in parts]
        most = max([*x, *y, 0.05]) * 1.05
        axes.plot([0, most], [0, most], color=FAINT, linewidth=1)
        axes.plot(x, y, "o-", color=INK, markersize=3, linewidth=1)
    return png_source(figure)


def timeline(times_s: npt.NDArray[np.floating], values: npt.NDArray[np.float32], names: Sequence[str]) -> str:
    """Valence, arousal and the liveliest action units of one video over time; (l, D), NaN where no face is."""
    figure = matplotlib.figure.Figure(figsize=(6.4, 2.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in zip(VALENCE_AROUSAL, (INK, LINE)):
        if name in names:
            left.plot(times_s, values[:, list(names).index(name)], color=colour, linewidth=1, label=name)
    left.set_ylim(-1.02, 1.02)
    units = [k for k, name in enumerate(names) if name.startswith("AU")]
    with np.errstate(all="ignore"):
        moves = {k: np.nanmax(values[:, k]) - np.nanmin(values[:, k]) for k in units if np.isfinite(values[:, k]).any()}
    for k in sorted(moves, key=moves.__getitem__, reverse=True)[:MOST_UNITS]:
        right.plot(times_s, values[:, k], linewidth=1, label=names[k])
    for axes in (left, right):
        plain(axes)
        axes.set_xlabel("s", fontsize=7)
        if axes.lines:
            axes.legend(fontsize=6, frameon=False, loc="upper right", ncols=2)
    return png_source(figure)


def thumbnail(picture: npt.NDArray[np.uint8], blurred: Sequence[npt.NDArray[np.float32]] | None) -> str:
    """An RGB frame, small; the boxes `blurred` (x, y, w, h) in a few coarse squares each, the whole frame where one of
    them lies outside or there is none; None: as it is."""
    import cv2

    height, width = picture.shape[:2]
    if blurred is not None:
        picture = picture.copy()
        regions = [_region(box, height, width) for box in blurred]
        if not regions or not all(picture[region].size for region in regions):
            regions = [(slice(0, height), slice(0, width))]
        for region in regions:
            face = picture[region]
            coarse = cv2.resize(face, (BLUR_SQUARES, BLUR_SQUARES), interpolation=cv2.INTER_AREA)
            picture[region] = cv2.resize(coarse, face.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    scale = 160 / max(height, width)
    small = cv2.resize(picture, (max(1, int(width * scale)), max(1, int(height * scale))), interpolation=cv2.INTER_AREA)
    written, data = cv2.imencode(".jpg", small[:, :, ::-1])
    if not written:
        raise ValueError("a frame could not be encoded as JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def _region(box: npt.NDArray[np.float32], height: int, width: int) -> tuple[slice, slice]:
    """Somewhat more than the box: hair and ears tell people too."""
    x, y, w, h = map(float, box)
    rows = slice(int(max(0, y - 0.3 * h)), int(max(0, min(height, y + 1.3 * h))))
    return rows, slice(int(max(0, x - 0.3 * w)), int(max(0, min(width, x + 1.3 * w))))


def _panels(below: str, beside: str) -> tuple[matplotlib.figure.Figure, list[Any]]:
    figure = matplotlib.figure.Figure(figsize=(10, 4.6), layout="constrained")
    grid = figure.subplots(2, 4)
    panels = list(grid.flat)
    for axes, name in zip(panels, REACTIONS):
        plain(axes)
        axes.set_title(name, fontsize=8)
    panels[-1].axis("off")
    figure.supxlabel(below, fontsize=8)
    figure.supylabel(beside, fontsize=8)
    return figure, panels[: len(REACTIONS)]


def plain(axes: Any) -> None:
    """No frame above and at the right, small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=6, length=2)


def png(figure: matplotlib.figure.Figure) -> bytes:
    """A figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def png_source(figure: matplotlib.figure.Figure) -> str:
    """A figure as the text of an <img> source."""
    return f"data:image/png;base64,{base64.b64encode(png(figure)).decode()}"
