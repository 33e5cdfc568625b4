"""A picture of what goes in and what comes out: frames of one clip, their face crops, and its descriptors over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from cluster.storage import Folder
from mma.descriptors import MMA26
from mma.faces.alignment import crop_face
from mma.store import schema as s
from mma.store.reader import iterate_files, read_spec
from mma.video.readers import open_video

FRAMES = 6


def draw_store(store: Path, out: Path, video_id: str | None = None) -> None:
    """Draw one video of a store.

    Args:
        store: the feature store's folder, local.
        out: the PNG file to write.
        video_id: which video; None takes the longest that has a face in every frame.

    Raises:
        ValueError: no video of the store can be drawn.
    """
    folder = Folder(str(store))
    row = _pick(folder, video_id)
    indices = np.linspace(0, len(row["frame_index"]) - 1, FRAMES).astype(int)
    wanted = [row["frame_index"][i] for i in indices]
    pictures = dict(open_video(row["uri"]).frames(wanted))
    figure = matplotlib.figure.Figure(figsize=(11, 6.6), layout="constrained")
    grid = figure.add_gridspec(4, FRAMES, height_ratios=[1.25, 0.8, 0.9, 1.6])
    for column, (position, frame_index) in enumerate(zip(indices, wanted)):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(pictures[frame_index])
        x, y, w, h = row["face_box"][position]
        axes.add_patch(matplotlib.patches.Rectangle((x, y), w, h, fill=False, edgecolor="#2f9e44", linewidth=1.5))
        axes.set_title(f"{row['time_s'][position]:.2f} s", fontsize=8)
        axes.axis("off")
        crop = figure.add_subplot(grid[1, column])
        box, points = np.array(row["face_box"][position]), np.array(row["face_points"][position])
        crop.imshow(crop_face(pictures[frame_index], box, points))
        crop.axis("off")
    _timelines(figure, grid, row)
    spec = read_spec(folder)
    weights = (
        "untrained (random) weights" if "random" in spec["weights"] else f"weights {spec['weights']['sha256'][:12]}"
    )
    figure.suptitle(f"video_id {row['video_id']}: frames, face crops, descriptors ({weights})", fontsize=10)
    figure.savefig(out, dpi=110)


def _pick(folder: Folder, video_id: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rows in iterate_files(folder):
        for row in rows.to_pylist():
            wanted = row["video_id"] == video_id if video_id else all(row["face_found"])
            drawable = row["status"] == s.OK and row["num_chunks"] == 1 and Path(row["uri"]).is_file()
            if wanted and drawable and row["num_frames"] > found.get("num_frames", 0):
                found = row
    if not found:
        raise ValueError(f"{folder.display} holds no readable local video with a face in every frame to draw")
    return found


def _timelines(figure: matplotlib.figure.Figure, grid: Any, row: dict[str, Any]) -> None:
    times_s = row["time_s"]
    affect = figure.add_subplot(grid[2, :])
    for name in MMA26.valence_arousal:
        affect.plot(times_s, row[name], label=name, linewidth=1.2)
    affect.set_ylim(-1, 1)
    affect.set_xlim(times_s[0], times_s[-1])
    affect.legend(loc="upper right", fontsize=8, ncols=2)
    names = [*MMA26.expressions, *MMA26.action_units]
    units = figure.add_subplot(grid[3, :])
    image = units.imshow(
        np.array([row[name] for name in names]),
        aspect="auto",
        vmin=0,
        vmax=1,
        cmap="magma",
        extent=(times_s[0], times_s[-1], len(names) - 0.5, -0.5),
        interpolation="nearest",
    )
    units.set_yticks(range(len(names)), names, fontsize=6)
    units.set_xlabel("time in the video, s", fontsize=8)
    figure.colorbar(image, ax=units, pad=0.01, aspect=12)
