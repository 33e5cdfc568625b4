"""What label tables point at: the version of every source, from one listing a folder, and the plan of those to cut."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.storage import FileInfo, Folder, stat
from cluster.uri import StorageError
from jobs.crop_tasks import SOURCE_SCHEMA
from mma.crops.keys import Keys
from mma.labels.table import CUT, GIVEN

THREADS = 16
"""Listings and questions to storage at the same time."""


def source_versions(sources: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Version (string) and size (int64) of (S,) sources, null where there is none.

    Each folder is listed once; only what a listing cannot tell (a folder that may not be listed, an encoded file://
    URI) is asked for by itself. Raises StorageError where storage fails.
    """
    parts = pc.extract_regex(sources, r"(?s)^(?P<folder>.*)/(?P<name>[^/]+)$")
    folders = pc.struct_field(parts, 0).dictionary_encode()
    names = pc.struct_field(parts, 1).cast(pa.binary())
    codes = pc.fill_null(folders.indices, -1).to_numpy(zero_copy_only=False)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(folders.dictionary) + 1))
    uris = folders.dictionary.to_pylist()

    def listed(number: int) -> tuple[pa.Array, pa.Array]:
        mine = pa.array(order[starts[number] : starts[number + 1]])
        files = _listing(uris[number])
        if files is None:
            return _asked(sources.take(mine).to_pylist())
        at = pc.index_in(names.take(mine), value_set=pa.array([_bytes(file.name) for file in files], pa.binary()))
        versions = pa.array([file.version for file in files], pa.string()).take(at)
        return versions, pa.array([file.bytes for file in files], pa.int64()).take(at)

    rest = pa.array(order[: starts[0]])  # no folder in front of a name
    with ThreadPoolExecutor(THREADS) as pool:
        found = [_asked(sources.take(rest).to_pylist()), *pool.map(listed, range(len(uris)))]
    back = pa.array(np.argsort(order, kind="stable"))
    versions, sizes = (pa.concat_arrays([each[column] for each in found]).take(back) for column in (0, 1))
    encoded = pc.and_(pc.and_(pc.is_null(versions), pc.starts_with(sources, "file:")), pc.match_substring(sources, "%"))
    if pc.any(encoded).as_py():
        asked, asked_sizes = _asked(sources.filter(encoded).to_pylist())
        versions = pc.replace_with_mask(versions, encoded, asked)
        sizes = pc.replace_with_mask(sizes, encoded, asked_sizes)
    return versions, sizes


def _listing(uri: str) -> list[FileInfo] | None:
    """The files of a folder; None where it may not be listed."""
    try:
        return Folder(uri).list()
    except ValueError:
        return None
    except StorageError as error:
        if error.retryable:
            raise
        return None


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _asked(uris: list[str]) -> tuple[pa.Array, pa.Array]:
    """Version and size of files, each asked for by itself; null for one that is not to be had."""

    def one(uri: str) -> tuple[str | None, int | None]:
        try:
            file = stat(uri)
        except ValueError:
            return None, None
        except StorageError as error:
            if error.retryable:
                raise
            return None, None
        return file.version, file.bytes

    with ThreadPoolExecutor(THREADS) as pool:
        told = list(pool.map(one, uris))
    return pa.array([each[0] for each in told], pa.string()), pa.array([each[1] for each in told], pa.int64())


def plan_sources(rows: pa.Table, keys: Keys, todo: NDArray[np.bool_], versions: pa.Array, sizes: pa.Array) -> pa.Table:
    """The plan for some faces: a row of `SOURCE_SCHEMA` a source and way to cut.

    Args:
        rows: what `keys` was made of, with `box` and `points`.
        keys: all wanted faces.
        todo: (U,) which of them are to be cut, at least one.
        versions: (S,) string, of `keys.sources`.
        sizes: (S,) int64.
    """
    faces = np.flatnonzero(todo)
    groups = keys.group[faces]
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    ends = pa.array(np.concatenate([starts, [len(faces)]]), pa.int32())
    first = faces[starts]
    source = pa.array(keys.source[first])
    own = rows.select(["box", "points"]).take(pa.array(keys.first[first]))
    columns = {
        "source": keys.sources.take(source),
        "version": versions.take(source),
        "bytes": sizes.take(source),
        "crop": pa.array(np.where(keys.given[first], GIVEN, CUT)),
        "frames": pa.ListArray.from_arrays(ends, pa.array(keys.frame[faces])),
        "keys": pa.ListArray.from_arrays(ends, pa.array(faces)),
        "box": own["box"],
        "points": own["points"],
    }
    return pa.table([columns[name] for name in SOURCE_SCHEMA.names], schema=SOURCE_SCHEMA)
