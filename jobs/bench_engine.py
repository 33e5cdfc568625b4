"""Rows of `bench extract` about what lies around the decoding: reruns, plans, the engine's own cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from cluster.storage import Folder
from jobs.bench_inputs import Bench, write_store
from jobs.bench_ours import IDLE_FRAMES
from jobs.bench_process import run_job, run_side
from jobs.bench_table import CountsDifferError, Figure, Row, steady_rate
from jobs.plan import find_videos
from mma.store.reader import read_index

FILE_VIDEOS = 2_000
"""Rows a file of the store of a rerun: about what a run of hours commits at a time."""


def demand(found: object, expected: object, what: str) -> None:
    """Raises CountsDifferError where a count is not what it should be."""
    if found != expected:
        raise CountsDifferError(f"counts differ: {found} {what}, not {expected}")


def rerun(bench: Bench) -> Sequence[Figure]:
    """A folder of videos, all of which the store has."""
    count = bench.sizes.rerun_rows
    folder, store = bench.folder / "rerun-videos", bench.folder / "rerun-store"
    for each in (folder, store):
        each.mkdir()
    for number in range(count):
        (folder / f"{number:07d}.mp4").touch()
    videos = find_videos(str(folder)).videos
    write_store(Folder(str(store)), videos, np.full(count, IDLE_FRAMES), file_videos=FILE_VIDEOS, network=bench.network)
    words = ["extract", "--videos", folder, "--store", store, "--mma", bench.network, "--detector", "none"]
    runs = [run_job(bench.folder / "sides", *words) for _ in range(bench.turns)]
    for ran in runs:
        demand((ran.found["skipped"], ran.found["units"]), (count, 0), "videos skipped and rows written")
    demand(read_index(Folder(str(store))).num_rows, count, "rows in the store")
    return _cost([ran.seconds for ran in runs], [ran.process_bytes for ran in runs], count, seconds=15, gigabytes=1)


def plan(bench: Bench) -> Sequence[Figure]:
    """A csv table of URIs to what there is to do."""
    count = bench.sizes.plan_rows
    table = bench.folder / "plan.csv"
    numbers = np.char.zfill(np.arange(count).astype(str), 8)
    uris = np.char.add(np.char.add("s3://corpus/clips/", numbers), ".mp4")
    pyarrow.csv.write_csv(pa.table({"video_id": numbers, "uri": uris}), table)
    store = bench.folder / "plan-store"
    words = ["extract", "--videos", table, "--store", store, "--mma", bench.network, "--dry-run"]
    runs = [run_job(bench.folder / "sides", *words) for _ in range(bench.turns)]
    for ran in runs:
        demand((ran.found["videos"], ran.found["to_do"]), (count, count), "videos in the plan and to do")
    return _cost([ran.seconds for ran in runs], [ran.process_bytes for ran in runs], count, seconds=60, gigabytes=2)


def _cost(
    seconds_of: list[float], bytes_of: list[int], count: int, *, seconds: float, gigabytes: float
) -> Sequence[Figure]:
    return [
        Figure(
            name=f"{count:,} rows in", value=statistics.median(seconds_of), unit="s", to_reach=seconds, at_most=True
        ),
        Figure(name="memory", value=max(bytes_of) / 1e9, unit="GB", to_reach=gigabytes, at_most=True),
    ]


def engine(bench: Bench) -> Sequence[Figure]:
    """Stages that do nothing, over a plan from a table, into a store."""
    count = bench.sizes.engine_videos
    ids = [f"{number:07d}" for number in range(count)]
    table = bench.folder / "engine.parquet"
    pq.write_table(pa.table({"video_id": ids, "uri": [f"/nowhere/{each}.mp4" for each in ids]}), table)
    costs, starts = [], []
    for turn in range(bench.turns):
        store = bench.folder / f"engine-store-{turn}"
        words = ["--videos", str(table), "--store", str(store), "--mma", bench.network, "--num-cpus", str(bench.cores)]
        ran = run_side("jobs.bench_ours:extraction", bench.folder / "sides", words=words, idle=True)
        summary = ran.found["summary"]
        demand(ran.found["exit_code"], 0, "as exit code")
        demand((summary["ok"], summary["frames"]), (count, count * IDLE_FRAMES), "videos and frames committed")
        demand(summary["repeated_rows"], 0, "rows delivered twice")
        demand(sorted(read_index(Folder(str(store)))["video_id"].to_pylist()), ids, "ids in the store")
        rate = steady_rate([(time_s, videos) for time_s, videos, _ in ran.found["came"]], share=0.1)
        costs.append(1000 / rate)
        starts.append(ran.seconds - count / rate)
    cost = Figure(name="a unit", value=statistics.median(costs), unit="ms", to_reach=2.0, at_most=True)
    return [cost, Figure(name="start and end", value=statistics.median(starts), unit="s")]


ENGINE_ROWS = (
    Row(
        id="rerun",
        measured="a rerun with nothing to do: a folder and a store of as many videos",
        beside="",
        measure=rerun,
    ),
    Row(id="plan", measured="a plan from a csv table of URIs", beside="", measure=plan),
    Row(
        id="engine",
        measured="the engine's own cost a video: stages that do nothing, blocks as `extract` cuts them, the writer",
        beside="",
        measure=engine,
    ),
)
