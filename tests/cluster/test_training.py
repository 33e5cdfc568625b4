"""What is mended before Ray Train starts; the training itself is tested with `train-mma`."""

from cluster.storage import Folder
from cluster.training import drop_damaged_snapshot, first_line

SNAPSHOT = "mma/checkpoint_manager_snapshot.json"


def test_a_list_of_checkpoints_that_was_cut_short_is_dropped(tmp_path):
    folder = Folder(str(tmp_path))
    assert not drop_damaged_snapshot(folder, "mma")
    folder.write(SNAPSHOT, b'{"ray_version": "2.60.0", "checkpoint_results": []}')
    assert not drop_damaged_snapshot(folder, "mma")
    assert folder.exists(SNAPSHOT)
    for cut in (b'{"ray_version": "2.6', b"", b"\xff"):
        folder.write(SNAPSHOT, cut)
        assert drop_damaged_snapshot(folder, "mma")
        assert not folder.exists(SNAPSHOT)


def test_errors_are_one_line_of_bounded_length():
    class WorkerGroupError(Exception):
        worker_failures = {1: ValueError("first\n  " + "long " * 100 + "\n")}  # noqa: RUF012

    told = first_line(WorkerGroupError("all of it"))
    assert told.startswith("ValueError: long long")
    assert len(told) < 250
    assert "\n" not in told
    assert first_line(KeyError()) == "KeyError"
