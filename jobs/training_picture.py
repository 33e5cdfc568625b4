"""A picture of a training: losses by term, validation scores, and the final score of each descriptor."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.ticker import MaxNLocator

COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8e6c8a", "#c98b2b", "#444444")


def draw_training(scores: dict[str, Any]) -> bytes:
    """PNG bytes from what a training left behind: `history`, and of `final_scores` what there is."""
    history = scores["history"]
    by_name = scores.get("scores", {}).get("by_name", {})
    figure = matplotlib.figure.Figure(figsize=(11, 7 if by_name else 3.6), layout="constrained")
    grid = figure.add_gridspec(2 if by_name else 1, 2, height_ratios=[1, 1.1] if by_name else [1])
    epochs = [entry["epoch"] + 1 for entry in history]
    _curves(figure.add_subplot(grid[0, 0]), epochs, history, "loss_", "training loss, by term")
    axes = figure.add_subplot(grid[0, 1])
    _curves(axes, epochs, history, "val_", "validation scores", leave_out=("val_abaw_score",))
    axes.axvline(scores["best_epoch"] + 1, color="#999999", linestyle=":", linewidth=1)
    axes.set_ylim(-0.05, 1)
    if by_name:
        _bars(figure.add_subplot(grid[1, :]), by_name, scores["split"])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _curves(
    axes: Any,
    epochs: list[int],
    history: list[dict[str, Any]],
    prefix: str,
    title: str,
    leave_out: tuple[str, ...] = (),
) -> None:
    names = [name for name in (history[0] if history else {}) if name.startswith(prefix) and name not in leave_out]
    for name, colour in zip(names, COLOURS * 2):
        values = [entry.get(name, np.nan) for entry in history]
        label = name[len(prefix) :].replace("_", " ")
        axes.plot(epochs, values, color=colour, label=label, linewidth=1.6, marker="." if len(epochs) < 3 else None)
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("epoch", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if names:
        axes.legend(fontsize=8, frameon=False)


def _bars(axes: Any, by_name: dict[str, dict[str, Any]], split: str) -> None:
    names = [name for name, told in by_name.items() if told["n"]]
    values = [float(by_name[name].get("ccc", by_name[name].get("f1", 0.0))) for name in names]
    colours = [COLOURS[0] if "ccc" in by_name[n] else COLOURS[2] if n.startswith("AU") else COLOURS[1] for n in names]
    axes.bar(range(len(names)), values, color=colours)
    for place, value in enumerate(values):
        axes.text(place, max(value, 0) + 0.01, f"{value:.2f}", ha="center", fontsize=7)
    told = [f"{name}\nn {by_name[name]['n']:,}" for name in names]
    axes.set_xticks(range(len(names)), told, fontsize=7, rotation=60 if len(names) > 20 else 0)
    axes.set_title(f"{split}: CCC of valence and arousal, F1 of expressions and action units", loc="left", fontsize=10)
    axes.set_ylim(min(0, *values) if values else 0, 1)
    axes.tick_params(axis="y", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
