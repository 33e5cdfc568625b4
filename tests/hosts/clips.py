"""Clips for the hosts: many videos of few kinds, so that one machine need only do each kind once."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import odd_videos
import pyarrow as pa
import pyarrow.parquet as pq
from ray_hosts import NAMES, Job, RayHosts
from s3_server import make_bucket

from cluster.storage import Folder
from mma.descriptors import MMA26

KINDS = 4
OPTIONS = ("--mma", "random:0:tiny", "--detector", "none")
SAME = ("status", "chunk_index", "num_chunks", "num_frames", "frame_index", "time_s", "width_px", "decoder")
"""Columns that must be equal, whoever did the work."""


def write_kinds(folder: Path, frames: int = 240) -> None:
    """`0.mp4` to `3.mp4`, of some frames more each."""
    folder.mkdir(parents=True)
    for kind in range(KINDS):
        odd_videos.write_clip(folder / f"{kind}.mp4", frames=frames + 10 * kind)


def upload_copies(kinds: Path, target: Folder, count: int) -> None:
    """`00-0.mp4`, `01-1.mp4`, ...: the number of the copy, and its kind."""
    contents = [(kinds / f"{kind}.mp4").read_bytes() for kind in range(KINDS)]
    for number in range(count):
        target.write(f"{number:02d}-{number % KINDS}.mp4", contents[number % KINDS])


def rows_of(store: Folder) -> pa.Table:
    """All rows of a store, wherever it lies, in order; a chunk that stands twice is an AssertionError."""
    parts = [pq.read_table(io.BytesIO(store.read(file.name))) for file in store.list(suffix=".parquet")]
    if not parts:
        return pa.table({"video_id": pa.array([], pa.string()), "chunk_index": pa.array([], pa.int32())})
    rows = pa.concat_tables(parts).sort_by([("video_id", "ascending"), ("chunk_index", "ascending")])
    keys = list(zip(rows["video_id"].to_pylist(), rows["chunk_index"].to_pylist()))
    assert len(keys) == len(set(keys)), "a chunk stands twice in the store"
    return rows


def assert_copies_equal(rows: pa.Table, expected: Mapping[str, pa.Table], count: int) -> None:
    """`count` copies are there, each with the rows of its kind (by video id) on one machine, descriptors to 1e-5."""
    ids = rows["video_id"].to_pylist()
    assert sorted(set(ids)) == [f"{number:02d}-{number % KINDS}" for number in range(count)]
    for video_id in sorted(set(ids)):
        own = rows.filter(pa.compute.equal(rows["video_id"], video_id))
        kind = expected[video_id.partition("-")[2]]
        for name in SAME:
            assert own[name].to_pylist() == kind[name].to_pylist(), (video_id, name)
        for name in MMA26.names:
            ours, theirs = (np.concatenate(table[name].to_pylist()) for table in (own, kind))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5, err_msg=f"{video_id} {name}")


def by_kind(store: Folder) -> dict[str, pa.Table]:
    """The rows of each kind on one machine."""
    rows = rows_of(store)
    return {str(kind): rows.filter(pa.compute.equal(rows["video_id"], str(kind))) for kind in range(KINDS)}


class Run:
    """A corpus on the S3 server, and `extract` from it into a store beside it."""

    def __init__(self, hosts: RayHosts, kinds: Path, videos: int) -> None:
        self.hosts, self.videos = hosts, videos
        bucket = make_bucket(hosts.s3)
        self.store = Folder(f"s3://{bucket}/store")
        upload_copies(kinds, Folder(f"s3://{bucket}/corpus"), videos)
        self.words = ("extract", "--videos", f"s3://{bucket}/corpus/", "--store", self.store.uri, *OPTIONS)
        self.before = {name: Counter(hosts.opened(name)) for name in NAMES}

    def start(self, *more: object, **environment: str) -> Job:
        return self.hosts.job(*self.words, *more, **environment)

    def opened(self, name: str) -> Counter[str]:
        """How often this host's decoders opened each video, by id, since this run was made."""
        new = Counter(self.hosts.opened(name)) - self.before[name]
        return Counter({file.removesuffix(".mp4")[-4:]: count for file, count in new.items()})

    def stored(self) -> set[str]:
        """Ids of the videos that are committed."""
        return set(rows_of(self.store)["video_id"].to_pylist())

    def half_done(self, *names: str) -> bool:
        """Whether each of these hosts has worked, and something is committed."""
        return all(self.opened(name).total() >= 2 for name in names) and bool(self.store.list(suffix=".parquet"))
