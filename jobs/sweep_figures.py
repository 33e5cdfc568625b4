"""The pictures of a sweep's page, each as the text of an <img> source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import numpy as np
from matplotlib.ticker import MaxNLocator

from jobs.reaction_figures import FAINT, INK, LINE, plain, png_source
from jobs.search_space import Space, told
from jobs.sweep_book import TrialRecord


def parallel_coordinates(space: Space, records: Sequence[TrialRecord], best: TrialRecord) -> str:
    """A line a trial through its settings to its score; the lighter, the better, the best one in red."""
    shown = sorted((each for each in records if each.score is not None), key=lambda each: each.score or 0.0)
    scores = np.array([each.score for each in shown])
    low, high = scores.min(), max(scores.max(), scores.min() + 1e-9)
    figure = matplotlib.figure.Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots()
    columns = [_column(each, shown) for each in space]
    heights = np.stack([*(heights for heights, _ in columns), (scores - low) / (high - low)], axis=1)
    places = np.arange(heights.shape[1])
    colours = matplotlib.colormaps["viridis"]((scores - low) / (high - low))
    for row, record in enumerate(shown):
        chosen = record is best
        style: dict[str, Any] = {"color": LINE, "linewidth": 2.4, "zorder": 3} if chosen else {"color": colours[row]}
        axes.plot(places, heights[row], **{"linewidth": 1.1, "alpha": 0.85, **style})
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color=FAINT, linewidth=0.8, zorder=0)
        for height, label in ticks:
            axes.text(place + 0.03, height, label, fontsize=7, va="center", zorder=4, bbox=_behind())
    axes.axvline(places[-1], color=FAINT, linewidth=0.8, zorder=0)
    for height, value in ((0.0, low), (1.0, high)):
        axes.text(places[-1] + 0.03, height, f"{value:.3f}", fontsize=7, va="center")
    names = [each.name.replace("_", " ").replace(".", "\n") for each in space]
    axes.set_xticks(places, [*names, "validation\nmean r"], fontsize=7)
    axes.set_xlim(-0.15, places[-1] + 0.45)
    axes.set_ylim(-0.06, 1.06)  # also where all lines lie at the bottom: scores and choices that never vary
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return png_source(figure)


def _column(dimension: Any, records: Sequence[TrialRecord]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Each trial's height from 0 to 1, and what the axis says where."""
    values = [each.settings[dimension.name] for each in records]
    if dimension.choices is not None:
        places = np.linspace(0, 1, max(2, len(dimension.choices)))
        heights = {told(choice): place for choice, place in zip(dimension.choices, places)}
        spread = np.linspace(-0.02, 0.02, len(values))  # so that lines through one choice stay apart
        ticks = [(place, label) for label, place in heights.items()]
        return np.array([heights[told(value)] for value in values]) + spread, ticks
    scale = np.log if dimension.log else np.asarray
    low, high = float(scale(dimension.low)), float(scale(dimension.high))
    ticks = [(0.0, told(dimension.low)), (1.0, told(dimension.high))]
    return (np.asarray(scale(np.array(values, float))) - low) / (high - low), ticks


def learning_curves(records: Sequence[TrialRecord], best: TrialRecord) -> str:
    """Validation score by epoch, a line a trial; a cross where one was stopped early."""
    figure = matplotlib.figure.Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots()
    for record in records:
        if not record.history:
            continue
        epochs = [entry["epoch"] for entry in record.history]
        scores = [entry["score"] for entry in record.history]
        chosen = record is best
        axes.plot(
            epochs, scores, color=LINE if chosen else INK, linewidth=2 if chosen else 1, alpha=1 if chosen else 0.45
        )
        if record.state == "stopped":
            axes.plot(epochs[-1], scores[-1], "x", color=INK, markersize=5)
    axes.set_xlabel("epoch", fontsize=8)
    axes.set_ylabel("best validation mean r so far", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    plain(axes)
    return png_source(figure)


def importance_bars(importance: Mapping[str, float]) -> str:
    """The share of the scores' variance that each setting explains."""
    names = list(importance)[::-1]
    figure = matplotlib.figure.Figure(figsize=(8, 0.5 + 0.26 * len(names)), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, [importance[name] for name in names], color=INK)
    axes.set_xlim(0, max(1e-9, *importance.values()) * 1.15)
    for place, name in enumerate(names):
        axes.text(importance[name], place, f" {importance[name]:.2f}", va="center", fontsize=7)
    plain(axes)
    return png_source(figure)


def _behind() -> dict[str, Any]:
    return {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
