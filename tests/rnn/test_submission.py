"""The csv that challenges take: its columns, its ids, its numbers."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from rnn.labels import read_labels
from rnn.reactions import REACTIONS
from rnn.submission import submission_csv

VALUES = np.arange(14).reshape(2, 7) / 17


def rows(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def test_it_has_the_id_and_the_seven_reactions_in_their_order_and_nothing_else():
    assert submission_csv(["00002", "00001"], VALUES).splitlines()[0] == (
        b"File_ID,Adoration,Amusement,Anxiety,Disgust,Empathic-Pain,Fear,Surprise"
    )
    header, *written = rows(submission_csv(["00002", "00001"], VALUES))
    assert header == ["File_ID", *REACTIONS]
    assert [row[0] for row in written] == ["00002", "00001"]
    np.testing.assert_allclose(np.array([row[1:] for row in written], float), VALUES, rtol=5e-6)


def test_numbers_have_six_significant_digits():
    (row,) = rows(submission_csv(["a"], [[0, 1, 1 / 3, 2 / 3000, 1e-9, 0.12345678, 0.5]]))[1:]
    assert row[1:] == ["0", "1", "0.333333", "0.000666667", "1e-09", "0.123457", "0.5"]


def test_brackets_are_kept_when_asked_and_read_back_as_the_same_ids():
    content = submission_csv(["00000", "00001"], VALUES, brackets=True)
    assert [row[0] for row in rows(content)[1:]] == ["[00000]", "[00001]"]
    assert read_labels("predictions.csv", content).video_ids == ("00000", "00001")


def test_an_id_with_a_comma_is_one_cell():
    assert rows(submission_csv(['a,"b"'], VALUES[:1]))[1][0] == 'a,"b"'


def test_no_videos_give_the_header_alone():
    assert rows(submission_csv([], np.empty((0, 7)))) == [["File_ID", *REACTIONS]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_not_finite_is_refused_by_its_video(bad):
    values = VALUES.copy()
    values[1, 3] = bad
    with pytest.raises(ValueError, match="predictions of v2 are not finite"):
        submission_csv(["v1", "v2"], values)


def test_two_rows_of_one_video_and_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="'a' has two rows"):
        submission_csv(["a", "a"], VALUES)
    for wrong in (VALUES[:1], VALUES[:, :6], VALUES.T):
        with pytest.raises(ValueError, match="shape"):
            submission_csv(["a", "b"], wrong)
