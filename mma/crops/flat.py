"""The crops of a training run as one flat file a node: every worker process maps it, and the kernel shares its pages.

The file is named by the store's files and by the wanted rows, so a changed store or another choice of rows makes
another file (`mma.store.flatfile`).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mma.crops.keys import Keys
from mma.crops.rows import CROP_SHAPE, WITH_FACE, faces_of
from mma.crops.store import READERS, FileIndex, index_files, open_file
from mma.store.flatfile import allocated, built_once, digest, mapped
from mma.store.reader import ReadableFolder

BATCH_FACES = 64
"""Faces that a reading thread decodes at a time; four threads were seen to take 200 MB together."""


def flat_faces(folder: ReadableFolder, rows: pa.Table, scratch: Path) -> NDArray[np.uint8]:
    """The faces of N rows as a read-only map: uint8 (N, 112, 112, 3) RGB, row i that of `rows[i]`.

    Args:
        folder: the crop store.
        rows: any table with `mma.crops.keys.KEY_COLUMNS`; a face may stand in it more than once.
        scratch: a folder of this node, on a disk with room for N x 37,632 bytes; made if absent.

    Raises ValueError where the store has no crop for some row (choose by `found` before), OSError where storage fails
    or the disk is too small, before a byte is copied.
    """
    if not rows.num_rows:
        raise ValueError("no rows are wanted, so there is nothing to map")
    keys = Keys(rows)
    files = sorted((entry.name, entry.bytes) for entry in folder.list(suffix=".parquet") if entry.name[0] not in "_.")
    name = f"{digest(folder.display, files, keys.digest())}.uint8"
    return built_once(
        scratch,
        "crops",
        name,
        lambda path: _build(folder, [name for name, _ in files], keys, path),
        lambda path: mapped(path, np.uint8, (-1, *CROP_SHAPE)),
    )


def _build(folder: ReadableFolder, names: list[str], keys: Keys, path: Path) -> None:
    """Copy the faces of `keys` into a file at `path`, a row for each row that the keys were made of."""
    count = len(keys.inverse)
    # rows_of[starts[f] : starts[f + 1]] are the rows that want face f.
    rows_of = np.argsort(keys.inverse, kind="stable")
    starts = np.searchsorted(keys.inverse[rows_of], np.arange(len(keys) + 1))
    taken = np.zeros(len(keys), bool)
    wanted_files: list[tuple[str, NDArray[np.int64]]] = []
    for file in index_files(folder, keys, names):
        faces = _new_faces(file, taken)
        if faces is not None:
            wanted_files.append((file.name, faces))
    lacking = int(np.diff(starts)[~taken].sum())
    if lacking:
        first = int(keys.first[np.flatnonzero(~taken)[0]])
        raise ValueError(
            f"{folder.display} has no crop for {lacking} of {count} rows, such as row {first}: take the rows that "
            "`found` says have one"
        )
    flat = allocated(path, np.uint8, (count, *CROP_SHAPE))

    def copy(name: str, faces: NDArray[np.int64]) -> None:
        for here, crops in _crops_of(folder, name, faces):
            for face, crop in zip(here, crops, strict=True):
                flat[rows_of[starts[face] : starts[face + 1]]] = crop

    with ThreadPoolExecutor(READERS) as pool:
        for _ in pool.map(copy, *zip(*wanted_files)):
            pass
    flat.flush()


def _crops_of(
    folder: ReadableFolder, name: str, faces: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """The wanted crops of a file, some at a time: the numbers (K,) of the faces, and their pixels (K, 112, 112, 3)."""
    start = 0
    with open_file(folder, name) as file:
        for batch in file.iter_batches(batch_size=BATCH_FACES, columns=["face"]):
            here = faces[start : start + batch.num_rows]
            start += batch.num_rows
            yield here[here >= 0], faces_of(batch.column(0).filter(pa.array(here >= 0)))


def _new_faces(file: FileIndex, taken: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """(M,) the face that each row of a file is to give, -1 for none, noted in `taken`; None if it gives nothing."""
    usable = (file.face >= 0) & (file.outcome < WITH_FACE)
    usable[usable] = ~taken[file.face[usable]]
    if not usable.any():
        return None
    taken[file.face[usable]] = True
    return np.where(usable, file.face, -1)
