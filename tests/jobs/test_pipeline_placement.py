"""What Ray is asked for, for a pipeline: GPUs for the network, the named nodes for decoding; how a plan is cut."""

from typing import Any

import odd_videos
import pyarrow as pa
import pytest

from cluster.capacity import Node, plan_capacity
from jobs.models import load_weights
from jobs.pipeline import Reading, blocks_of, build, read_faces
from jobs.plan import PLAN_SCHEMA
from mma.video.options import DecodeOptions


def asked(*nodes: Node, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a decode task and of an MMA actor."""
    plan = pa.Table.from_pylist([{"video_id": "a", "uri": "/a.mp4"}], schema=PLAN_SCHEMA)
    capacity = plan_capacity(nodes, **options)
    actors = build(plan, Reading(decode=DecodeOptions()), "mma26", b"", {}, capacity)._logical_plan.dag
    return actors.input_dependencies[0].ray_remote_args, actors.ray_remote_args


def test_beside_gpus_the_network_asks_for_one_and_for_no_cpu(ray_cluster):
    """A pipeline for GPUs can be made at all: Ray Data refuses one whose batches are blocks as they come."""
    tasks, actors = asked(Node(name="g", cpus=4, gpus=1))
    assert (actors["num_gpus"], actors["num_cpus"], actors["max_restarts"]) == (1, 0, 0)
    assert tasks["num_cpus"] == 1
    assert "resources" not in tasks


def test_without_gpus_decode_tasks_describe_and_there_are_no_actors(ray_cluster):
    plan = pa.Table.from_pylist([{"video_id": "a", "uri": "/a.mp4"}], schema=PLAN_SCHEMA)
    capacity = plan_capacity([Node(name="c", cpus=2)])
    tasks = build(plan, Reading(decode=DecodeOptions()), "mma26", b"", {}, capacity)._logical_plan.dag
    assert tasks.fn.__name__ == "read_and_describe"
    assert tasks.ray_remote_args["num_cpus"] == 1


def test_decode_tasks_ask_for_the_nodes_named_for_them(ray_cluster):
    cheap = Node(name="c", cpus=4, resources=frozenset({"decode"}))
    tasks, actors = asked(Node(name="g", cpus=4, gpus=1), cheap, decode_resource="decode")
    assert tasks["resources"] == {"decode": 0.001}
    assert "resources" not in actors


@pytest.mark.parametrize(("videos", "slots"), [(0, 2), (1, 4), (3, 2), (300, 2), (20_000, 2), (5_000, 64)])
def test_tasks_shrink_towards_the_end_and_hold_every_video_once(videos, slots):
    plan = pa.table({"video_id": [f"{number}" for number in range(videos)]})
    blocks = blocks_of(plan, slots)
    sizes = [block.num_rows for block in blocks]
    assert [each for block in blocks for each in block["video_id"].to_pylist()] == plan["video_id"].to_pylist()
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes, default=0) <= 64
    # No task is more than its slot's half of what is left, and the last round is of single videos.
    left = [videos - sum(sizes[:place]) for place in range(len(sizes))]
    assert all(size <= max(1, rest // (2 * slots)) for size, rest in zip(sizes, left))
    assert set(sizes[-slots:]) <= {1}
    if videos >= 300:
        assert len(sizes) <= videos / 64 + slots * 14


def test_a_task_is_no_more_than_its_share_of_the_bytes():
    """A folder of recordings of an hour before one of clips: a task of many would keep one slot busy for a day."""
    sizes = [10_000] * 20 + [1] * 980
    blocks = blocks_of(pa.table({"video_id": [f"{number}" for number in range(1000)], "bytes": sizes}), 4)
    assert sum(block.num_rows for block in blocks) == 1000
    assert max(sum(block["bytes"].to_pylist()) for block in blocks) <= sum(sizes) / 8 + 1
    unknown = pa.table({"video_id": ["a", "b", "c"], "bytes": pa.array([None, 5, None], pa.int64())})
    assert sum(block.num_rows for block in blocks_of(unknown, 1)) == 3


def test_what_a_task_has_done_comes_to_the_driver_before_its_end(ray_cluster, tmp_path):
    """A task of many videos is minutes long; what is delivered can be committed, and is not lost with its process."""
    clip = odd_videos.write_clip(tmp_path / "clip.mp4", frames=40).read_bytes()
    rows = []
    for number in range(48):
        (tmp_path / f"{number}.mp4").write_bytes(clip)
        rows.append(
            {"video_id": f"{number}", "uri": str(tmp_path / f"{number}.mp4"), "version": "1", "bytes": len(clip)}
        )
    plan = pa.Table.from_pylist(rows, schema=PLAN_SCHEMA)
    capacity = plan_capacity([Node(name="c", cpus=1)])
    extractor = {"micro_batch": 16, "precision": "float32", "device": "cpu"}
    weights = load_weights("random:0:tiny").data
    dataset = build(plan, Reading(decode=DecodeOptions()), "mma26", weights, extractor, capacity)
    (first, *others) = [
        batch["video_id"].to_pylist() for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    ]
    task = blocks_of(plan, capacity.decoders)[0]
    assert task.num_rows == 24
    # Without faces there are no crops, which else say when to hand rows on.
    settings = {"reading": Reading(decode=DecodeOptions()), "descriptor_set": "mma26"}
    assert [rows.num_rows for rows in read_faces(task, **settings)] == [16, 8]
    assert len(first) <= 16
    assert sorted(first + [each for batch in others for each in batch]) == sorted(plan["video_id"].to_pylist())
