"""Reaction labels as they are handed out: ABAW5, MuSe-2022, a table of one's own, a made corpus's truth."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from rnn.labels import ReactionLabels, read_labels, read_muse, read_subjects, with_subjects
from rnn.made.options import CorpusOptions
from rnn.made.plan import plan_corpus
from rnn.made.tables import data_info, subjects_table, truth_table
from rnn.reactions import REACTIONS

NAN = float("nan")


def csv(*lines: str) -> bytes:
    return "\n".join((*lines, "")).encode()


def parquet(frame: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    return buffer.getvalue()


def same(found: np.ndarray, expected) -> None:
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def labels_of(video_ids=("a", "b"), *, splits=("train", "val"), subjects=(None, None), **fields) -> ReactionLabels:
    rows = len(video_ids)
    blank = {
        "values": np.full((rows, 7), 0.5, np.float32),
        "countries": (None,) * rows,
        "ages": np.full(rows, NAN, np.float32),
    }
    return ReactionLabels(video_ids=video_ids, splits=splits, subjects=subjects, layout="table", **{**blank, **fields})


# --- ABAW5 ---


def test_abaw5_is_read_by_name_whatever_the_order_of_columns_and_ids_keep_their_zeros():
    found = read_labels(
        "data_info.csv",
        csv(
            "Surprise,Fear,File_ID,Empathic-Pain,Disgust,Anxiety,Country,Amusement,Adoration,Split,Age",
            ".7,.6,[00007],.5,.4,.3,South Africa,.2,1,Train,31",
            "0,0,[00010],0,0,0,United States,1,.25,VAL,",
            ",,[00100],,,,,,,test,40",
        ),
    )
    assert found.layout == "abaw5"
    assert found.video_ids == ("00007", "00010", "00100")
    same(found.values, [[1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], [0.25, 1, 0, 0, 0, 0, 0], [NAN] * 7])
    assert found.splits == ("train", "val", "test")
    assert found.countries == ("South Africa", "United States", None)
    assert found.subjects == (None, None, None)
    same(found.ages, [31, NAN, 40])


def test_ids_come_without_brackets_and_blanks_and_with_the_brackets_that_are_theirs():
    found = read_labels("f.csv", csv("File_ID,Fear", "[ 00001 ],0", "  00002 ,0", "clip[3],0", "[x]y,0"))
    assert found.video_ids == ("00001", "00002", "clip[3]", "[x]y")


def test_a_subject_column_is_taken_in_any_case():
    found = read_labels("f.csv", csv("video_id,Fear,SUBJECT", "a,0,007", "b,0,"))
    assert found.subjects == ("007", None)


@pytest.mark.parametrize("spelt", ["Empathic Pain", "empathic_pain", "EMPATHIC-PAIN", " Empathic-Pain "])
def test_spellings_of_a_reaction_are_one(spelt):
    found = read_labels("f.csv", csv(f"File_ID,{spelt}", "a,.5"))
    assert found.values[0, REACTIONS.index("Empathic-Pain")] == 0.5


def test_what_is_said_of_labels_counts_splits_blanks_largest_and_columns():
    told = read_labels(
        "f.csv",
        csv(
            "File_ID,Split,Fear,Disgust,Mood,Note",
            "a,Train,1,0,x,y",
            "b,Train,.5,.5,,",
            "c,Val,,1,,",
            "d,Test,,,,",
            "e,,,,,",
        ),
    ).told()
    assert "5 rows (2 train, 1 val, 1 test)" in told
    assert "1 without a split" in told
    assert "2 without a label" in told
    assert "in 67% of the others the largest label is 1" in told
    assert "no column for Adoration, Amusement, Anxiety, Empathic-Pain, Surprise: unknown" in told
    assert "columns left aside: Mood, Note" in told
    assert "\n" not in told


# --- MuSe-2022 ---


def muse(labels: bytes, partition: bytes) -> ReactionLabels:
    return read_muse("c2", {"labels.csv": labels, "partition.csv": partition}.__getitem__)


def test_muse_joins_labels_and_partition_by_id_and_devel_is_val():
    found = muse(
        csv("File_ID," + ",".join(REACTIONS), "00002,.1,.2,.3,.4,.5,.6,.7", "00001,1,0,0,0,0,0,0"),
        # In another order, with a column between, and with a test video that has no row of labels.
        csv("Id,Subject_no,Proposal", "00001,9,train", "[00003],9,test", "00002,9,devel"),
    )
    assert found.layout == "muse2022"
    by_id = dict(zip(found.video_ids, zip(found.splits, found.values)))
    assert {video: split for video, (split, _) in by_id.items()} == {"00001": "train", "00002": "val", "00003": "test"}
    same(by_id["00001"][1], [1, 0, 0, 0, 0, 0, 0])
    same(by_id["00002"][1], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert np.isnan(by_id["00003"][1]).all()


def test_muse_labels_without_a_partition_are_told_and_its_partition_outranks_a_split_column():
    found = muse(csv("File_ID,split,Fear", "a,test,1", "b,test,1"), csv("id,partition", "a,train"))
    assert dict(zip(found.video_ids, found.splits)) == {"a": "train", "b": None}
    assert "1 without a split" in found.told()


# --- a table of one's own ---


@pytest.mark.parametrize("id_name", ["video_id", "File_ID", "VIDEO_ID", "id"])
def test_a_table_may_hold_some_of_the_reactions_and_the_others_are_unknown(id_name):
    found = read_labels("mine.csv", csv(f"{id_name},Fear,Amusement", "007,0.25,1", "008,nan,NA"))
    assert (found.layout, found.video_ids) == ("table", ("007", "008"))
    expected = np.full((2, 7), NAN)
    expected[0, [1, 5]] = 1, 0.25
    same(found.values, expected)
    assert found.notes["unknown"] == ["Adoration", "Anxiety", "Disgust", "Empathic-Pain", "Surprise"]


def test_parquet_gives_what_csv_gives_from_every_kind_of_column():
    """Nullable, categorical and float32 columns, and ids kept as pandas' index, are how such tables come about."""
    frame = pd.DataFrame(
        {
            "video_id": ["00001", "[00002]"],
            "Fear": np.array([0.1, NAN], np.float32),
            "split": pd.Categorical(["Train", "Val"]),
            "Age": pd.array([30, None], dtype="Int64"),
            "Subject": pd.array(["s1", None], dtype="string"),
        }
    )
    written = csv("video_id,Fear,split,Age,Subject", "00001,0.1,Train,30,s1", "[00002],,Val,,")
    expected = read_labels("f.csv", written)
    for content in (parquet(frame), parquet(frame.set_index("video_id"))):
        found = read_labels("f.parquet", content)
        for name in ("video_ids", "splits", "subjects", "countries"):
            assert getattr(found, name) == getattr(expected, name)
        same(found.values, expected.values)
        same(found.ages, expected.ages)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_csv_as_spreadsheets_write_it_is_read(before, end):
    """A byte-order mark, quotes, commas at the ends of rows, row numbers, empty last lines."""
    lines = ['"",File_ID,Fear', '0,"[00001]", 0.5,', '1, "00,2",1,', ",,", ""]
    found = read_labels("f.csv", before + end.join(line.encode() for line in lines))
    assert found.video_ids == ("00001", "00,2")
    same(found.values[:, 5], [0.5, 1])
    assert found.notes["columns_left_aside"] == []


