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
import pyarrow.csv
import pyarrow.parquet as pq

from cluster.storage import Folder
from cluster.uri import StorageError, display, parse_uri
from jobs.outcome import InputError, Outcome, input_errors
from jobs.progress import RunProgress
from mma.store.reader import frames_of, iterate_files, read_spec, store_files
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
    frames = 0
    videos: set[str] = set()
    with RunProgress(count, unit="files") as progress, _whole_file(options) as path, _table_writer(path) as write:
        for store in stores:
            for rows in iterate_files(store):
                table = frames_of(rows)
                write(table)
                frames += table.num_rows
                videos.update(rows["video_id"].to_pylist())
                progress.advance(frames=table.num_rows)
                progress.tick()
    return Outcome(
        summary={
            "job": "export",
            "seconds": round(time.monotonic() - started_s, 3),
            "out": display(options.out),
            "videos": len(videos),
            "frames": frames,
        }
    )


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
        folder.put_file(name, path)


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
        if writer is None:
            path.touch()
        else:
            writer.close()
