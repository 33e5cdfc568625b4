"""`mma-mrnnet ablate`: one setting of `train` changed at a time, each over several seeds: what every part is worth.

The table is the paper's kind, with what the paper lacks: intervals of the paired difference to the default, by subject,
and a correction for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jobs import train
from jobs.outcome import Outcome

Group = Literal["descriptors", "routing", "cell", "loss", "normalisation"]
VARIANTS: Mapping[Group, Mapping[str, Mapping[str, Any]]] = {
    "descriptors": {
        "valence and arousal": {"sequence.descriptors": ("va",)},
        "expressions": {"sequence.descriptors": ("expressions",)},
        "action units": {"sequence.descriptors": ("aus",)},
        "valence, arousal, expressions": {"sequence.descriptors": ("va", "expressions")},
        "valence, arousal, action units": {"sequence.descriptors": ("va", "aus")},
        "expressions, action units": {"sequence.descriptors": ("expressions", "aus")},
        "all descriptors": {"sequence.descriptors": ("all",)},
    },
    "routing": {
        "masked, routed dense": {"network.readout": "routed-dense", "network.lengths": "true"},
        "masked statistics": {"network.readout": "masked-statistics", "network.lengths": "true"},
        "masked maximum": {"network.readout": "masked-maximum", "network.lengths": "true"},
        "masked mean": {"network.readout": "masked-mean", "network.lengths": "true"},
        "last state": {"network.readout": "last", "network.lengths": "true"},
        "attention": {"network.readout": "attention", "network.lengths": "true"},
        "no mask": {"network.readout": "unmasked-dense", "network.lengths": "true"},
        "fixed length, cut or padded": {"network.readout": "routed-dense", "network.lengths": "cut"},
        "fixed length, repeated": {"network.readout": "routed-dense", "network.lengths": "repeat"},
        "fixed length, sampled evenly": {"network.readout": "routed-dense", "network.lengths": "even"},
    },
    "cell": {name: {"network.cell": name.lower()} for name in ("GRU", "LSTM", "RNN")},
    "loss": {
        "Pearson": {"fit.loss": "pearson"},
        "CCC": {"fit.loss": "ccc"},
        "mean squared error": {"fit.loss": "mse"},
    },
    "normalisation": {
        "corpus": {"sequence.normalise": "corpus", "sequence.probabilities": "plain"},
        "video": {"sequence.normalise": "video", "sequence.probabilities": "plain"},
        "subject": {"sequence.normalise": "subject", "sequence.probabilities": "plain"},
        "corpus, log odds": {"sequence.normalise": "corpus", "sequence.probabilities": "log-odds"},
        "subject, log odds": {"sequence.normalise": "subject", "sequence.probabilities": "log-odds"},
    },
}
"""What is changed, by group; what the default is already is left out, normalisation by subject where nobody is known,
and log odds of intensities that are no probabilities."""


@dataclass(frozen=True, kw_only=True)
class Options(train.Options):
    """Change one setting of train at a time, and tell what each change is worth.

    All options of train are those of the default, which every variant is compared with; the preset paper is the
    published network. The result is OUT/ablation.csv, ablation.md and ablation.png.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of every variant; scores are averaged over them inside each draw of the bootstrap."""
    groups: tuple[Group, ...] = ("descriptors", "routing", "cell", "loss", "normalisation")
    """Which settings are changed."""
    max_concurrent: int | None = None
    """Most trainings at once; default: what the cluster has room for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.groups:
            raise ValueError(f"--groups is empty: give some of {', '.join(VARIANTS)}")
        if self.max_concurrent is not None and self.max_concurrent < 1:
            raise ValueError(f"--max-concurrent {self.max_concurrent}: give 1 or more")
        if self.register is not None:
            raise ValueError("--register: an ablation leaves no model; register with train or tune")


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    from jobs.ablate_run import AblateRun  # Ray's import takes a while: wrong options are told before it

    return AblateRun(options).run()
