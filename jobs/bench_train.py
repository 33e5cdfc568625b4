"""Rows of `bench train`: the masked RNN in training beside bare PyTorch, workers beside one, prediction, crops."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Folder
from jobs.bench_baton import Runner, batches_of
from jobs.bench_faces import crops
from jobs.bench_gpu import GPU_TRAIN_ROWS
from jobs.bench_inputs import STEPS, Bench, read_sequences, sequence_files, write_model, write_store
from jobs.bench_process import Side, run_job
from jobs.bench_table import CountsDifferError, Figure, Row, Turn, demand_equal, ratio_figure
from jobs.plan import PLAN_SCHEMA

LOOP, PADDED, PADDED_SHORT, WORKERS = 1.1, 1.9, 2.2, 1.5
"""Ratios that the small version reached on a quiet machine of two cores."""
END_S = 60.0
"""How long a side may take to end when it is told to."""
LOSS_DIFFERENCE = 1e-3
"""Largest difference of the first losses of two sides that start from equal weights."""


def ours(bench: Bench, workers: int) -> Runner:
    """The product's loop in workers of Ray Train, which share the cores."""
    out = bench.folder / f"train-workers-{workers}-out"
    request = {"workers": workers, "cpus": max(bench.cores // workers, 1), "out": str(out)}
    return _begun(bench, f"workers-{workers}", "jobs.bench_ours:training", **request)


def bare(bench: Bench, name: str, *, padded: bool = False) -> Runner:
    """A plain PyTorch loop."""
    return _begun(bench, name, "jobs.bench_bare:bare_loop", padded=padded)


def _begun(bench: Bench, name: str, side: str, **request: object) -> Runner:
    folder = bench.folder / f"train-{name}"
    given = {"folders": sequence_files(bench), "baton": str(folder), **request}
    return Runner(Side(side, bench.folder / "sides", **given), folder)


@contextmanager
def ready(*runners: Runner) -> Iterator[None]:
    """Wait until all stand ready; end them with the block."""
    try:
        for runner in runners:
            runner.ready()
        yield
    finally:
        for runner in runners:
            runner.tell_end()
        for runner in runners:
            runner.side.end(END_S)


def in_turns(bench: Bench, runners: Mapping[str, Runner], datasets: Sequence[str]) -> dict[str, dict[str, list[Turn]]]:
    """All train on the same batches on all cores, one at a time, each round begun by another one.

    Returns turns by data set and runner.

    The first round warms up, and shows that all start from the same loss. Raises CountsDifferError where they do not,
    or where one has done other work.
    """
    data = {name: read_sequences(sequence_files(bench)[name]) for name in datasets}
    found: dict[str, dict[str, list[Turn]]] = {name: {runner: [] for runner in runners} for name in datasets}
    first, *others = runners
    turn = 0
    for round_number in range(bench.short_turns + 1):
        for name, sequences in data.items():
            batches = batches_of(len(sequences), bench.sizes.train_batches if round_number else 2, turn)
            order, fresh = _rotated(runners, round_number), not round_number
            told = {each: runner.go(name, batches, threads=bench.cores, fresh=fresh) for each, runner in order.items()}
            turns = {each: _turn(sequences, batches, told[each]) for each in runners}
            for each in others:
                demand_equal(turns[first], turns[each])
                if not round_number:
                    _demand_same_loss(told[first]["loss"], told[each]["loss"])
            for each in runners if round_number else ():
                found[name][each].append(turns[each])
            turn += 1
    return found


def _rotated(runners: Mapping[str, Runner], begin: int) -> dict[str, Runner]:
    names = list(runners)
    begin %= len(names)
    return {name: runners[name] for name in names[begin:] + names[:begin]}


def _turn(data: object, batches: list[list[int]], told: Mapping[str, float]) -> Turn:
    lengths = data.sequences.lengths  # type: ignore[attr-defined]
    done = batches[: int(told["updates"])]
    videos = sum(map(len, done))
    counts = {"updates": len(done), "sequences": videos, "steps": int(sum(lengths[each].sum() for each in done))}
    return Turn(counts=counts, rate=videos / told["seconds"])


def _demand_same_loss(one: float, other: float) -> None:
    if not abs(one - other) < LOSS_DIFFERENCE:
        raise CountsDifferError(f"the first losses from equal weights differ: {one:.5f} beside {other:.5f}")


# --- rows ---


@functools.cache
def _loops(bench: Bench) -> dict[str, dict[str, list[Turn]]]:
    """One worker of all cores, the bare loop and the padded one; lengths uniform, and mostly short."""
    runners = {"ours": ours(bench, 1), "bare": bare(bench, "bare"), "padded": bare(bench, "padded", padded=True)}
    with ready(*runners.values()):
        return in_turns(bench, runners, ["uniform", "short"])


def loop(bench: Bench) -> Sequence[Figure]:
    """One worker beside the bare loop."""
    found = _loops(bench)["uniform"]
    goals = {"to_reach": 0.95, "reached": LOOP}
    return [ratio_figure(found["ours"], found["bare"], name="ratio", of="sequences/s", **goals)]


def padded(bench: Bench) -> Sequence[Figure]:
    """One worker beside the padded loop, lengths uniform, and mostly short."""
    figures = []
    for data, told, reached in (("uniform", "uniform", PADDED), ("short", "mostly short", PADDED_SHORT)):
        found = _loops(bench)[data]
        goals = {"to_reach": 2.0, "reached": reached}
        name = f"ratio, lengths {told}"
        figures.append(ratio_figure(found["ours"], found["padded"], name=name, of="sequences/s", **goals))
    return figures


def workers(bench: Bench) -> Sequence[Figure]:
    """Two workers of one core each beside one of them while the other waits: on batches that they halve, and on batches
    twice as large.

    At full size, beside both, what two bare loops of one core give that do the like without a word to each other.
    """
    both = ours(bench, 2)
    halved, wide = [], []
    with ready(both):
        for turn in range(bench.short_turns + 1):
            batches = _batches(bench, turn)
            pairs = [first + second for first, second in zip(batches[::2], batches[1::2])]
            took = {}
            for alone in (True, False) if turn % 2 else (False, True):
                took["halved", alone], loss = _seconds([both], [batches], fresh=not turn, alone=alone)
                took["wide", alone], _ = _seconds([both], [batches[: 2 * len(pairs)] if alone else pairs], alone=alone)
                took["loss", alone] = loss
            if not turn:
                _demand_same_loss(took["loss", True], took["loss", False])
            halved.append(took["halved", True] / took["halved", False])
            wide.append(took["wide", True] / took["wide", False])
    value, goals = statistics.median(wide[1:]), {"to_reach": 1.7, "reached": WORKERS}
    figures = [
        Figure(name="ratio, a worker's batches as large", value=value, **goals),  # type: ignore[arg-type]
        Figure(name="ratio, batches halved", value=statistics.median(halved[1:])),
    ]
    return figures if bench.small else [*figures, *_two_bare_loops(bench)]


def _two_bare_loops(bench: Bench) -> list[Figure]:
    """What two loops of one core each do together, over what one does alone: the machine's own bound."""
    left, right = bare(bench, "left"), bare(bench, "right")
    halved, whole = [], []
    with ready(left, right):
        for turn in range(bench.short_turns + 1):
            batches = _batches(bench, turn)
            halves = [[batch[half::2] for batch in batches] for half in (0, 1)]
            alone = _seconds([left], [batches])[0]
            halved.append(alone / _seconds([left, right], halves)[0])
            whole.append(2 * alone / _seconds([left, right], [batches, batches])[0])
    return [
        Figure(name="two bare loops, their batches as large", value=statistics.median(whole[1:])),
        Figure(name="two bare loops, batches halved", value=statistics.median(halved[1:])),
    ]


def _batches(bench: Bench, turn: int) -> list[list[int]]:
    """Of a turn; the first one warms up."""
    return batches_of(bench.sizes.train_videos, bench.sizes.train_batches if turn else 2, turn)


def _seconds(runners: Sequence[Runner], work: Sequence[list[list[int]]], **settings: bool) -> tuple[float, float]:
    """On one core each, all at once, until the last of them is done with its own work; and the first one's first loss.

    Raises CountsDifferError where one did not do all of it.
    """
    for runner, batches in zip(runners, work):
        runner.start("uniform", batches, threads=1, **settings)
    told = [runner.done() for runner in runners]
    for each, batches in zip(told, work):
        if each["updates"] != len(batches):
            raise CountsDifferError(f"counts differ: {each['updates']} updates of {len(batches)} batches")
    return max(each["seconds"] for each in told), told[0]["loss"]


def predict(bench: Bench) -> Sequence[Figure]:
    """The whole command over a store."""
    count = bench.sizes.predict_videos
    low, high = STEPS
    steps = np.random.default_rng(2).integers(low, high + 40, count)  # 320 in the mean
    ids = [f"{number:05d}" for number in range(count)]
    columns = [ids, [f"/corpus/{each}.mp4" for each in ids], [1] * count, ["1"] * count]
    store, model = bench.folder / "predict-store", bench.folder / "predict.safetensors"
    store.mkdir()
    videos = pa.table([pa.array(each, field.type) for each, field in zip(columns, PLAN_SCHEMA)], schema=PLAN_SCHEMA)
    write_store(Folder(str(store)), videos, steps, file_videos=1_000)
    write_model(model, int(steps.max()))
    seconds, memory = [], []
    for turn in range(bench.turns):
        scratch, out = bench.folder / f"predict-scratch-{turn}", bench.folder / f"predict-{turn}"
        words = ["predict", "--model", model, "--store", store, "--out", out, "--scratch", scratch]
        ran = run_job(bench.folder / "sides", *words)
        table = pq.read_table(out / "predictions.parquet", columns=["video_id", "status", "steps"])
        expected = (ids, ["ok"] * count, steps.tolist())
        if tuple(table[name].to_pylist() for name in table.column_names) != expected:
            raise CountsDifferError(f"counts differ: {table.num_rows} predictions of {count} videos, or not all ok")
        seconds.append(ran.seconds)
        memory.append(ran.process_bytes / 1e9)
    return [
        Figure(name=f"{count:,} videos in", value=statistics.median(seconds), unit="s", to_reach=60.0, at_most=True),
        Figure(name="memory", value=max(memory), unit="GB"),
    ]


ROWS = (
    Row(
        id="loop",
        measured="masked RNN in training, 310 steps in the mean, 26 descriptors, one worker of Ray Train",
        beside="the same network in a bare PyTorch loop",
        measure=loop,
    ),
    Row(
        id="padded",
        measured="the same, lengths from 2 to 60 s",
        beside="a padded, unsorted loop",
        measure=padded,
    ),
    Row(id="workers", measured="two workers of one core", beside="one worker of one core", measure=workers),
    Row(id="predict", measured="prediction from a store, 320 steps in the mean", beside="", measure=predict),
    Row(
        id="crops",
        measured="crops to a training process of stage 1: the flat file, in process",
        beside="the same by torch's DataLoader; Parquet by Ray Data",
        measure=crops,
    ),
    *GPU_TRAIN_ROWS,
)
