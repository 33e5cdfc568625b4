"""Rows of a store on a grid of time: nearest frames, gaps, odd videos, several files and stores."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from made_grid import failed, settled, video
from made_rows import row

from cluster.storage import Folder
from mma.descriptors import MMA26
from mma.store import schema as s
from mma.store.rows import settle_video
from mma.store.writer import StoreWriter, settle_spec
from rnn.flat import flat_videos, stores_spec, stores_step
from rnn.grid import BROKEN_STAMPS, SPARSEST, common_interval, frame_intervals, to_grid

SPEC = s.make_spec(
    descriptors=MMA26,
    weights={"truth": "test"},
    crop={},
    detector={"detector": "truth"},
    sampling={},
    precision="float32",
)


def valence(grid, video: int = 0) -> list[float]:
    return grid.values[grid.offsets[video] : grid.offsets[video + 1], grid.names.index("valence")].tolist()


@pytest.mark.parametrize(
    ("times_s", "step_s", "expected"),
    [
        ([0, 0.1, 0.2, 0.3], 0.1, [0, 1, 2, 3]),
        ([5.0, 5.1, 5.2], 0.1, [0, 1, 2]),  # the grid starts at the first frame
        ([0, 0.04, 0.08, 0.12, 0.16, 0.2], 0.1, [0, 2, 5]),  # of two as near, the earlier
        ([0, 0.13, 0.19, 0.3], 0.1, [0, 1, 2, 3]),  # jitter
        ([0, 0.2, 0.4], 0.1, [0, 0, 1, 1, 2]),  # slower than the grid: half its own interval
        ([0.7], 0.1, [0]),
    ],
)
def test_each_step_takes_the_nearest_frame(times_s, step_s, expected):
    assert valence(to_grid(settled(video("a", times_s)), MMA26.names, step_s)) == expected


def test_a_gap_stays_unknown_and_is_not_bridged_by_its_neighbours():
    times = [0, 0.1, 0.2, 0.9, 1.0]
    found = valence(to_grid(settled(video("a", times)), MMA26.names, 0.1))
    assert found[:3] == [0, 1, 2]
    assert np.isnan(found[3:9]).all()
    assert found[9:] == [3, 4]


def test_a_failed_chunk_in_mid_video_is_unknown_time_and_makes_it_partial():
    chunks = [
        video("a", np.arange(5) / 10, duration_s=1.5),
        failed("a", 1),
        video("a", 1.0 + np.arange(5) / 10, np.arange(10, 15), chunk=2, duration_s=1.5),
    ]
    rows = settled(*chunks)
    for order in ([0, 1, 2], [2, 0, 1]):
        grid = to_grid(rows.take(order), MMA26.names, 0.1)
        found = valence(grid)
        assert len(found) == 15
        assert found[:5] == [0, 1, 2, 3, 4]
        assert np.isnan(found[5:10]).all()
        assert found[10:] == [10, 11, 12, 13, 14]
        facts = grid.facts.to_pylist()[0]
        assert (facts["status"], facts["frames_known"], facts["frames_expected"]) == (s.PARTIAL, 10, 15)


def test_a_failed_last_chunk_is_time_without_a_face():
    """Two seconds at 30 frames a second, every third taken; the file is lost behind the seventh of them."""
    taken = np.arange(7) * 3
    told = {"duration_s": 20 / 10, "source_fps": 30.0}
    rows = settled(video("a", taken / 30, **told), failed("a", 1))
    whole = settled(video("b", np.arange(20) / 10, **told))
    grid = to_grid(pa.concat_tables([rows, whole]), MMA26.names, 0.1)
    assert np.diff(grid.offsets).tolist() == [20, 20]
    assert valence(grid)[:7] == list(range(7))
    assert np.isnan(valence(grid)[7:]).all()
    facts = grid.facts.to_pylist()[0]
    assert (facts["status"], facts["frames_known"], facts["frames_expected"]) == (s.PARTIAL, 7, 20)
    # Steps are the grid's, whatever the frames are.
    assert len(valence(to_grid(rows, MMA26.names, 0.05))) == 39
    # A single frame has no interval but the source's own.
    lone = to_grid(settled(video("c", [0.0], duration_s=1.0, source_fps=10.0), failed("c", 1)), MMA26.names, 0.1)
    assert np.isnan(valence(lone)).tolist() == [False] + [True] * 9


def test_lost_first_frames_are_time_without_a_face():
    chunk = video("a", 0.3 + np.arange(4) / 10, status=s.PARTIAL, duration_s=0.7, source_fps=10.0)
    numbered = pa.array([np.arange(3, 7, dtype=np.int32)], pa.list_(pa.int32()))
    chunk = chunk.set_column(chunk.schema.get_field_index("frame_index"), "frame_index", numbered)
    found = valence(to_grid(settled(chunk), MMA26.names, 0.1))
    assert np.isnan(found[:3]).all()
    assert found[3:] == [0, 1, 2, 3]


def test_a_lost_end_beyond_all_measure_makes_no_endless_sequence():
    rows = settled(video("a", [0, 0.1], duration_s=3e7, source_fps=10.0), failed("a", 1))
    assert len(to_grid(rows, MMA26.names, 0.1).values) == 2  # such a duration is not believed
    rows = settled(video("a", [0, 0.1], duration_s=0.1 * 2 * SPARSEST, source_fps=10.0), failed("a", 1))
    assert len(to_grid(rows, MMA26.names, 0.1).values) == 2 * SPARSEST


def test_a_gap_beyond_all_measure_makes_no_endless_sequence():
    """A stamp of a damaged file a year late would be gigabytes of unknown steps; its neighbours keep theirs."""
    rows = pa.concat_tables(
        [settled(video("a", [0, 0.1])), settled(video("b", [0, 0.1, 3e7])), settled(video("c", [0]))]
    )
    grid = to_grid(rows, MMA26.names, 0.1)
    assert np.diff(grid.offsets).tolist() == [2, 0, 1]
    assert grid.facts["status"].to_pylist() == ["ok", "failed", "ok"]
    assert grid.facts["error_type"].to_pylist() == [None, BROKEN_STAMPS, None]
    sparse = to_grid(settled(video("d", np.arange(5) * SPARSEST * 0.099)), MMA26.names, 0.1)
    assert len(sparse.values) == round(4 * SPARSEST * 0.99) + 1  # a frame every 10 s is still a video


def test_frames_without_a_face_are_unknown_steps():
    grid = to_grid(settled(video("a", [0, 0.1, 0.2], faces=[True, False, True])), MMA26.names, 0.1)
    found = valence(grid)
    assert found[0] == 0
    assert np.isnan(found[1])
    assert found[2] == 2
    assert grid.facts["frames_known"][0].as_py() == 2


def test_odd_videos_have_their_place_and_status():
    rows = pa.concat_tables(
        [
            settled(video("a", [0, 0.1])),
            settled(failed("b")),
            settled(video("c", [0, 0.1, 0.2], faces=[False] * 3)),
            settled(video("d", [3.0])),
        ]
    )
    grid = to_grid(rows, MMA26.names, 0.1)
    facts = {each["video_id"]: each for each in grid.facts.to_pylist()}
    assert grid.video_ids == ["a", "b", "c", "d"]
    assert np.diff(grid.offsets).tolist() == [2, 0, 3, 1]
    assert {name: each["status"] for name, each in facts.items()} == {
        "a": "ok",
        "b": "failed",
        "c": "no_face",
        "d": "ok",
    }
    assert facts["a"]["face_px"] == 40
    assert facts["b"]["error_type"] == "DamagedStream"


def test_many_videos_at_once_give_what_each_gives_alone():
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        times = np.cumsum(rng.uniform(0.02, 0.2, rng.integers(1, 30))) + rng.uniform(-5, 100)
        rows.append(settled(video(f"v{number:02d}", times, faces=rng.random(len(times)) < 0.8)))
    whole = to_grid(pa.concat_tables(rows), MMA26.names, 0.1)
    for number, each in enumerate(rows):
        alone = to_grid(each, MMA26.names, 0.1)
        np.testing.assert_array_equal(whole.values[whole.offsets[number] : whole.offsets[number + 1]], alone.values)
        assert whole.facts.slice(number, 1).to_pylist()[0] == pytest.approx(alone.facts.to_pylist()[0], nan_ok=True)


def test_the_step_is_the_median_interval_and_uneven_rates_are_refused():
    rows = pa.concat_tables([settled(video(f"v{k}", np.arange(5) * 0.04)) for k in range(9)])
    ids, intervals = frame_intervals(rows)
    assert common_interval(intervals, ids) == pytest.approx(0.04)
    rows = pa.concat_tables([rows, settled(video("odd", np.arange(5) * 0.1)), settled(video("single", [0]))])
    ids, intervals = frame_intervals(rows)
    with pytest.raises(ValueError, match=r"1 of 10 videos .*such as odd \(every 0\.1 s\).*--step-s"):
        common_interval(intervals, ids)
    with pytest.raises(ValueError, match="no video of the store has two frames"):
        common_interval(np.array([np.nan]), ["single"])


def test_a_chunk_that_stands_there_twice_is_refused():
    rows = settled(video("a", [0, 0.1]))
    with pytest.raises(ValueError, match="the video a has its chunk 0 twice"):
        to_grid(pa.concat_tables([rows, rows]), MMA26.names, 0.1)


def test_a_descriptor_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no descriptor AU99"):
        to_grid(settled(video("a", [0])), ["valence", "AU99"], 0.1)


# --- stores ---


def store(folder, *videos: pa.Table, spec=SPEC, run: str = "r") -> Folder:
    place = Folder(str(folder))
    settle_spec(place, spec, has_data=False)
    writer = StoreWriter(place, MMA26, spec, run)
    for each in videos:
        writer.add(each)
        writer.commit()  # a file each
    return place


def test_files_and_stores_join_and_are_mapped_alike_by_all(tmp_path):
    one = store(tmp_path / "one", *(settled(video(f"a{k}", np.arange(3 + k) / 10)) for k in range(3)))
    two = store(tmp_path / "two", settled(video("b", np.arange(4) / 10)), settled(failed("c")))
    step_s = stores_step([one, two])
    assert step_s == pytest.approx(0.1)
    grid = flat_videos([one, two], stores_spec([one, two]), step_s, tmp_path / "scratch")
    again = flat_videos([one, two], stores_spec([one, two]), step_s, tmp_path / "scratch")
    assert sorted(grid.video_ids) == ["a0", "a1", "a2", "b", "c"]
    assert isinstance(grid.values, np.memmap)
    assert not grid.values.flags.writeable
    np.testing.assert_array_equal(grid.values, again.values)
    assert grid.key == again.key
    assert len(list((tmp_path / "scratch").glob("grid-*"))) == 1
    by_id = {name: valence(grid, number) for number, name in enumerate(grid.video_ids)}
    assert by_id == {"a0": [0, 1, 2], "a1": [0, 1, 2, 3], "a2": [0, 1, 2, 3, 4], "b": [0, 1, 2, 3], "c": []}


def test_a_changed_store_is_read_anew(tmp_path):
    folder = store(tmp_path / "s", settled(video("a", [0, 0.1])))
    first = flat_videos([folder], SPEC, 0.1, tmp_path / "scratch")
    writer = StoreWriter(folder, MMA26, SPEC, "r2")
    writer.add(settled(video("b", [0, 0.1])))
    writer.commit()
    assert len(flat_videos([folder], SPEC, 0.1, tmp_path / "scratch")) == 2
    assert len(first) == 1  # still mapped, still whole
    assert valence(first) == [0, 1]


def test_a_video_in_two_stores_is_refused_with_both_files(tmp_path):
    one, two = (store(tmp_path / name, settled(video("same", [0, 0.1])), run=name) for name in ("one", "two"))
    with pytest.raises(ValueError, match=r"'same' stands both in .*one/part-.* and in .*two/part-"):
        flat_videos([one, two], SPEC, 0.1, tmp_path / "scratch")
    assert not list((tmp_path / "scratch").glob("*tmp*"))


def test_stores_of_different_specs_are_refused_with_the_field(tmp_path):
    one = store(tmp_path / "one", settled(video("a", [0])))
    two = store(tmp_path / "two", settled(video("b", [0])), spec={**SPEC, "sampling": {"fps": 5.0}})
    with pytest.raises(ValueError, match=r"different specs \(sampling\.fps: null / 5\.0\)"):
        stores_spec([one, two])


def test_what_extraction_leaves_can_be_read(tmp_path):
    """Rows as the decode tasks and the network make them, in two chunks."""
    rows = settle_video(pa.concat_tables([row("x", 0, None), row("x", 1, 2)]), "r")
    grid = to_grid(rows, MMA26.names, 1 / 25)
    assert valence(grid) == [0.5] * 8
