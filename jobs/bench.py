"""`mma-mrnnet bench`: how fast this project is beside the limit, and beside what one would otherwise use.

Rows are measured one by one, each with its counts first: a run that lost or doubled something has no speed. `--small`
is `make bench`: minutes, and failed where a ratio has fallen a third under what was reached.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jobs.outcome import DONE, FAILED, InputError, Outcome, input_errors
from jobs.progress import say

if TYPE_CHECKING:
    from jobs.bench_inputs import Bench
    from jobs.bench_table import Result, Row

PACKAGES = ("ray", "torch", "numpy", "pyarrow", "decord", "av", "opencv-python-headless", "onnxruntime")
JSON_FILE, TABLE_FILE = "bench.json", "bench.md"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure extraction (bench extract), training and prediction (bench train), or both (bench).

    Everything it runs on is made from nothing, in the temporary folder (TMPDIR), some 4 GB of it; needs no network.
    """

    what: tyro.conf.Positional[Literal["all", "extract", "train"]] = "all"
    """Which rows."""
    rows: tuple[str, ...] = ()
    """Ids of the rows to measure; default: all of them."""
    small: bool = False
    """Small sizes, minutes in all; a figure a third worse than what was reached fails the run."""
    turns: int | None = None
    """How often the sides take turns; default: 3, with --small 1; more for rows whose turns are short."""
    cores: int = 2
    """CPU cores that everything is held to, both sides alike."""
    detector_weights: str | None = None
    """Path of YuNet's ONNX file, for the row decode-yunet; default: MMA_YUNET."""
    out: str | None = None
    """Folder for bench.json and bench.md; default: the table goes to stderr, the JSON to stdout alone."""

    def __post_init__(self) -> None:
        for name in ("turns", "cores"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value}: give 1 or more")


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    from cluster.session import stop_signals
    from jobs.bench_inputs import FULL, SMALL, Bench, yunet_file
    from jobs.bench_table import gated, line, markdown

    started_s = time.monotonic()
    rows = chosen_rows(options)
    out = None
    if options.out is not None:
        with input_errors(OSError, option="--out"):
            out = Path(options.out)
            out.mkdir(parents=True, exist_ok=True)
    sizes = SMALL if options.small else FULL
    results: list[Result] = []
    summary: dict[str, Any] = {}
    with (
        stop_signals(),  # so that a signal ends the side that runs, too
        tempfile.TemporaryDirectory(prefix="mma-mrnnet-bench-", ignore_cleanup_errors=True) as local,
        _held_to(options.cores) as cores,
    ):
        bench = Bench(
            folder=Path(local),
            sizes=sizes,
            cores=cores,
            turns=options.turns or sizes.turns,
            short_turns=options.turns or sizes.short_turns,
            small=options.small,
            detector_weights=yunet_file(options.detector_weights),
        )
        about = {"command": told_command(options), "machine": told_machine(cores), "versions": told_versions()}
        for row in rows:
            result = measured(row, bench)
            results.append(gated(result) if options.small else result)
            say(line(results[-1]))
            summary = {
                "job": "bench",
                "seconds": round(time.monotonic() - started_s, 1),
                **about,
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "turns": {"long": bench.turns, "short": bench.short_turns},
                "small": options.small,
                "rows": [result.to_dict() for result in results],
            }
            if out is not None:  # after each row: what was measured outlives what ends the run
                (out / JSON_FILE).write_text(json.dumps(summary, indent=1))
                (out / TABLE_FILE).write_text(markdown(results, about))
    say(markdown(results, about))
    failed = [result.row.id for result in results if result.state == "failed"]
    if failed:
        say(f"bench failed: {', '.join(failed)}")
    return Outcome(summary=summary, exit_code=FAILED if failed else DONE)


def chosen_rows(options: Options) -> list[Row]:
    """The rows that `what` and `--rows` name, in the table's order. Raises InputError for an unknown id."""
    from jobs import bench_extract, bench_train

    rows = {"extract": bench_extract.ROWS, "train": bench_train.ROWS}
    here = [row for kind, each in rows.items() if options.what in ("all", kind) for row in each]
    if unknown := sorted(set(options.rows) - {row.id for row in here}):
        raise InputError(
            f"--rows {' '.join(unknown)}: there is no such row; they are {', '.join(row.id for row in here)}"
        )
    return [row for row in here if not options.rows or row.id in options.rows]


def measured(row: Row, bench: Bench) -> Result:
    """The row's figures, or why it has none; what ends one row leaves the others."""
    from jobs.bench_process import SideError
    from jobs.bench_table import CountsDifferError, Result, SkippedError

    say(f"{row.id}: {row.measured}{', beside ' if row.beside else ''}{row.beside} ...")
    started_s = time.monotonic()
    try:
        figures = row.measure(bench)
        return Result(row=row, state="done", figures=figures, seconds=time.monotonic() - started_s)
    except SkippedError as error:
        return Result(row=row, state="skipped", why=str(error))
    except (CountsDifferError, SideError) as error:
        if isinstance(error, SideError):
            say(error.log)
        return Result(row=row, state="failed", why=str(error), seconds=time.monotonic() - started_s)


@contextmanager
def _held_to(cores: int) -> Iterator[int]:
    """Hold this process and all that it starts to so many cores, and Ray's workers to the same priority as others."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: a side with Ray would yield to one without
    if not hasattr(os, "sched_setaffinity"):
        yield min(cores, os.cpu_count() or 1)
        return
    before = os.sched_getaffinity(0)
    kept = sorted(before)[:cores]
    os.sched_setaffinity(0, kept)
    try:
        yield len(kept)
    finally:
        os.sched_setaffinity(0, before)


# --- where and by what ---


def told_command(options: Options) -> str:
    """The command as a person would type it."""
    words: list[str] = ["mma-mrnnet", "bench", *([options.what] if options.what != "all" else [])]
    for name, default in {"rows": (), "small": False, "turns": None, "cores": 2}.items():
        value = getattr(options, name)
        if value != default:
            words += [f"--{name}", *([] if value is True else map(str, value if name == "rows" else [value]))]
    return " ".join(words)


def told_machine(cores: int) -> str:
    """Processor, cores used of those there are, memory, GPU."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{cores} of {os.cpu_count()} cores of {model}, {memory:.0f} GiB, {_gpu()}"


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def told_versions() -> str:
    """Python's, and those of the packages that do the work."""
    told = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(told)
