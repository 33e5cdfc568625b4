"""`mma-mrnnet train-mma`: label sets -> face crops -> one multi-task network, trained on Ray Train.

The job: read the label sets, cut the faces they name, write down which samples the run learns from, train, and put the
best network by its validation score into `--out`. Kill it whenever you like and run it again with `--resume`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from cluster.scratch import CAP_BYTES
from jobs.outcome import Outcome
from jobs.run_options import RunOptions
from mma.training.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the multi-task network of stage 1 on any number of label sets, each of which may label some tasks only.

    Local paths, file:// and s3:// (AWS_* in the environment). The result is OUT/mma.safetensors, for extract --mma.
    """

    labels: tyro.conf.UseAppendAction[tuple[str, ...]]
    """FORMAT=URI, as often as there are sets. Formats: affwild2, s-affwild2, affectnet, rafdb, emotionet, disfa, bp4d,
    synth (a made corpus), frames (a table of your own: image, or video_id and frame; then any descriptor columns)."""
    out: str
    """Folder of the model and the run's records; must be new, or that of the run to --resume."""
    resume: bool = False
    """Go on with the run that OUT holds."""
    trunk: str = "resnet50"
    """resnet18, resnet34, resnet50, tiny (for CPUs), or hf:<model or folder> of transformers."""
    descriptor_set: Literal["mma26", "abaw22"] = "mma26"
    """What the heads give: 26 numbers a frame, or the 22 of the ABAW label space."""
    init: str | None = None
    """URI of weights to start from: an earlier MMA checkpoint, or published ones with torchvision's names."""
    mix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=SHARE of the samples shown, for each set (synth, synth-2, ...); default: as many as each has."""
    prior: str | None = None
    """URI of a JSON file {expression: {AU: weight}} for distribution matching and soft co-annotation; default: the
    table of Du, Tao and Martinez 2014."""
    every: int = 1
    """Keep each N-th labelled frame of a video: neighbours are nearly the same picture."""
    val_fraction: float = 0.15
    """Share of the subjects held out for validation, in sets without a validation split of their own."""
    max_missing_fraction: float = 0.05
    """More missing images than this share of a set end the run with exit code 2."""
    training: Annotated[TrainingOptions, tyro.conf.arg(name="")] = field(default_factory=TrainingOptions)
    """How it is trained."""
    crops: str | None = None
    """Folder of the crop store, to be shared by runs; default: OUT/crops."""
    detector: Literal["haar", "yunet", "none"] = "haar"
    """Face detector, as of extract; use the one that you will extract with."""
    detector_weights: str | None = None
    """URI of YuNet's ONNX file; needed with --detector yunet."""
    detect_every: int = 1
    """Detect on every k-th frame of a video and interpolate the box between."""
    detect_size_px: int | None = None
    """Longer side of the picture that the detector sees; default: the detector's own."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 in the trunk on GPUs, float32 on CPUs."""
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)
    """Where it runs."""
    scratch_bytes: int = CAP_BYTES
    """Most bytes of remote videos on a node's disk at a time."""

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("--labels is missing: give FORMAT=URI, such as synth=corpus")
        for name in ("every", "detect_every", "scratch_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"--val-fraction {self.val_fraction}: give a share between 0 and 1")
        if not 0 <= self.max_missing_fraction <= 1:
            raise ValueError(f"--max-missing-fraction {self.max_missing_fraction}: give a share from 0 to 1")
        if self.training.batch_size < self.run.num_workers:
            raise ValueError(
                f"--batch-size {self.training.batch_size} is under --num-workers {self.run.num_workers}: each needs a "
                "sample"
            )


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    from jobs.mma_run import MMARun  # Ray's import takes a while: wrong options are told before it

    return MMARun(options).run()
