"""`mma-mrnnet evaluate`: the scores of a model on labels it was not trained on, as a table, a page and plain files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from cluster.scratch import CAP_BYTES
from jobs.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Options:
    """Score a model on labelled data: an MMA network on frame label sets, by descriptor, or, with --store, a masked RNN
    on the reactions of a store's videos; each beside its floors.

    Local paths, file:// and s3:// (AWS_* in the environment). Writes metrics.json and report.html to OUT.
    """

    model: str
    """URI of a checkpoint, or of the folder that train-mma or train made."""
    labels: tyro.conf.UseAppendAction[tuple[str, ...]]
    """FORMAT=URI, as often as there are sets, as of train-mma; with --store, the URI of reaction labels, as of train.
    Splits are the labels' own: nothing is held out."""
    store: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """URI of the feature store whose videos a masked RNN is scored on; as often as there are stores."""
    subjects: str | None = None
    """With --store: URI of a table (video_id, subject), for intervals by subject."""
    thumbnails: bool = False
    """With --store: show a frame of the best and worst videos, read from their own URIs, faces blurred."""
    blur: bool = True
    """Blur the faces of --thumbnails."""
    out: str
    """Folder of the results."""
    split: Literal["test", "val", "train", "all"] = "test"
    """Which rows are scored; all: also those of sets without splits."""
    overwrite: bool = False
    """Replace the results that OUT holds."""
    crops: str | None = None
    """Folder of the crop store, such as the one of the training; default: OUT/crops."""
    max_missing_fraction: float = 0.05
    """More missing images than this share of a set end the run with exit code 2."""
    detector: Literal["haar", "yunet", "none"] = "haar"
    """Face detector; must be the one that the model was trained with, as must the three options below."""
    detector_weights: str | None = None
    """URI of YuNet's ONNX file; needed with --detector yunet."""
    detect_every: int = 1
    """Detect on every k-th frame of a video and interpolate the box between."""
    detect_size_px: int | None = None
    """Longer side of the picture that the detector sees; default: the detector's own."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 in the trunk on a GPU, float32 on CPUs."""
    address: str | None = None
    """Ray cluster to cut faces on, host:port or auto; default: a Ray of its own on this machine."""
    num_cpus: int | None = None
    """CPUs of the local Ray; default: all."""
    scratch: str | None = None
    """Node-local folder for videos in transit and for faces; default: as of extract."""
    scratch_bytes: int = CAP_BYTES
    """Most bytes of remote videos on a node's disk at a time."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("--labels is missing: give FORMAT=URI, such as synth=corpus; with --store, a URI")
        if self.store and len(self.labels) > 1:
            raise ValueError("--store takes one --labels")
        for name in ("detect_every", "num_cpus", "scratch_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if not 0 <= self.max_missing_fraction <= 1:
            raise ValueError(f"--max-missing-fraction {self.max_missing_fraction}: give a share from 0 to 1")


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    # Torch and Ray take a while: wrong options are told before them.
    if options.store:
        from jobs.reaction_scores import evaluate_reactions

        return evaluate_reactions(options)
    from jobs.frame_scores import evaluate_frames

    return evaluate_frames(options)
