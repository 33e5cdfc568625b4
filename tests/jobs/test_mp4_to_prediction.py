"""From mp4 to prediction on people whom neither network has seen: how much of the true descriptors' score is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster.storage import Folder
from tests.studies.mp4_to_prediction import study

LEARNING = "--trunk tiny --learning-rate 5e-3 --balance 0.4 --loss.action-unit-weight 8 --loss.matching off".split()


pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def found(run_job, tmp_path_factory):
    """The study; `MMA_MRNNET_TARGET_MMA` names an MMA network of other people's frames that is there already."""
    tmp_path = tmp_path_factory.mktemp("mp4")
    mma = os.environ.get("MMA_MRNNET_TARGET_MMA")
    if mma is None:
        others = tmp_path / "others"
        assert (
            run_job("synth", "--out", others, "--videos", 12000, "--seconds", "2,4", "--fps", 2, "--seed", 43).code == 0
        )
        ran = run_job(
            "train-mma",
            "--labels",
            f"synth={others}",
            "--out",
            tmp_path / "mma",
            *LEARNING,
            "--epochs",
            10,
            "--no-tracking",
        )
        assert ran.code == 0, ran.told
        mma = str(tmp_path / "mma")
    corpus, store = tmp_path / "corpus", tmp_path / "store"
    assert run_job("synth", "--out", corpus, "--videos", 400, "--seconds", "3,8", "--fps", 12, "--seed", 97).code == 0
    ran = run_job("extract", "--videos", corpus, "--store", store, "--mma", mma)
    assert ran.code == 0, ran.told
    told = study(Folder(str(corpus)), Folder(str(store)), Path(tmp_path / "scratch"))
    print(told)
    return told


def test_most_of_the_score_survives_the_way_from_mp4(found):
    """A little under what an MMA trained for minutes on two cores reaches: .69 (95 % .64 to .73), at a median r of .75."""
    assert found["median_descriptor_r"] >= 0.7
    assert found["ratio"]["ratio"] >= 0.64
    assert found["ratio"]["low"] >= 0.58


@pytest.mark.xfail(
    reason="takes descriptors that agree with the truth at a median r of about .92 (README, Measured: --nearer): a "
    "larger trunk, trained for hours on a GPU, by MMA_MRNNET_TARGET_MMA",
    strict=True,
)
def test_the_aim(found):
    assert found["ratio"]["ratio"] >= 0.85
    assert found["ratio"]["low"] >= 0.75
