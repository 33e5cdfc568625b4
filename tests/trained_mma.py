"""One small training that several tests look at: a made corpus, `train-mma` on it with two workers, and its MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

SETTINGS = (
    "--trunk", "tiny", "--detector", "none", "--batch-size", 400, "--epochs", 2, "--epoch-samples", 1200,
)  # fmt: skip
"""An epoch takes two workers about 3 s, long enough to kill one in it. It has three steps alone, since what rounding
makes of a training grows a hundredfold every few steps (1e-7 in the first weights is .01 in the loss after 25)."""
TWO_WORKERS = ("--num-workers", 2, "--worker-cpus", 1)


class Trained(NamedTuple):
    """What `train-mma` left behind, and what it said."""

    out: Path
    corpus: Path
    options: tuple[object, ...]
    """All but --out and the workers: equal options give equal runs."""
    ran: Any
    """`conftest.Ran`."""

    @property
    def history(self) -> list[dict[str, Any]]:
        return json.loads((self.out / "metrics.json").read_text())["history"]


@pytest.fixture(scope="session")
def training_corpus(run_job: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 clips of 1 to 2 s at 3 frames a second, a subject each, over three splits."""
    folder = tmp_path_factory.mktemp("training") / "corpus"
    ran = run_job("synth", "--out", folder, "--videos", 36, "--seconds", "1,2", "--fps", 3)
    assert ran.code == 0, ran.told
    return folder


@pytest.fixture(scope="session")
def training_mlflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URI of one MLflow database for all trainings of the session: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def trained(run_job: Callable[..., Any], training_corpus: Path, training_mlflow: str) -> Trained:
    """The training by two workers, undisturbed."""
    out = training_corpus.parent / "model"
    options = ("--labels", f"synth={training_corpus}", *SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", training_mlflow)
        ran = run_job("train-mma", "--out", out, *options, *TWO_WORKERS)
    assert ran.code == 0, ran.told
    return Trained(out, training_corpus, options, ran)
