"""`synth` end to end: the files other tools rely on, clips that can be read, nothing of the truth where it may leak."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mma.descriptors import MMA26
from mma.video.readers import open_video
from rnn.reactions import REACTIONS

SMALL = ("--videos", 4, "--seconds", "0.5,1")


@pytest.fixture(scope="module")
def corpus(ray_cluster, tmp_path_factory) -> Path:
    from jobs.cli import main

    folder = tmp_path_factory.mktemp("synth") / "corpus"
    assert main(["synth", "--out", str(folder), *map(str, SMALL), "--damaged", "8"]) == 0
    return folder


def test_the_files_that_other_tools_rely_on(corpus):
    info = pd.read_csv(corpus / "data_info.csv")
    assert list(info.columns) == ["File_ID", "Split", *REACTIONS, "Age", "Country"]
    assert info.File_ID.str.fullmatch(r"\[\d{5}\]").all()
    test = info.Split == "Test"
    assert info.loc[test, list(REACTIONS)].isna().all().all()
    assert info.loc[~test, list(REACTIONS)].max(axis=1).to_list() == [1.0] * (~test).sum()
    assert not (corpus / "data_info.csv").read_text().startswith('"')
    truth = pq.read_table(corpus / "truth.parquet").to_pandas()
    assert {*REACTIONS, *(f"felt_{r}" for r in REACTIONS), *(f"shown_{r}" for r in REACTIONS)} <= set(truth.columns)
    assert truth[list(REACTIONS)].notna().all().all()
    assert {"video_id", "subject"} <= set(pd.read_csv(corpus / "subjects.csv").columns)
    ceiling = json.loads((corpus / "ceiling.json").read_text())
    assert set(ceiling) == {"train", "val", "test"}
    assert set(ceiling["test"]["display"]) == {"mean", *REACTIONS}


def test_each_clip_has_the_frames_that_its_labels_count(corpus):
    labels = pq.read_table(corpus / "frames.parquet").to_pandas()
    clips = sorted(corpus.glob("*/mp4/*.mp4"))
    assert len(clips) == 4
    for path in clips:
        mine = labels[labels.video_id == path.stem]
        reader = open_video(path)
        np.testing.assert_allclose(reader.times_s, mine.time_s, atol=1e-3)
        assert mine.split.str.lower().eq(path.parent.parent.name).all()


def test_damaged_files_are_what_their_table_says(corpus):
    table = pd.read_csv(corpus / "damaged.csv")
    assert len(table) == len(list((corpus / "damaged").iterdir())) == 8
    assert {"failed", "partial", "no_face"} <= set(table.expected)


def test_a_rerun_draws_what_is_missing_and_nothing_else(corpus, job):
    clips = sorted(corpus.glob("*/mp4/*.mp4"))
    before = {path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest()) for path in clips}
    clips[0].unlink()
    ran = job("synth", "--out", corpus, *SMALL)
    assert ran.code == 0, ran.told
    assert ran.summary["frames"] == len(open_video(clips[0]).times_s)
    assert clips[0].stat().st_mtime_ns != before[clips[0]][0]
    # Equal options give equal bytes, whoever draws.
    assert all(hashlib.sha256(path.read_bytes()).digest() == before[path][1] for path in clips)
    assert all(path.stat().st_mtime_ns == before[path][0] for path in clips[1:])


def test_two_corpora_are_not_mixed_in_one_folder(corpus, job):
    ran = job("synth", "--out", corpus, *SMALL, "--seed", 1)
    assert ran.code == 2
    assert "seed: 1 / 0" in ran.told


def test_true_descriptors_make_a_store_without_videos(job, tmp_path):
    ran = job("synth", "--out", tmp_path, "--videos", 12, "--no-video")
    assert ran.code == 0, ran.told
    rows = pq.read_table(tmp_path / "store").to_pylist()
    assert len(rows) == 12
    assert not list(tmp_path.rglob("*.mp4"))
    for row in rows:
        np.testing.assert_allclose(np.diff(row["time_s"]), 0.1, atol=1e-9)
        values = np.stack([row[name] for name in MMA26.names], axis=1)
        assert np.isfinite(values).all()
        assert all(row["face_found"])
    assert json.loads((tmp_path / "store" / "_spec.json").read_text())["weights"] == {"truth": "made corpus"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (("--seconds", "3"), "--seconds 3"),
        (("--seconds", "8,3"), "--seconds"),
        (("--videos", "0"), "--videos 0"),
        (("--damaged", "2", "--no-video"), "--no-video"),
        (("--gap", "age"), "--gap"),
    ],
)
def test_wrong_options_are_told_before_anything_is_written(job, tmp_path, wrong, told):
    ran = job("synth", "--out", tmp_path / "c", *wrong)
    assert ran.code == 2
    assert told in ran.told
    assert not (tmp_path / "c").exists()
