"""What Ray is asked for, for a pipeline: GPUs for the network, the named nodes for decoding."""

from typing import Any

import pyarrow as pa

from cluster.capacity import Node, plan_capacity
from jobs.pipeline import Reading, build
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
