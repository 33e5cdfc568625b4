"""The crop store: Parquet files of cut faces in one folder, which are the cache of what was cut before.

`part-<run>-<seq>.parquet` (zstd) beside `_spec.json`. One process writes, under the store's lock; each file appears
whole or not at all. Any Parquet reader can look into it.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mma.crops import rows as r
from mma.crops.keys import KEY_COLUMNS, Keys
from mma.store.reader import ReadableFolder, store_files
from mma.store.schema import SPEC_FILE, SPEC_METADATA_KEY, spec_differences
from mma.store.writer import TARGET_BYTES, commit_interval_s

READERS = 4
"""Files that are read side by side."""

GROUP_FACES = 256
"""Rows of a row group, 9.6 MB of pixels: what a reader holds at a time."""

GROUP_ROWS = 500_000
"""Rows whose sources are looked up at once: a look-up builds a table of all wanted sources anew."""

INDEX_COLUMNS = [*KEY_COLUMNS, "source_version", "status", "how"]


def check_spec(folder: ReadableFolder, spec: Mapping[str, Any]) -> None:
    """See that the crops in a folder, if it has some, were made under this spec.

    Raises:
        ValueError: they were not, and each field that differs is named; or the folder holds something else.
    """
    if not store_files(folder):
        return
    if not folder.exists(SPEC_FILE):
        raise ValueError(f"{folder.display} holds Parquet files and no {SPEC_FILE}, so no crops: name another folder")
    differences = spec_differences(spec, json.loads(folder.read(SPEC_FILE)))
    if differences:
        raise ValueError(
            f"the crops in {folder.display} were made under another spec (this run / the store): "
            f"{'; '.join(differences)}. Give these options as the store has them, or name another folder"
        )


def settle_spec(folder: ReadableFolder, spec: Mapping[str, Any]) -> None:
    """The same, and write the spec; a store without rows takes any. Needs the store's lock."""
    check_spec(folder, spec)
    folder.write(SPEC_FILE, json.dumps(spec, indent=1, sort_keys=True).encode())


class CropWriter:
    """Collects rows and commits them as files of about `TARGET_BYTES`."""

    def __init__(
        self,
        folder: ReadableFolder,
        spec: Mapping[str, Any],
        run_id: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.run_id = folder, run_id
        self.rows = 0
        """Committed."""
        self._schema = r.CROP_SCHEMA.with_metadata({SPEC_METADATA_KEY: json.dumps(spec, sort_keys=True).encode()})
        self._clock = clock
        self._started_s = self._committed_s = clock()
        self._waiting: list[pa.Table] = []
        self._waiting_bytes = 0
        self._sequence = 0

    def add(self, rows: pa.Table) -> None:
        """Take rows with the columns of `CROP_SCHEMA`."""
        self._waiting.append(rows.select(self._schema.names).cast(self._schema))
        self._waiting_bytes += self._waiting[-1].nbytes

    @property
    def due(self) -> bool:
        """Whether what waits is large enough, or has waited long enough, to be committed."""
        now = self._clock()
        late = now - self._committed_s >= commit_interval_s(now - self._started_s)
        return self._waiting_bytes > 0 and (late or self._waiting_bytes >= TARGET_BYTES)

    def commit(self) -> list[str]:
        """Write what waits; return the new files' names. Interrupted anywhere, it may be called again."""
        self._committed_s = self._clock()
        if not self._waiting:
            return []
        table = pa.concat_tables(self._waiting)
        name = f"part-{self.run_id}-{self._sequence:05d}.parquet"
        self.folder.write(name, parquet_bytes(table))
        self._waiting, self._waiting_bytes, self._sequence = [], 0, self._sequence + 1
        self.rows += table.num_rows
        return [name]


def parquet_bytes(rows: pa.Table) -> bytes:
    """Crop rows as one Parquet file in memory; pixels without dictionary or statistics."""
    buffer = io.BytesIO()
    others = [name for name in rows.column_names if name != "face"]
    pq.write_table(
        rows,
        buffer,
        compression="zstd",
        row_group_size=GROUP_FACES,
        use_dictionary=others,
        write_statistics=others,
    )
    return buffer.getvalue()


@contextmanager
def open_file(folder: ReadableFolder, name: str, *, pre_buffer: bool = False) -> Iterator[pq.ParquetFile]:
    """A file of the store. Raises ValueError where it is no whole Parquet file.

    pre_buffer: fetch the wanted columns of all row groups in few requests, and hold them; for columns without pixels.
    """
    filesystem, root = folder.filesystem()
    try:
        with filesystem.open_input_file(f"{root}/{name}") as file:
            yield pq.ParquetFile(file, pre_buffer=pre_buffer)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{folder.display}/{name} cannot be read ({error}); this project never leaves a half-written file: delete "
            "it, and its crops are cut again"
        ) from error


