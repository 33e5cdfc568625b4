"""`evaluate --store`: a masked RNN's predictions beside labels, floors and, where it is known, the ceiling."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.storage import Folder
from cluster.uri import StorageError, display
from jobs.evaluate import Options
from jobs.outcome import DONE, InputError, Outcome, input_errors, no_empty_folder
from jobs.prediction import best_device, read_grid, read_model
from jobs.progress import say
from jobs.reaction_labels import made_corpus_ceilings, read_reaction_labels
from jobs.reaction_run import joined_samples, told_scores
from rnn.floors import Floors
from rnn.grid import GridVideos
from rnn.metrics import ReactionMetrics
from rnn.model import Predictions, ReactionModel
from rnn.sequences import select
from rnn.training.data import LabelledVideos, labelled_videos, placed_videos
from rnn.training.final import fitted_floors, floor_inputs, split_scores, summary_numbers

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
ALL = "all"
"""The split of every labelled video, of whatever split or none."""
LENGTH_BINS = 5
LEAST_CEILING = 0.01
"""A share of less says nothing: a split of a clip or two has a ceiling of 0."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """All that a report needs."""

    model: ReactionModel
    stores: list[Folder]
    grid: GridVideos
    videos: LabelledVideos
    """The n of the split."""
    predicted: Predictions
    """Of those n, in that order."""
    scores: dict[str, Any]
    """Plain JSON: `rnn.training.final.split_scores`, `ceiling`, `groups`, `lengths`, `causes`."""
    split: str
    labels: str
    """Where they are from, for people."""

    @property
    def errors(self) -> npt.NDArray[np.float64]:
        """(n,) mean absolute error over a video's known reactions; NaN without any."""
        off = np.abs(self.predicted.values - self.videos.labels)
        known = np.isfinite(off)
        return np.where(
            known.any(axis=1), np.where(known, off, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1), np.nan
        )


def evaluate_reactions(options: Options) -> Outcome:
    """The job: predict, score, write."""
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        out = Folder(options.out)
    with no_empty_folder(out):
        return _evaluate(options, out)


def _evaluate(options: Options, out: Folder) -> Outcome:
    started_s = time.monotonic()
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        if out.exists(METRICS_FILE) and not options.overwrite:
            raise InputError(f"--out {out.display} holds results already: give --overwrite, or name another folder")
        out.check_writable()
        stores = [Folder(uri) for uri in options.store]
    model = read_model(options.model)
    grid = read_grid(model, stores, options.scratch)
    labels = read_reaction_labels(options.labels[0], subjects_uri=options.subjects)
    with input_errors(ValueError, OSError, StorageError, option="--labels"):
        samples, told = joined_samples(labels, grid.video_ids, unsplit=options.split == ALL)
        ceilings = made_corpus_ceilings(options.labels[0]) or {}
    for line in told:
        say(line)
    by_split = labelled_videos(grid, samples)
    if options.split == ALL:
        by_split[ALL] = placed_videos(grid, samples)
    scored = _score(options, model, stores, grid, by_split, ceilings)
    from jobs.reaction_report import html_page  # matplotlib takes a while

    written = {
        "job": "evaluate",
        "model": display(options.model),
        "model_sha256": model.sha256(),
        "labels": display(options.labels[0]),
        "split": scored.split,
        **scored.scores,
    }
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        out.write(REPORT_FILE, html_page(scored, thumbnails=options.thumbnails, blur=options.blur).encode())
        out.write(METRICS_FILE, json.dumps(written, indent=1, allow_nan=False).encode())
    say(told_scores(scored.split, scored.scores))
    if ceiling := scored.scores["ceiling"]:
        share = scored.scores["mean_pearson"] / ceiling["mean"]
        say(f"the ceiling of this split is {ceiling['mean']:.3f}: {share:.0%} of it")
    summary = {
        "job": "evaluate",
        "seconds": round(time.monotonic() - started_s, 3),
        "out": out.display,
        "report": f"{out.display}/{REPORT_FILE}",
        "split": scored.split,
        "videos": scored.scores["videos"],
        "metrics": summary_numbers(scored.scores),
        "ceiling": scored.scores["ceiling"]["mean"] if scored.scores["ceiling"] else None,
    }
    return Outcome(summary=summary, exit_code=DONE)


def _score(
    options: Options,
    model: ReactionModel,
    stores: list[Folder],
    grid: GridVideos,
    by_split: dict[str, LabelledVideos],
    ceilings: Mapping[str, Any],
) -> Scored:
    split = options.split
    videos = by_split[split]
    values = videos.labels
    if not np.isfinite(values).any():
        counts = {name: int(np.isfinite(each.labels).any(axis=1).sum()) for name, each in by_split.items()}
        raise InputError(
            f"--split {split} has no labelled video with features (labelled: {counts}): give another --split (all: "
            "also videos of no split), or --labels with its labels, such as a made corpus's truth.parquet"
        )
    whole = select(grid, videos.videos, grid.names)
    with input_errors(ValueError, option="--store"):
        predicted = model.predict(whole, videos.groups(), device=best_device())
    names = model.normaliser.names
    floors = {}
    fitted = _floors(model, grid, by_split)
    if fitted is None or split == "train":
        say("no floors: they are fitted on the split train, of which nothing is here, or which is scored itself")
    else:
        floors = fitted.predict(*floor_inputs(grid, videos, names))
    scores = split_scores(predicted.by_seed, values, videos.groups(), floors, videos.kinds())
    ceiling = ceilings.get(split, {}).get("display")
    scores["ceiling"] = ceiling if ceiling and ceiling["mean"] >= LEAST_CEILING else None
    scores["lengths"] = _by_length(predicted, values, model.step_s)
    scores["statuses"] = dict(Counter(predicted.status))
    scores["causes"] = dict(Counter(each for each in whole.facts["error_type"].to_pylist() if each))
    return Scored(
        model=model,
        stores=stores,
        grid=whole,
        videos=videos,
        predicted=predicted,
        scores=scores,
        split=split,
        labels=display(options.labels[0]),
    )


def _floors(model: ReactionModel, grid: GridVideos, by_split: Mapping[str, LabelledVideos]) -> Floors | None:
    """Those that came with the model, fitted on what it was trained on; else of the labels' own split train."""
    if told := model.record.get("floors"):
        return Floors.from_dict(told)
    if not np.isfinite(by_split["train"].labels).any():
        return None
    return fitted_floors(grid, by_split, model.normaliser.names)


def _by_length(predicted: Predictions, labels: npt.NDArray[np.float32], step_s: float) -> list[dict[str, Any]]:
    """The score in fifths of the videos by length, shortest first."""
    order = np.argsort(predicted.steps, kind="stable")
    rows = []
    for part in np.array_split(order, min(LENGTH_BINS, len(order))):
        score = ReactionMetrics.of(predicted.values[part], labels[part]).scores()["mean_pearson"]
        seconds = predicted.steps[part] * step_s
        rows.append(
            {"from_s": float(seconds.min()), "to_s": float(seconds.max()), "videos": len(part), "mean_pearson": score}
        )
    return rows
