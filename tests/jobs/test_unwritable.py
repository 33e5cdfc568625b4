"""Outputs that cannot be written are found before the first video is decoded; refused input leaves no folder behind."""

import faults
import numpy as np
import pyarrow as pa
import pytest
from made_grid import settled, video
from trained_mma import Trained

from cluster.storage import Folder
from mma.store.reader import read_spec
from rnn.grid import to_grid
from rnn.model import NO_CALIBRATION, ReactionModel
from rnn.network import NetworkConfig, random_rnn
from rnn.reactions import REACTIONS
from rnn.sequences import SequenceOptions, fit_normaliser

NETWORK = ("--mma", "random:0:tiny")


@pytest.fixture(scope="module")
def small(run_job, clips, tmp_path_factory):
    """A folder with a store of the clips, a model that fits it (trained by nobody), and labels of its videos."""
    folder = tmp_path_factory.mktemp("small")
    ran = run_job("extract", "--videos", clips, "--store", folder / "store", *NETWORK, "--detector", "none")
    assert ran.code == 0, ran.told
    names = ("valence", "arousal")
    grid = to_grid(pa.concat_tables([settled(video(f"v{k}", np.arange(6) / 20)) for k in range(3)]), names, 0.05)
    model = ReactionModel(
        networks=(random_rnn(2, 6, NetworkConfig(units=4), seed=0).eval(),),
        seeds=(0,),
        calibrations=(NO_CALIBRATION,),
        sequence=SequenceOptions(),
        normaliser=fit_normaliser(grid, SequenceOptions(), None),
        step_s=0.05,
        fallback=(0.1,) * 7,
        spec=read_spec(Folder(str(folder / "store"))),
        record={},
    )
    (folder / "model").mkdir()
    (folder / "model/mrnnet.safetensors").write_bytes(model.dump())
    rows = [f"{number:02d},test," + ",".join(f"{(number + k) % 8 / 10}" for k in range(7)) for number in range(8)]
    (folder / "labels.csv").write_text("\n".join(["video_id,split," + ",".join(REACTIONS), *rows]) + "\n")
    return folder


COMMANDS = {
    "extract": ("extract", "--videos", "{clips}", "--store", "{out}", *NETWORK, "--detector", "none"),
    "predict videos": ("predict", "--model", "{small}/model", "--videos", "{clips}", *NETWORK, "--out", "{out}"),
    "predict store": ("predict", "--model", "{small}/model", "--store", "{small}/store", "--out", "{out}"),
    "evaluate videos": (
        *("evaluate", "--model", "{small}/model", "--store", "{small}/store", "--labels", "{small}/labels.csv"),
        *("--out", "{out}"),
    ),
    "export": ("export", "--store", "{small}/store", "--out", "{out}/frames.csv"),
}
WITH_FACES = {
    "train-mma": ("train-mma", "--labels", "synth={corpus}", "--trunk", "tiny", "--out", "{out}", "--no-tracking"),
    "evaluate frames": (
        *("evaluate", "--model", "{trained}", "--labels", "synth={corpus}", "--detector", "none", "--out", "{out}"),
    ),
}


def blocked(words, tmp_path, **places) -> list[str]:
    (tmp_path / "file").write_text("not a folder")
    return [word.format(out=tmp_path / "file" / "out", **places) for word in words]


@pytest.mark.parametrize("job", COMMANDS)
def test_an_output_that_cannot_be_written_is_found_before_the_first_video(
    run_job, small, clips, tmp_path, session_folder, job
):
    before = len(faults.opened_videos(session_folder))
    ran = run_job(*blocked(COMMANDS[job], tmp_path, small=small, clips=clips))
    assert (ran.code, ran.summary) == (2, {}), ran.told
    assert "--store" in ran.told if job == "extract" else "--out" in ran.told
    assert len(faults.opened_videos(session_folder)) == before
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("job", WITH_FACES)
def test_the_same_before_the_first_face_is_cut(run_job, trained: Trained, tmp_path, session_folder, job):
    before = len(faults.opened_videos(session_folder))
    ran = run_job(*blocked(WITH_FACES[job], tmp_path, corpus=trained.corpus, trained=trained.out))
    assert (ran.code, ran.summary) == (2, {}), ran.told
    assert "--out" in ran.told
    assert len(faults.opened_videos(session_folder)) == before


@pytest.mark.parametrize("job", ["extract", "predict videos", "predict store"])
def test_a_bucket_that_is_not_there_is_found_as_early(run_job, small, clips, s3_bucket, session_folder, job):
    before = len(faults.opened_videos(session_folder))
    ran = run_job(*(word.format(out="s3://no-such-bucket-here/x", small=small, clips=clips) for word in COMMANDS[job]))
    assert (ran.code, ran.summary) == (2, {}), ran.told
    assert "does not exist" in ran.told
    assert len(faults.opened_videos(session_folder)) == before


@pytest.mark.parametrize(
    ("job", "instead", "told"),
    [
        ("predict videos", {"random:0:tiny": "random:1:tiny"}, "is not the network of the model's store"),
        ("predict videos", {"{clips}": "{small}/none"}, "--videos"),
        ("predict store", {"{small}/store": "{small}/none"}, "--store"),
        ("predict store", {"{small}/model": "{small}/none"}, "--model"),
        ("evaluate videos", {"{small}/labels.csv": "{small}/none.csv"}, "--labels"),
        ("evaluate videos", {"{small}/model": "{small}/store"}, "--model"),
    ],
)
def test_refused_input_leaves_no_folder_behind(run_job, small, clips, tmp_path, job, instead, told):
    words = [instead.get(word, word) for word in COMMANDS[job]]
    ran = run_job(*(word.format(out=tmp_path / "above" / "out", small=small, clips=clips) for word in words))
    assert (ran.code, told in ran.told) == (2, True), ran.told
    assert list(tmp_path.iterdir()) == []


def test_the_commands_of_these_tests_are_good_ones(run_job, small, clips, tmp_path):
    for number, words in enumerate(COMMANDS.values()):
        (tmp_path / f"{number}").mkdir()
        ran = run_job(*(word.format(out=tmp_path / f"{number}", small=small, clips=clips) for word in words))
        assert ran.code == 0, ran.told
