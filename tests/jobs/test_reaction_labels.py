"""From `--labels URI` to labels: every layout where it lies, told in one line, refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.storage import Folder
from jobs.outcome import InputError
from jobs.reaction_labels import read_reaction_labels, read_subjects
from rnn.reactions import REACTIONS

INFO = b"File_ID,Split,Fear\n[00001],Train,0.5\n[00002],Val,1\n[00003],Test,\n"
MUSE = {"labels.csv": b"File_ID,Fear\n00001,0.5\n", "partition.csv": b"id,split\n00001,devel\n"}


def write(folder: Path | str, **files: bytes) -> str:
    """Files by their names, `__` for a dot."""
    place = Folder(str(folder))
    for name, content in files.items():
        place.write(name.replace("__", "."), content)
    return str(folder)


def refused(uri: object, **options: object) -> str:
    with pytest.raises(InputError) as error:
        read_reaction_labels(str(uri), **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_file_and_the_folder_that_holds_it_are_one_and_the_same(tmp_path):
    folder = write(tmp_path, data_info__csv=INFO)
    for uri in (folder, f"{folder}/", f"{folder}/data_info.csv", f"file://{folder}/data_info.csv", f"file://{folder}"):
        found = read_reaction_labels(uri)
        assert (found.layout, found.video_ids) == ("abaw5", ("00001", "00002", "00003"))


def test_muse_is_found_from_its_folder_the_one_above_and_either_file(tmp_path, monkeypatch):
    folder = tmp_path / "c2_muse_reaction"
    write(folder, labels__csv=MUSE["labels.csv"], partition__csv=MUSE["partition.csv"])
    monkeypatch.chdir(folder)
    for uri in (tmp_path, folder, folder / "labels.csv", folder / "partition.csv", "labels.csv"):
        found = read_reaction_labels(str(uri))
        assert (found.layout, found.splits) == ("muse2022", ("val",))


def test_labels_csv_without_a_partition_is_a_table_like_any_other(tmp_path):
    found = read_reaction_labels(write(tmp_path, labels__csv=MUSE["labels.csv"]) + "/labels.csv")
    assert (found.layout, found.splits) == ("table", (None,))


@pytest.mark.parametrize("name", ["mine.CSV", "labels.txt", "labels"])
def test_a_table_may_have_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(INFO)
    assert read_reaction_labels(str(tmp_path / name)).layout == "abaw5"


def test_labels_on_an_object_store_are_read_as_those_on_disk(s3_bucket, tmp_path):
    place = f"s3://{s3_bucket}/set/c2_muse_reaction"
    write(place, labels__csv=MUSE["labels.csv"], partition__csv=MUSE["partition.csv"])
    write(f"s3://{s3_bucket}/abaw", data_info__csv=INFO, people__csv=b"video_id,subject\n00001,p\n")
    for uri in (f"s3://{s3_bucket}/set", place, f"{place}/labels.csv"):
        assert read_reaction_labels(uri).splits == ("val",)
    for uri in (f"s3://{s3_bucket}/abaw", f"s3://{s3_bucket}/abaw/data_info.csv"):
        found = read_reaction_labels(uri, subjects_uri=f"s3://{s3_bucket}/abaw/people.csv")
        assert found.subjects == ("p", None, None)
    assert "holds no labels" in refused(f"s3://{s3_bucket}/nothing")
    assert "--labels s3://" in refused(f"s3://{s3_bucket}/none.csv")


def test_a_made_corpus_brings_its_people_and_its_truth_its_test_labels(tmp_path, capsys):
    from jobs.cli import main

    corpus = tmp_path / "corpus"
    assert main(["synth", "--no-video", "--out", str(corpus), "--videos", "40", "--seconds", "1,1"]) == 0
    info, truth = read_reaction_labels(str(corpus)), read_reaction_labels(str(corpus / "truth.parquet"))
    assert info.video_ids == truth.video_ids
    assert info.splits == truth.splits
    assert info.subjects == truth.subjects
    assert None not in info.subjects
    test = np.array([split == "test" for split in info.splits])
    assert test.any()
    assert not info.labelled[test].any()
    assert truth.labelled.all()


def test_subjects_of_a_table_are_joined_and_the_line_says_what_was_left(tmp_path, capsys):
    folder = write(tmp_path, data_info__csv=INFO, s__csv=b"video_id,subject\n00001,p\n00002,q\n00009,r\n")
    found = read_reaction_labels(folder, subjects_uri=f"{folder}/s.csv")
    assert found.subjects == ("p", "q", None)
    (line,) = capsys.readouterr().err.splitlines()
    assert "labels (abaw5): 3 rows (1 train, 1 val, 1 test); 1 without a label" in line
    assert "1 without a subject" in line
    assert "1 videos of the subjects' table are not among them" in line
    assert f"no column for {', '.join(name for name in REACTIONS if name != 'Fear')}: unknown" in line


def test_a_refusal_names_option_and_file_once(tmp_path):
    folder = write(
        tmp_path, data_info__csv=INFO.replace(b"0.5", b"5"), emi__csv=b"id,Determination,Excitement\n1,0,0\n"
    )
    expected = f"--labels {folder}/data_info.csv: Fear of 00001 is 5; "
    assert refused(folder).startswith(expected)
    assert refused(f"{folder}/data_info.csv").startswith(expected)
    assert refused(f"{folder}/emi.csv", option="--truth").startswith(f"--truth {folder}/emi.csv holds the six emotions")


def test_subjects_are_refused_under_their_own_option(tmp_path):
    folder = write(
        tmp_path,
        data_info__csv=INFO,
        both__csv=b"video_id,subject\n00001,p\n00002,p\n",
        none__csv=b"video_id,person\n00001,p\n",
    )
    said = refused(folder, subjects_uri=f"{folder}/both.csv")
    assert said.startswith(
        f"--subjects {folder}/both.csv: subject 'p' is in train (video 00001) and in val (video 00002)"
    )
    assert refused(folder, subjects_uri=f"{folder}/none.csv").startswith(f"--subjects {folder}/none.csv has no column")
    with pytest.raises(InputError, match=r"--subjects .*gone\.csv"):
        read_subjects(f"{folder}/gone.csv")


def test_nothing_there_no_labels_there_and_other_kinds_of_files_are_refused(tmp_path):
    (tmp_path / "sheet.xlsx").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    (tmp_path / "folder").mkdir()
    assert "neither a csv table in UTF-8 nor a Parquet file" in refused(tmp_path / "sheet.xlsx")
    for name in ("none.csv", "none.PARQUET"):
        assert "holds no labels" not in refused(tmp_path / name)
    for uri in (tmp_path / "folder", tmp_path / "nowhere"):
        said = refused(uri)
        assert "holds no labels: data_info.csv (ABAW5)" in said
        assert "give a csv or Parquet table" in said
    assert "--labels" in refused("gs://bucket/labels.csv")


def test_secrets_in_a_uri_are_not_shown(tmp_path):
    assert "hush" not in refused("s3://key:hush@bucket/labels.csv")