@dataclass(frozen=True, kw_only=True, eq=False)
class FileIndex:
    """What one file of the store holds of some wanted faces; M rows."""

    name: str
    face: NDArray[np.int64]
    """(M,) the number in `Keys` of the face in each row, -1 for one that is not wanted."""
    source: NDArray[np.int64]
    """(M,) the position in `Keys.sources` of its source, -1 for another."""
    outcome: NDArray[np.int8]
    """(M,) index in `OUTCOMES`."""
    source_version: pa.ChunkedArray
    """(M,) string."""


def index_files(folder: ReadableFolder, keys: Keys, names: Sequence[str] | None = None) -> Iterator[FileIndex]:
    """Look through the store (or some of its files) for faces, reading no pixels.

    Raises ValueError for a damaged file, OSError where storage fails.
    """

    def read(name: str) -> pa.Table:
        with open_file(folder, name, pre_buffer=True) as file:
            return file.read(columns=INDEX_COLUMNS).select(INDEX_COLUMNS).replace_schema_metadata(None)

    def numbered(group: list[tuple[str, pa.Table]]) -> Iterator[FileIndex]:
        table = pa.concat_tables(each for _, each in group)
        codes = keys.source_codes(table["source"])
        faces, outcomes = keys.positions(table, codes), outcomes_of(table)
        start = 0
        for name, each in group:
            part = slice(start, start + each.num_rows)
            start = part.stop
            yield FileIndex(
                name=name,
                face=faces[part],
                source=codes[part],
                outcome=outcomes[part],
                source_version=each["source_version"],
            )

    group: list[tuple[str, pa.Table]] = []
    names = store_files(folder) if names is None else names
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(names), 4 * READERS):  # a file more than asked for is never held
            some = names[first : first + 4 * READERS]
            group += zip(some, pool.map(read, some))
            if sum(table.num_rows for _, table in group) >= GROUP_ROWS:
                yield from numbered(group)
                group = []
    if group:
        yield from numbered(group)


def outcomes_of(table: pa.Table) -> NDArray[np.int8]:
    """(M,) index in `OUTCOMES` of each row, by its `status` and `how`."""
    shown = pc.fill_null(pc.index_in(table["how"], value_set=pa.array(r.OUTCOMES)), -1).to_numpy()
    failed = pc.equal(table["status"], r.FAILED).to_numpy()
    without = np.where(failed, r.OUTCOMES.index(r.FAILED), r.OUTCOMES.index(r.NO_FACE))
    return np.where(shown >= 0, shown, without).astype(np.int8)


def outcomes(folder: ReadableFolder, rows: pa.Table) -> NDArray[np.int8]:
    """What became of the faces that (N,) rows name: (N,) the index in `OUTCOMES`, `NO_ROW` where the store lacks it.

    rows: any table with `KEY_COLUMNS`, such as a label table. No pixels are read. Raises as `index_files` does.
    """
    keys = Keys(rows)
    found = np.full(len(keys), r.NO_ROW, np.int8)
    for file in index_files(folder, keys):
        wanted = file.face >= 0
        found[file.face[wanted]] = file.outcome[wanted]
    return found[keys.inverse]


def found(folder: ReadableFolder, rows: pa.Table) -> NDArray[np.bool_]:
    """Which of (N,) rows have a crop in the store: (N,) bool. Of those `flat_faces` can be asked."""
    found_outcomes = outcomes(folder, rows)
    return (found_outcomes >= 0) & (found_outcomes < r.WITH_FACE)


def drop_rows(folder: ReadableFolder, unwanted: Iterable[tuple[str, NDArray[np.bool_]]]) -> int:
    """Remove rows: for each file a mask (M,) of those that go. A file is replaced whole or not at all.

    Returns how many rows are gone.
    """
    gone = 0
    for name, mask in unwanted:
        with open_file(folder, name) as file:
            rows = file.read()
        kept = rows.filter(pa.array(~mask))
        if kept.num_rows:
            folder.write(name, parquet_bytes(kept))
        else:
            folder.delete([name])
        gone += rows.num_rows - kept.num_rows
    return gone
