"""`mma-mrnnet train`: a feature store and reaction labels -> a masked RNN of one or several seeds, on Ray Train.

The store is read once a node into one flat file, which every worker maps. Kill it whenever you like and run it again
with `--resume`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import tyro

from jobs.outcome import Outcome
from jobs.run_options import RunOptions
from rnn.network import NetworkConfig
from rnn.sequences import SequenceOptions
from rnn.training.options import PRESETS, FitOptions


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train the masked RNN of stage 2 on a feature store and the labels of its videos.

    Local paths, file:// and s3:// (AWS_* in the environment). The result is OUT/mrnnet.safetensors, for predict and
    evaluate. Options of the network, the training and the sequences are the preset's unless given.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    store: tyro.conf.UseAppendAction[tuple[str, ...]]
    """URI of a feature store that extract (or import-openface) wrote; as often as the corpus has stores."""
    labels: str
    """URI of the labels: data_info.csv of ABAW5, the folder of MuSe-2022, a made corpus, or a table of your own
    (video_id, the 7 reactions, split)."""
    out: str
    """Folder of the model and the run's records; must be new, or that of the run to --resume."""
    subjects: str | None = None
    """URI of a table (video_id, subject): intervals are then by subject, and nobody may be on two sides of a split."""
    resume: bool = False
    """Go on with the run that OUT holds."""
    preset: Literal["recommended", "paper"] = "recommended"
    """recommended: what evidence favours. paper: the published tables exactly (README)."""
    seeds: tuple[int, ...] = (0,)
    """One network each; predictions are their mean, and its spread is told."""
    step_s: float | None = None
    """Seconds a step of the grid of time; default: the median frame interval of the store."""
    steps: int | None = None
    """Most steps of readouts with weights a step; longer videos are sampled evenly down to it. Default: the longest
    training video, refused where that is an outlier."""
    calibrate: bool = True
    """Map each reaction's outputs to intensities, fitted on validation; does not change its correlation."""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    """The network's shape."""
    fit: FitOptions = field(default_factory=FitOptions)
    """How it is trained."""
    sequence: SequenceOptions = field(default_factory=SequenceOptions)
    """How videos become sequences."""
    register: str | None = None
    """Name in MLflow's model registry: the model is put there with its MMA network, so that a video can be served."""
    mma: str | None = None
    """With --register: URI of the MMA checkpoint that the store was made with."""
    detector_weights: str | None = None
    """With --register: URI of YuNet's ONNX file, where the store was made with that detector."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the recurrent part."""
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)
    """Where it runs."""

    def __post_init__(self) -> None:
        if not self.store:
            raise ValueError("--store is missing: give the URI of a feature store")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"--seeds {' '.join(map(str, self.seeds))}: give different numbers of 0 or more")
        if self.step_s is not None and not self.step_s > 0:
            raise ValueError(f"--step-s {self.step_s}: give seconds above 0")
        if self.register is not None and self.mma is None:
            raise ValueError("--mma is missing: --register needs the checkpoint that the store was made with")
        if self.register is not None and not self.run.tracking:
            raise ValueError("--register needs MLflow: leave --no-tracking out")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps {self.steps}: give 1 or more")


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    from jobs.reaction_run import ReactionRun  # Ray's import takes a while: wrong options are told before it

    return ReactionRun(options).run()
