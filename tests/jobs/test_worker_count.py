"""`--num-workers N` and `MIN:MAX`: read, shown, refused."""

import copy
import json
import pickle

import pytest

from jobs.cli import parse_options
from jobs.outcome import InputError
from jobs.run_options import RunOptions, WorkerCount


@pytest.mark.parametrize(
    ("text", "number", "least"), [("1", 1, None), ("12", 12, None), ("1:3", 3, 1), ("2:2", 2, 2), (4, 4, None)]
)
def test_a_count_is_a_number_and_may_have_a_least(text, number, least):
    count = WorkerCount(text)
    assert (count, count.least, str(count)) == (number, least, str(text))
    for same in (copy.deepcopy(count), pickle.loads(pickle.dumps(count))):
        assert (same, same.least) == (count, least)
    assert json.dumps({"workers": count}) == f'{{"workers": {number}}}'


@pytest.mark.parametrize("text", ["0", "-1", "3:1", "0:2", ":3", "1:", "1:2:3", "two", "1.5", ""])
def test_what_is_no_count_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match="give a number from 1 on, or two as MIN:MAX"):
        WorkerCount(text)
    with pytest.raises(InputError, match="MIN:MAX"):
        parse_options(RunOptions, "train", ["--num-workers", text])


def test_the_command_line_and_a_file_read_it_alike(tmp_path):
    (tmp_path / "run.yaml").write_text("num-workers: 2\n")
    assert parse_options(RunOptions, "train", []).num_workers == 1
    assert parse_options(RunOptions, "train", ["--num-workers", "1:3"]).num_workers.least == 1
    read = parse_options(RunOptions, "train", ["--config", str(tmp_path / "run.yaml")]).num_workers
    assert (read, read.least) == (2, None)
    (tmp_path / "run.yaml").write_text("num-workers: '1:3'\n")
    assert str(parse_options(RunOptions, "train", ["--config", str(tmp_path / "run.yaml")]).num_workers) == "1:3"
