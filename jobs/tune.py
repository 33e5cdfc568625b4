"""`mma-mrnnet tune`: a sweep of the settings of `train`, its trials on Ray Tune, its books in MLflow.

Kill it whenever you like and run it again with `--resume`: no trial that has ended is trained again, and one that had
begun goes on where it stood.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jobs import train
from jobs.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Options(train.Options):
    """Try many settings of train and keep the best, chosen by the validation score.

    All options of train are the settings that every trial shares; the search space says what differs. --num-workers,
    --worker-cpus and --worker-gpus are of one trial. The result is OUT/mrnnet.safetensors, sweep.html, trials.csv and
    best.yaml, with which `train --config best.yaml` trains the same again.
    """

    trials: int = 16
    """Configurations in all."""
    space: str | None = None
    """URI of a YAML file of the search space (README); default: jobs/templates/search_space.yaml."""
    search: Literal["random", "optuna"] = "random"
    """random: all drawn before the first trial, number k the same however many there are. optuna: each learns from
    those before it."""
    search_seed: int = 0
    """Of the drawing."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha: trials that are behind at epochs GRACE, GRACE * REDUCTION and so on are stopped. none: all run to their
    end."""
    grace_epochs: int | None = None
    """Epochs that every trial gets; default: a tenth of --fit.epochs."""
    reduction: float = 3.0
    """The share that goes on from one rung to the next is 1 in so many."""
    max_concurrent: int | None = None
    """Most trials at once; default: what the cluster has room for."""
    alias: str = "best"
    """With --register: what the new version of the model is called there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("trials", "grace_epochs", "max_concurrent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if self.search_seed < 0:
            raise ValueError(f"--search-seed {self.search_seed}: give 0 or more")
        if not self.reduction > 1:
            raise ValueError(f"--reduction {self.reduction}: give a number above 1")
        if self.grace_epochs is not None and self.grace_epochs > self.fit.epochs:
            raise ValueError(f"--grace-epochs {self.grace_epochs}: give at most --fit.epochs {self.fit.epochs}")


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    from jobs.tune_run import TuneRun  # Ray's import takes a while: wrong options are told before it

    return TuneRun(options).run()
