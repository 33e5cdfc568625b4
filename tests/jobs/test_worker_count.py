"""`--num-workers N` and `MIN:MAX`: read, shown, refused."""

import copy
import json
import pickle

import pytest

from cluster.capacity import Node, Workers
from jobs.cli import parse_options
from jobs.outcome import InputError
from jobs.run_options import RunOptions, WorkerCount
from jobs.training_run import TrainingRun


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


def test_a_training_that_lacks_nodes_says_so_and_what_would_go_on(monkeypatch, capfd):
    run = object.__new__(TrainingRun)
    monkeypatch.setattr("jobs.training_run.live_nodes", lambda: [Node(name="a", cpus=1)])
    run._tell_lack_of_room(Workers(count=3, cpus=1, span=(1, 3)))
    assert capfd.readouterr().err == ""
    run._tell_lack_of_room(Workers(count=3, cpus=1))
    told = capfd.readouterr().err
    assert "waiting for nodes: 3 training workers of 1 CPU each find room for 1" in told
    assert "MIN:MAX workers go on with fewer" in told
    run._tell_lack_of_room(Workers(count=3, cpus=1, span=(2, 3)))
    assert "go on with fewer" not in capfd.readouterr().err
