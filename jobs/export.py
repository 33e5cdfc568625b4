"""`mma-mrnnet export`: a feature store as one row a frame, csv or Parquet, for pandas, R and spreadsheets."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cluster.storage import Folder
from cluster.uri import StorageError, display, parse_uri
from jobs.outcome import InputError, Outcome, input_errors
from jobs.progress import RunProgress
from mma.store.reader import frames_of, iterate_files, read_index, read_spec, store_files
from mma.store.schema import spec_differences


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a feature store as one row a frame: video_id, time, face box and points, then the descriptors by name."""

    store: tuple[str, ...]
    """Folder of a feature store; several stores of one spec may be given."""
    out: str
    """File to write, .csv or .parquet; must not exist yet."""
    overwrite: bool = False
    """Replace the file if it exists."""

    def __post_init__(self) -> None:
        if not self.store:
            raise ValueError("--store: give the folder of at least one feature store")
        if not self.out.endswith((".csv", ".parquet")):
            raise ValueError(f"--out {display(self.out)}: give a file that ends in .csv or .parquet")


def run(options: Options) -> Outcome:
    """The job: one data file of the store in memory at a time."""
    started_s = time.monotonic()
    with input_errors(ValueError, StorageError, option="--store"):
        stores = [Folder(uri) for uri in options.store]
        specs = [read_spec(store) for store in stores]
        for store, spec in zip(stores[1:], specs[1:]):
            if differences := spec_differences(specs[0], spec):
                raise InputError(f"--store {store.display} has another spec than the first: {'; '.join(differences)}")
        count = sum(len(store_files(store)) for store in stores)
        if not count:
            raise InputError(f"--store {stores[0].display} holds no rows yet; run extract first")
        videos = _ids(stores)
        if any(str(parse_uri(options.out)).rpartition("/")[0] == store.uri for store in stores):
            raise InputError(
                f"--out {display(options.out)} lies inside the store, whose readers would take it for a part"
            )
    frames = 0
    failing = input_errors(ValueError, OSError, StorageError, option="--out")
    with (
        RunProgress(count, unit="files") as progress,
        failing,
        _whole_file(options) as path,
        _table_writer(path) as write,
    ):
        for store in stores:
            for rows in iterate_files(store):
                table = frames_of(rows)
                write(table)
                frames += table.num_rows
                progress.advance(frames=table.num_rows)
                progress.tick()
    return Outcome(
        summary={
            "job": "export",
            "seconds": round(time.monotonic() - started_s, 3),
            "out": display(options.out),
            "videos": videos,
            "frames": frames,
        }
    )


def _ids(stores: list[Folder]) -> int:
    """How many videos the stores hold; one that stands in two of them is an error."""
    place: dict[str, Folder] = {}
    for store in stores:
        for video_id in pc.unique(read_index(store)["video_id"]).to_pylist():
            if video_id in place:
                raise InputError(
                    f"--store: the video {video_id!r} stands in {place[video_id].display} and in {store.display}"
                )
            place[video_id] = store
    return len(place)


@contextmanager
def _whole_file(options: Options) -> Iterator[Path]:
    """A local path to write to; put at `--out` when the block ends well, and never otherwise."""
    with input_errors(ValueError, StorageError, option="--out"):
        above, _, name = str(parse_uri(options.out)).rpartition("/")
        folder = Folder(above or "/")
        if folder.exists(name) and not options.overwrite:
            raise InputError(f"--out {display(options.out)} exists; name another file, or give --overwrite")
        folder.check_writable()
    with tempfile.TemporaryDirectory(prefix="mma-mrnnet-export-") as local:
        path = Path(local) / name
        yield path
        folder.put_file(name, path)  # reached only where the block ended well


@contextmanager
def _table_writer(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    writer: Any = None

    def write(table: pa.Table) -> None:
        nonlocal writer
        if writer is None:
            csv = path.suffix == ".csv"
            writer = (pyarrow.csv.CSVWriter if csv else pq.ParquetWriter)(os.fspath(path), table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
