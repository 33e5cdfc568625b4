"""What reaction labels may not be: each trap refused in one line that names the file, the place and the mend."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from rnn.labels import read_labels, read_muse, read_subjects, with_subjects
from rnn.reactions import REACTIONS

HEAD = "File_ID,Split," + ",".join(REACTIONS)
GOOD = ",".join(["0.5"] * 7)
FILE = "s3://bucket/f.csv"


def csv(*lines: str) -> bytes:
    return "\n".join((*lines, "")).encode()


def parquet(columns: dict) -> bytes:
    buffer = io.BytesIO()
    pd.DataFrame(columns).to_parquet(buffer)
    return buffer.getvalue()


def refusal(content: bytes) -> str:
    with pytest.raises(ValueError) as error:
        read_labels(FILE, content)
    said = str(error.value)
    assert said.startswith(FILE)
    assert "\n" not in said
    assert len(said) < 400
    return said


def test_an_emi_file_is_refused_by_name_also_where_it_could_pass_for_labels():
    names = "Admiration,Amusement,Determination,Empathic Pain,Excitement,Joy"
    for header in (names, names.replace(" ", "_").lower()):
        said = refusal(csv(f"Filename,{header}", "1,0,0,0,0,0,0"))
        assert "EMI challenge" in said
        assert "Hume-Reaction" in said
    # Two of its columns are reactions as well, and its id column may be called as ours.
    assert "EMI challenge" in refusal(csv(f"File_ID,{names}", "1,0,0,0,0,0,0"))


@pytest.mark.parametrize("cell", ["1.01", "-0.01", "100", "-1", "inf", "-inf", "high", "0.5.5", "1e999"])
def test_a_label_that_is_no_intensity_is_refused_with_its_column_and_its_first_row(cell):
    said = refusal(csv(HEAD, f"[1],Train,{GOOD}", f"[2],Train,0,0,0,0,0,{cell},0", f"[3],Train,0,0,0,0,0,{cell},0"))
    assert f"Fear of 2 is {cell}; intensities lie in [0, 1]" in said
    assert "leave the cell empty" in said


def test_a_list_in_a_column_of_labels_is_refused():
    assert "Fear of a is [0.1, 0.2]" in refusal(parquet({"video_id": ["a"], "Fear": [[0.1, 0.2]]}))


@pytest.mark.parametrize("again", ["[00001]", "00001", " 00001 "])
def test_an_id_that_comes_twice_is_refused_with_both_rows(again):
    said = refusal(csv(HEAD, f"[00001],Train,{GOOD}", f"[00002],Train,{GOOD}", f"{again},Val,{GOOD}"))
    assert "'00001' twice, in rows 1 and 3" in said


def test_ids_that_differ_in_zeros_are_two():
    assert read_labels(FILE, csv("video_id,Fear", "1,0", "01,0")).video_ids == ("1", "01")


def test_a_row_without_an_id_is_refused():
    assert "row 2 has no id in the column File_ID" in refusal(csv(HEAD, f"1,Train,{GOOD}", f"[],Train,{GOOD}"))
    assert "row 2 has no id in the column video_id" in refusal(parquet({"video_id": ["a", None], "Fear": [0.0, 0.0]}))


@pytest.mark.parametrize("word", ["holdout", "trian", "0", "Test2"])
def test_an_unknown_split_is_refused(word):
    said = refusal(csv(HEAD, f"1,Train,{GOOD}", f"2,{word},{GOOD}"))
    assert f"Split of 2 is {word}; give Train, Val or Test" in said


@pytest.mark.parametrize("age", ["old", "-1", "inf", "1985"])
def test_an_age_that_is_none_is_refused(age):
    assert f"Age of a is {age}" in refusal(csv("File_ID,Fear,Age", f"a,0,{age}"))


def test_no_reaction_or_no_id_is_refused_with_the_columns_there_are():
    said = refusal(csv("File_ID,Joy,Anger", "a,0,0"))
    assert "none of the columns Adoration" in said
    assert "File_ID, Joy, Anger" in said
    said = refusal(csv("name,Fear", "a,0"))
    assert "no column of ids: name it File_ID or video_id (it has name, Fear)" in said


def test_a_header_of_thousands_of_columns_is_not_told_whole():
    assert "and 5988 more" in refusal(csv(",".join(f"column_{n}" for n in range(6000))))


@pytest.mark.parametrize("twins", [("Fear", "Fear"), ("Fear", "fear"), ("Fear", " Fear "), ("Subject", "subject")])
def test_two_columns_of_one_name_are_refused_since_either_could_be_meant(twins):
    said = refusal(csv("File_ID,Disgust," + ",".join(twins), "a,0,0,1"))
    assert "two columns of one name" in said


@pytest.mark.parametrize("row", [f"2,Val,{GOOD},0.9", "2,Val,0.5", "2"])
def test_a_row_that_does_not_fit_its_header_is_refused_and_never_shifted(row):
    said = refusal(csv(HEAD, f"1,Train,{GOOD}", row))
    assert "line 3 has" in said
    assert "under a header of 9" in said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b"PK\x03\x04" + bytes(range(256)),
        "File_ID,Country\n1,Curaçao\n".encode("latin-1"),
        b'File_ID,Fear\n1,"0.5\n',  # the rest of a cut file as one cell
        b"PAR1" + bytes(100),
        parquet({"video_id": ["a"], "Fear": [0.5]})[:300],
    ],
    ids=["empty", "picture", "workbook", "latin-1", "open quote", "no footer", "cut Parquet"],
)
def test_what_is_neither_csv_nor_parquet_is_refused(content):
    assert "csv" in refusal(content) or "Parquet" in refusal(content)


# --- MuSe-2022 ---


def muse_refusal(labels: bytes, partition: bytes) -> str:
    with pytest.raises(ValueError) as error:
        read_muse("c2", {"labels.csv": labels, "partition.csv": partition}.__getitem__)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("labels", "partition", "said"),
    [
        (("File_ID,Fear", "a,0"), ("id,partition", "a,dev2"), "c2/partition.csv: partition of a is dev2"),
        (("File_ID,Fear", "a,0"), ("id,partition", "a,train", "a,test"), "c2/partition.csv has the id 'a' twice"),
        (("File_ID,Fear", "a,0", "[a],1"), ("id,partition", "a,train"), "c2/labels.csv has the id 'a' twice"),
        (("File_ID,Fear", "a,0"), ("id", "a"), "id first, partition last"),
        (("File_ID,Fear", "00001,0"), ("id,partition", "1,train"), "c2/partition.csv names no video of labels.csv"),
        (("name,Fear", "a,0"), ("id,partition", "a,train"), "c2/labels.csv has no column of ids"),
        (("File_ID,Fear", "a,2"), ("id,partition", "a,train"), "c2/labels.csv: Fear of a is 2"),
    ],
)
def test_muse_files_that_do_not_fit_each_other_are_refused_by_the_file_at_fault(labels, partition, said):
    assert said in muse_refusal(csv(*labels), csv(*partition))


# --- subjects ---


def test_a_subject_on_two_sides_of_a_split_is_refused_with_both_sides():
    said = ("'p'", "train (video a)", "test (video c)")
    lines = ("File_ID,Split,Fear,Subject", "a,Train,0,p", "b,Val,0,q", "c,Test,,p")
    with pytest.raises(ValueError) as error:
        read_labels(FILE, csv(*lines))
    assert all(each in str(error.value) for each in said)

    labels = read_labels(FILE, csv(*(line.rpartition(",")[0] for line in lines)))
    with pytest.raises(ValueError) as error:
        with_subjects(labels, read_subjects("s.csv", csv("video_id,subject", "c,p", "a,p")))
    assert all(each in str(error.value) for each in said)


def test_subjects_of_other_videos_alone_are_refused_with_an_id_of_each():
    labels = read_labels(FILE, csv("File_ID,Fear", "00001,0"))
    with pytest.raises(ValueError, match=r"'clip-1' with the subjects and '00001' with the labels"):
        with_subjects(labels, {"clip-1": "p"})


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("video_id,person", "a,p"), r"s\.csv has no column subject \(it has video_id, person\)"),
        (("person,subject", "a,p"), r"s\.csv has no column of ids"),
        (("video_id,subject", "a,p", "a,q"), r"s\.csv has the id 'a' twice"),
    ],
)
def test_a_table_of_subjects_that_is_none_is_refused(lines, said):
    with pytest.raises(ValueError, match=said):
        read_subjects("s.csv", csv(*lines))


def test_labels_of_a_whole_set_are_read_in_seconds_and_unharmed():
    """25,067 rows as Hume-Reaction has them."""
    rows = 25_067
    values = np.random.default_rng(0).random((rows, 7)).round(6)
    lines = [HEAD] + [f"[{n:05d}],Train," + ",".join(map(repr, row)) for n, row in enumerate(values.tolist())]
    found = read_labels(FILE, csv(*lines))
    np.testing.assert_array_equal(found.values, values.astype(np.float32))
    assert found.video_ids[-1] == "25066"
