"""Who works where: decoding on the nodes that are named for it, MMA actors on those that have a GPU."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import clips
import pytest
from ray_hosts import NAMES, RayHosts, ray_hosts, wait_until
from s3_server import make_bucket

from cluster.storage import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_PIPELINE = """
import json, sys
import pyarrow as pa, ray
from cluster.capacity import plan_capacity
from cluster.session import live_nodes, ray_session
from jobs.models import load_weights
from jobs.pipeline import Reading, build
from jobs.plan import find_videos
from mma.faces.options import FaceOptions
from mma.video.options import DecodeOptions

with ray_session(sys.argv[1]) as nodes:
    capacity = plan_capacity(nodes, decode_resource="decode")
    weights = load_weights("random:0:tiny")
    reading = Reading(decode=DecodeOptions(faces=FaceOptions(detector="none")))
    # The GPU is one in name alone.
    extractor = {"micro_batch": 16, "precision": "float32", "device": "cpu"}
    videos = find_videos(sys.argv[2], video_id="stem").videos
    dataset = build(videos, reading, weights.descriptors.name, weights.data, extractor, capacity)
    rows = sum(batch.num_rows for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"))
    actors = [each for each in ray._private.state.actors().values() if "MMAActor" in each["ActorClassName"]]
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    where = [hosts[each["Address"]["NodeID"]] for each in actors]
    print(json.dumps({"rows": rows, "where": where, "gpus": capacity.extractor_gpus, "slots": capacity.decoders}))
"""


@pytest.fixture(scope="module")
def mixed(can_make_hosts, tmp_path_factory) -> Iterator[RayHosts]:
    """A head, a host named for decoding, and one with a GPU, as far as Ray knows."""
    with ray_hosts(tmp_path_factory.mktemp("mixed")) as hosts:
        hosts.start(*NAMES, options={"h2": ("--resources", '{"decode": 1}'), "h3": ("--num-gpus", "1")})
        yield hosts


def test_decoding_is_on_the_named_nodes_and_the_network_on_the_gpu(mixed: RayHosts, tmp_path: Path):
    clips.write_kinds(tmp_path / "videos", frames=30)
    head = mixed.net["h1"]
    process = head.start(sys.executable, "-c", _PIPELINE, mixed.address, tmp_path / "videos", log="pipeline")
    wait_until(lambda: process.poll() is not None, "the pipeline ends", 120, told=lambda: head.told("pipeline"))
    assert process.returncode == 0, head.told("pipeline")
    told = json.loads(head.told("pipeline", "out").strip().splitlines()[-1])
    assert told == {"rows": clips.KINDS, "where": ["h3"], "gpus": 1.0, "slots": 1}
    assert {name: len(mixed.opened(name)) for name in NAMES} == {"h1": 0, "h2": clips.KINDS, "h3": 0}


def test_a_resource_that_no_node_offers_is_refused_with_the_mend(mixed: RayHosts, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", mixed.s3)
    clips.write_kinds(tmp_path / "videos", frames=30)
    store = Folder(f"s3://{make_bucket(mixed.s3)}/store")
    job = mixed.job(
        "extract", "--videos", tmp_path / "videos", "--store", store.uri, *clips.OPTIONS, "--extractor-gpus", 0,
        "--decode-resource", "none-such",
    )  # fmt: skip
    assert job.ended() == {}
    assert job.process.returncode == 2
    assert "--decode-resource none-such: no node offers it" in job.told
    assert "ray start --resources" in job.told