def test_intensities_off_by_rounding_are_clipped_into_their_range():
    found = read_labels("f.csv", csv("File_ID,Fear,Disgust", "a,1.0000005,-0.0000005"))
    assert found.values[0, 5] == 1
    assert found.values[0, 3] == 0


# --- a made corpus ---


@pytest.fixture(scope="module")
def clips():
    return plan_corpus(CorpusOptions(videos=60, seed=3))


def test_the_truth_of_a_made_corpus_scores_its_test_split_and_its_data_info_does_not(clips):
    buffer = io.BytesIO()
    pq.write_table(truth_table(clips), buffer)
    truth = read_labels("truth.parquet", buffer.getvalue())
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(data_info(clips), sink)
    info = read_labels("data_info.csv", sink.getvalue().to_pybytes())

    assert truth.video_ids == info.video_ids == tuple(clip.video_id for clip in clips)
    assert truth.splits == info.splits == tuple(clip.split.lower() for clip in clips)
    same(truth.values, [clip.labels for clip in clips])  # not the felt ones, not the shown ones
    assert truth.subjects == tuple(clip.subject.subject for clip in clips)
    assert truth.notes["columns_left_aside"] == []
    test = np.array([split == "test" for split in info.splits])
    assert 0 < test.sum() < len(clips)
    assert np.isnan(info.values[test]).all()
    np.testing.assert_allclose(info.values[~test], truth.values[~test], atol=1e-6)
    assert set(info.countries) <= {"United States", "South Africa"}
    assert np.isfinite(info.ages).all()


def test_subjects_of_a_made_corpus_join_its_labels_by_id(clips):
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(subjects_table(clips[::-1]), sink)
    subjects = read_subjects("subjects.csv", sink.getvalue().to_pybytes())
    labels = labels_of(tuple(clip.video_id for clip in clips), splits=(None,) * 60, subjects=(None,) * 60)
    assert with_subjects(labels, subjects).subjects == tuple(clip.subject.subject for clip in clips)


# --- subjects ---


def test_subjects_from_a_table_outrank_the_labels_own_and_strangers_are_counted():
    subjects = read_subjects("s.csv", csv("File_ID,Subject", "[a],p1", "c,p3", "d,p4", "e,"))
    assert subjects == {"a": "p1", "c": "p3", "d": "p4"}
    found = with_subjects(labels_of(subjects=("own", "other")), subjects)
    assert found.subjects == ("p1", "other")
    assert "2 videos of the subjects' table are not among them" in found.told()


def test_videos_without_a_subject_are_told_where_others_have_one():
    assert "1 without a subject: each counts as a person" in labels_of(subjects=("p", None)).told()
    assert "subject" not in labels_of().told()


def test_a_subject_may_be_where_no_split_is_said():
    assert labels_of(splits=("train", None), subjects=("p", "p")).subjects == ("p", "p")


# --- what a table of labels promises ---


def test_arrays_are_read_only_and_nobody_elses():
    values = np.full((2, 7), 0.5, np.float32)
    labels = labels_of(values=values)
    values[0, 0] = 0.25
    assert labels.values[0, 0] == 0.5
    for array in (labels.values, labels.ages):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"values": np.zeros((2, 6), np.float32)}, r"values is float32 \(2, 6\)"),
        ({"values": np.zeros((2, 7))}, "values is float64"),
        ({"values": np.full((2, 7), 1.5, np.float32)}, "outside"),
        ({"values": np.full((2, 7), np.inf, np.float32)}, "outside"),
        ({"ages": np.zeros(3, np.float32)}, "ages"),
        ({"countries": ("x",)}, "countries has 1"),
        ({"video_ids": ("a", "a")}, "twice"),
        ({"splits": ("train", "devel")}, "devel"),
    ],
)
def test_parts_that_do_not_fit_are_refused(fields, said):
    with pytest.raises(ValueError, match=said):
        labels_of(**fields)
