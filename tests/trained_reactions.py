"""A small masked RNN on true descriptors, trained once a session, for tests of what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from trained_mma import TWO_WORKERS

SETTINGS = (
    "--seeds", 0, 1, "--network.units", 8, "--network.dense-width", 6, "--fit.epochs", 3, "--fit.batch-size", 32,
)  # fmt: skip


class Reactions(NamedTuple):
    """What `synth --no-video` and `train` left behind, and what training said."""

    corpus: Path
    out: Path
    options: tuple[object, ...]
    ran: Any


@pytest.fixture(scope="session")
def reactions(run_job, tmp_path_factory, training_mlflow) -> Reactions:
    """True descriptors of 220 made videos, and a model of two seeds trained on them by two workers."""
    folder = tmp_path_factory.mktemp("reactions")
    ran = run_job("synth", "--no-video", "--out", folder / "corpus", "--videos", 220, "--seconds", "2,4")
    assert ran.code == 0, ran.told
    options = ("--store", folder / "corpus/store", "--labels", folder / "corpus", *SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", training_mlflow)
        ran = run_job("train", "--out", folder / "model", *options, *TWO_WORKERS)
    assert ran.code == 0, ran.told
    return Reactions(folder / "corpus", folder / "model", options, ran)
