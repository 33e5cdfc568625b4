"""The one writer of a feature store: whole videos in, Parquet files out, whole or not at all.

Only the driver of a run writes. Files are serialised in memory and handed to the folder, whose `write` is
atomic; so a reader, at any instant and after any crash, sees whole files with whole videos alone.
"""

from __future__ import annotations

import io
import json
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mma.descriptors import DescriptorSet
from mma.store import schema as s
from mma.store.rows import video_status

TARGET_BYTES = 64 * 2**20
"""A file is written when the rows waiting for it reach this size in memory."""


class FolderLike(Protocol):
    """What the store needs of the place where it lies; `cluster.storage.Folder` is one."""

    @property
    def display(self) -> str:
        """Where it lies, as it may be shown."""

    def read(self, name: str) -> bytes:
        """The whole content of a file."""

    def write(self, name: str, data: bytes) -> Any:
        """Write or replace a file, whole or not at all."""

    def exists(self, name: str) -> bool:
        """Whether the file is there."""

    def filesystem(self) -> Any:
        """The pyarrow file system, and this folder's path in it."""


def commit_interval_s(run_s: float) -> float:
    """How long complete videos may wait for their file: min(60 s, max(2 s, 5 % of the run so far))."""
    return min(60.0, max(2.0, 0.05 * run_s))


def settle_spec(folder: FolderLike, spec: Mapping[str, Any], *, has_data: bool = True) -> None:
    """Write the spec of a new store, or check that an old one has the same.

    Args:
        folder: the store.
        spec: what this run would write under.
        has_data: whether the store holds rows; one without takes the new spec.

    Raises:
        ValueError: the store was made under another spec; the message names each field that differs.
    """
    if folder.exists(s.SPEC_FILE) and has_data:
        differences = s.spec_differences(spec, json.loads(folder.read(s.SPEC_FILE)))
        if differences:
            raise ValueError(
                f"--store {folder.display} was made under another spec (this run / the store): "
                f"{'; '.join(differences)}. Give these options as the store has them, or name another --store."
            )
    else:
        folder.write(s.SPEC_FILE, json.dumps(spec, indent=1, sort_keys=True).encode())


class StoreWriter:
    """Collects whole videos and commits them as `part-<run_id>-<seq>.parquet`.

    A video with a chunk that failed goes to `failed-<run_id>-<seq>.parquet` with all its rows, so that trying
    the failed ones again means to delete those files and nothing else.
    """

    def __init__(
        self,
        folder: FolderLike,
        descriptors: DescriptorSet,
        spec: Mapping[str, Any],
        run_id: str,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder = folder
        self.run_id = run_id
        self.videos = dict.fromkeys(s.STATUSES, 0)
        """Committed videos by status."""
        self.rows = 0
        self.frames = 0
        self.files: list[str] = []
        self._schema = s.store_schema(descriptors, spec)
        self._clock = clock
        self._started_s = self._committed_s = clock()
        # A frame's list values; a row's single ones are small beside them, and 1 KB covers them.
        self._frame_bytes = sum(map(_bits, s.frame_columns(descriptors).values())) / 8
        self._waiting: dict[str, list[pa.Table]] = {"part": [], "failed": []}
        self._waiting_bytes = 0.0
        self._sequence = 0

    def add(self, video: pa.Table) -> None:
        """Take the settled rows of one video."""
        kind = "failed" if s.FAILED in video["status"].to_pylist() else "part"
        self._waiting[kind].append(video)
        self._waiting_bytes += 1024 * video.num_rows + self._frame_bytes * _frame_count(video)

    @property
    def due(self) -> bool:
        """Whether what waits is large enough, or has waited long enough, to be committed."""
        now = self._clock()
        late = now - self._committed_s >= commit_interval_s(now - self._started_s)
        return self._waiting_bytes > 0 and (late or self._waiting_bytes >= TARGET_BYTES)

    def commit(self) -> list[str]:
        """Write what waits; return the names of the new files. When this returns, the videos are done for good.

        May be called again after it was interrupted anywhere: what was written is then written again under the same
        name, and never under a second one.
        """
        written = []
        for kind in ("part", "failed"):
            videos = self._waiting[kind]
            if not videos:
                continue
            name = f"{kind}-{self.run_id}-{self._sequence:05d}.parquet"
            joined = pa.concat_tables(videos).select(self._schema.names).combine_chunks()
            self.folder.write(name, parquet_bytes(joined.cast(self._schema)))
            self._waiting[kind], self._sequence = [], self._sequence + 1
            written.append(name)
            for video in videos:
                self.videos[video_status(video)] += 1
                self.rows += video.num_rows
                self.frames += _frame_count(video)
        self._waiting_bytes = 0.0
        self._committed_s = self._clock()
        self.files += written
        return written


def _bits(kind: pa.DataType) -> int:
    return kind.list_size * kind.value_type.bit_width if pa.types.is_fixed_size_list(kind) else kind.bit_width


def _frame_count(video: pa.Table) -> int:
    return sum(filter(None, video["num_frames"].to_pylist()))


def new_run_id() -> str:
    """A name for a run that sorts by its start, in UTC, and that no two runs share."""
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def parquet_bytes(table: pa.Table) -> bytes:
    """A table as one Parquet file in memory: zstd, a single row group (rows are bounded by `TARGET_BYTES`)."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, table.num_rows))
    return buffer.getvalue()
