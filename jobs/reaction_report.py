"""The page of `evaluate --store`: one self-contained file with scores, floors, ceiling, groups, and single videos.

Videos stand there by id with their descriptors over time; a frame only where it was asked for, and then blurred unless
that was refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.scratch import Scratch
from cluster.storage import stat
from cluster.uri import StorageError, display
from jobs.page import page_environment
from jobs.progress import say
from jobs.reaction_figures import calibration, scatter, thumbnail, timeline
from jobs.reaction_scores import Scored
from mma.faces.detectors import make_detector
from mma.faces.options import FaceOptions
from mma.store.reader import SeenFace, middle_faces
from mma.video.errors import VideoError
from mma.video.readers import open_video
from rnn.reactions import REACTIONS

SHOWN = 4
"""Best and worst videos shown of each."""
FLOORS = {
    "constant": "the training labels' mean",
    "ridge_statistics": "ridge on mean, maximum and deviation of each descriptor",
    "ridge_metadata": "ridge on length, frame rate, size, Age and Country alone",
    "best_descriptor": "the best single descriptor's statistic",
}


def html_page(scored: Scored, *, thumbnails: bool, blur: bool) -> str:
    """The report; whatever comes from a person is escaped."""
    environment = page_environment()
    scores, ceiling = scored.scores, scored.scores["ceiling"] or {}
    ridge = scores["floors"].get("ridge_statistics", {}).get("by_reaction", {})
    rows = [
        {
            "name": name,
            **scores["by_reaction"][name],
            "ceiling": ceiling.get(name),
            "ridge": ridge.get(name, {}).get("pearson"),
        }
        for name in REACTIONS
    ]
    values, labels = scored.predicted.values, scored.videos.labels
    return environment.get_template("reaction_scores.html").render(
        scored=scored,
        scores=scores,
        rows=rows,
        ceiling=ceiling,
        floors=FLOORS,
        warnings=warnings_of(scored),
        facts=model_facts(scored),
        scatter=scatter(values, labels),
        calibration=calibration(values, labels),
        single=single_videos(scored, thumbnails=thumbnails, blur=blur),
        reactions=REACTIONS,
    )


def warnings_of(scored: Scored) -> list[str]:
    """What a reader must know before believing the numbers."""
    scores, lines = scored.scores, []
    weights = scored.model.spec.get("weights", {})
    if "random" in weights:
        lines.append("The descriptors are of untrained (random) MMA weights and mean nothing.")
    if "truth" in weights:
        lines.append("The descriptors are the made corpus's own truth: no network has looked at a picture.")
    if scored.split == "train":
        lines.append("These are the videos that the model was trained on: this is no measure of how well it does.")
    constant = [name for name, each in scores["by_reaction"].items() if each["constant"]]
    if constant:
        lines.append(f"Constant predictions or labels: {', '.join(constant)}; they score 0.")
    if scores["absent"]:
        lines.append(f"Without labels here, and without a score: {', '.join(scores['absent'])}.")
    if scores["interval"]["by"] != "subject":
        lines.append("Subjects are not known, so that the interval is by video, and narrower than one by subject.")
    fallen = sum(scores["statuses"].get(each, 0) for each in ("no_face", "failed"))
    if fallen:
        lines.append(f"{fallen} videos show no face or could not be read; they have the fall-back row, and are scored.")
    return lines


def model_facts(scored: Scored) -> dict[str, str]:
    """What the page says of the model."""
    model = scored.model
    network = model.networks[0]
    config = network.config
    seeds = ", ".join(str(seed) for seed in model.seeds)
    facts = {
        "network": f"{config.cell}, {config.layers} x {config.units} units, readout {config.readout}, "
        f"dense {config.dense_width}",
        "steps": f"{model.step_s:g} s each" + (f", at most {network.steps}" if config.limits_steps() else ""),
        "seeds": seeds,
        "descriptors": f"{len(model.normaliser.names)}: {', '.join(model.normaliser.names)}",
        "sequences": f"normalised by {model.sequence.normalise}, fill {model.sequence.fill}, "
        f"probabilities {model.sequence.probabilities}, smoothing {model.sequence.smooth_s:g} s",
        "weights": model.sha256(),
        "run": str(model.record.get("run_id", "")),
        "preset": str(model.record.get("preset", "")),
    }
    return {term: words for term, words in facts.items() if words}


def single_videos(scored: Scored, *, thumbnails: bool, blur: bool) -> dict[str, list[dict[str, Any]]]:
    """The videos with the smallest and the largest mean error, of those that have a sequence."""
    errors = scored.errors.copy()
    errors[scored.predicted.steps_used == 0] = np.nan
    order = [int(k) for k in np.argsort(errors, kind="stable") if np.isfinite(errors[k])]
    shown = min(SHOWN, len(order) // 2)
    chosen = {"worst": order[::-1][:shown], "best": order[:shown]}
    pictures = _pictures(scored, [*chosen["worst"], *chosen["best"]], blur=blur) if thumbnails else {}
    return {
        title: [_one(scored, video, errors[video], pictures.get(video)) for video in videos]
        for title, videos in chosen.items()
    }


def _one(scored: Scored, video: int, error: float, picture: str | None) -> dict[str, Any]:
    grid = scored.grid
    values = grid.values[grid.offsets[video] : grid.offsets[video + 1]]
    labels = scored.videos.labels[video]
    return {
        "video_id": scored.predicted.video_ids[video],
        "status": scored.predicted.status[video],
        "error": float(error),
        "seconds": float(len(values) * grid.step_s),
        "face_share": float(scored.predicted.face_share[video]),
        "rows": [
            (name, float(scored.predicted.values[video, k]), float(labels[k]) if np.isfinite(labels[k]) else None)
            for k, name in enumerate(REACTIONS)
        ],
        "timeline": timeline(np.arange(len(values)) * grid.step_s, values, grid.names),
        "picture": picture,
    }


def _pictures(scored: Scored, videos: list[int], *, blur: bool) -> dict[int, str]:
    """A frame of each video, the one with the face that lies nearest the middle; those that can be had no more are
    left out, and said."""
    ids = scored.grid.video_ids
    seen = middle_faces(scored.stores, [ids[video] for video in videos])
    pictures = {}
    for video in videos:
        uri = scored.grid.facts["uri"][video].as_py()
        if not uri or ids[video] not in seen:
            continue
        try:
            pictures[video] = _picture(uri, seen[ids[video]], blur=blur)
        except (OSError, ValueError, StorageError, VideoError) as error:
            say(f"--thumbnails: {display(uri)} cannot be shown: {' '.join(str(error).split())[:150]}")
    return pictures


def _picture(uri: str, seen: SeenFace, *, blur: bool) -> str:
    source = stat(uri)
    with Scratch().fetched(uri, source.bytes, source.version) as path:
        ((_, frame),) = list(open_video(path).frames([seen.frame_index]))
    if not blur:
        return thumbnail(frame, None)
    # The store knows the one face that was followed, as long as the file is the same; of others it knows how many.
    others = [each.box for each in make_detector(FaceOptions())(frame)]
    known = np.isfinite(seen.box).all() and source.version == seen.source_version
    enough = seen.num_faces <= 1 + sum(not _overlap(box, seen.box) for box in others)
    return thumbnail(frame, [seen.box, *others] if known and enough else [])


def _overlap(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    """Whether two boxes (x, y, w, h) share any area."""
    return bool((np.minimum(one[:2] + one[2:], other[:2] + other[2:]) > np.maximum(one[:2], other[:2])).all())
