"""Faces by number: (source, frame, crop) of millions of rows as sorted integers, without a Python object a row."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mma.crops.rows import WHOLE_IMAGE
from mma.labels.table import GIVEN

KEY_COLUMNS = ["source", "frame", "crop"]
"""What names a face, in label tables (`frame` null for an image) and in the store (`WHOLE_IMAGE`)."""

_GIVEN_BIT = 32
_FRAME_MASK = (1 << _GIVEN_BIT) - 1


class Keys:
    """The distinct faces that some rows name, numbered from 0 in the order of source, crop and frame."""

    def __init__(self, rows: pa.Table) -> None:
        """rows: any table with `KEY_COLUMNS`; a face may stand in it more than once."""
        self.sources = pc.unique(rows["source"])
        """(S,) the distinct sources, in the order of their first row."""
        codes = self.source_codes(rows["source"])
        self._packed, self.first, self.inverse = np.unique(
            _pack(codes, rows["frame"], rows["crop"]), return_index=True, return_inverse=True
        )
        # first: (U,) the first row of each face. inverse: (N,) the face of each row.

    def __len__(self) -> int:
        return len(self._packed)

    @property
    def source(self) -> NDArray[np.int64]:
        """(U,) position in `sources`."""
        return self._packed >> (_GIVEN_BIT + 1)

    @property
    def group(self) -> NDArray[np.int64]:
        """(U,) equal for faces of one source that are cut alike; these stand together."""
        return self._packed >> _GIVEN_BIT

    @property
    def frame(self) -> NDArray[np.int32]:
        """(U,) `WHOLE_IMAGE` for an image."""
        return ((self._packed & _FRAME_MASK) - 1).astype(np.int32)

    @property
    def given(self) -> NDArray[np.bool_]:
        """(U,) whether the set hands the crop out."""
        return (self.group & 1).astype(bool)

    def source_codes(self, source: pa.ChunkedArray) -> NDArray[np.int64]:
        """(M,) the position of each in `sources`, -1 for others."""
        return pc.fill_null(pc.index_in(source, value_set=self.sources), -1).to_numpy().astype(np.int64)

    def positions(self, rows: pa.Table, codes: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """(M,) the number of the face that each of some other rows names, -1 for one that is not among these."""
        codes = self.source_codes(rows["source"]) if codes is None else codes
        if not len(self):
            return np.full(rows.num_rows, -1, np.int64)
        packed = _pack(codes, rows["frame"], rows["crop"])
        at = np.minimum(np.searchsorted(self._packed, packed), len(self) - 1)
        return np.where(self._packed[at] == packed, at, -1)

    def digest(self) -> str:
        """Differs where the rows that this was made of, or their order, differ."""
        made = hashlib.blake2b(self._packed[self.inverse].tobytes(), digest_size=16)
        # As Arrow lays strings out: their ends, then all their bytes. `unique` gives an array of its own memory.
        _, ends, text = self.sources.cast(pa.large_string()).buffers()
        made.update(memoryview(ends)[: 8 * (len(self.sources) + 1)] if ends else b"")
        made.update(text or b"")
        return made.hexdigest()


def _pack(codes: NDArray[np.int64], frame: pa.ChunkedArray, crop: pa.ChunkedArray) -> NDArray[np.int64]:
    frames = pc.fill_null(frame, WHOLE_IMAGE).to_numpy().astype(np.int64) + 1
    given = pc.equal(crop, GIVEN).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes << (_GIVEN_BIT + 1) | given << _GIVEN_BIT | frames
