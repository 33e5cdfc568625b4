"""The common table of frame labels: one row an image or video frame, a null wherever something is not known.

Nulls are the mask: an importer turns every "unknown" marker of its set into null, so that no marker can be taken for a
value later. Classes are names, never indices, since their orders differ between all sets (PAPER.md, "Frame
label sets for stage 1").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mma.descriptors import DESCRIPTOR_SETS, VALENCE_AROUSAL, DescriptorSet

ACTION_UNITS = tuple(sorted({unit for each in DESCRIPTOR_SETS.values() for unit in each.action_units}))
"""Action units that some descriptor set has; importers drop others."""
EXPRESSIONS = (*sorted({name for each in DESCRIPTOR_SETS.values() for name in each.expressions}), "contempt")
"""Names that the column `expression` may hold. A class that a head lacks is unknown to it, never another class."""
SPLITS = ("train", "val", "test")
CUT, GIVEN = "cut", "given"
"""Of the column `crop`: a whole frame, to be cut by this project's geometry, or a crop that the set hands out."""

LABEL_SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # URI of the image or of the video
        ("frame", pa.int32()),  # frame of the video, counted from 0 in presentation order; null for an image
        ("split", pa.string()),  # one of SPLITS; null where the set does not say
        ("subject", pa.string()),  # null where the set does not say
        ("crop", pa.string()),  # CUT or GIVEN
        ("box", pa.list_(pa.float32(), 4)),  # the set's own face box, x, y, w, h in px; null where it has none
        ("points", pa.list_(pa.float32(), 10)),  # the set's own five points, order of mma.faces.alignment; or null
        *((name, pa.float32()) for name in VALENCE_AROUSAL),  # in [-1, 1]
        ("expression", pa.string()),  # one of EXPRESSIONS
        *((name, pa.float32()) for name in ACTION_UNITS),  # 0 or 1
    ]
)
"""Columns of the common table; null means not known, or not applicable. (`source`, `frame`) is unique in a set."""


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """What an importer gives."""

    format: str
    """The format's name in `mma.labels.FORMATS`."""
    table: pa.Table
    """Rows of `LABEL_SCHEMA`; each has at least one known descriptor, and its image was seen in a listing."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """What was left out, counted: `missing` rows whose image or video the folder lacks, `unlabelled` rows
    in which everything is unknown, and what else a format has to say."""

    def __post_init__(self) -> None:
        if self.table.schema != LABEL_SCHEMA:
            raise ValueError(f"the importer of {self.format} gives other columns than LABEL_SCHEMA")


class LabelArrays(NamedTuple):
    """N rows as arrays, in the orders of a descriptor set: the NumPy twin of `mma.losses.FrameLabels`."""

    valence_arousal: npt.NDArray[np.float32]
    """(N, 2), 0 where unknown."""
    valence_arousal_known: npt.NDArray[np.bool_]
    """(N, 2)."""
    expression: npt.NDArray[np.int64]
    """(N,), the index in `expressions`, -1 unknown."""
    action_units: npt.NDArray[np.float32]
    """(N, num_action_units), 0 or 1, 0 where unknown."""
    action_units_known: npt.NDArray[np.bool_]
    """(N, num_action_units)."""

    def take(self, rows: npt.NDArray[np.integer] | slice) -> LabelArrays:
        """The same of some rows."""
        return LabelArrays(
            self.valence_arousal[rows],
            self.valence_arousal_known[rows],
            self.expression[rows],
            self.action_units[rows],
            self.action_units_known[rows],
        )


def label_table(columns: Mapping[str, Any]) -> pa.Table:
    """A table of `LABEL_SCHEMA` from the columns that a set has; the others are null.

    Values may be Arrow arrays, lists with None, or float arrays with NaN for unknown. Raises ValueError for a column
    that the schema lacks and for columns of different lengths.
    """
    unknown = set(columns) - set(LABEL_SCHEMA.names)
    if unknown:
        raise ValueError(f"no such label columns: {sorted(unknown)}")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"label columns of different lengths: {lengths}")
    count = next(iter(lengths.values()))
    arrays = []
    for column in LABEL_SCHEMA:
        values = columns.get(column.name)
        if values is None:
            arrays.append(pa.nulls(count, column.type))
        elif isinstance(values, (pa.Array, pa.ChunkedArray)):
            arrays.append(values.cast(column.type))
        else:
            arrays.append(pa.array(values, column.type, from_pandas=True))
    return pa.table(arrays, schema=LABEL_SCHEMA)


def drop_unlabelled(table: pa.Table) -> tuple[pa.Table, int]:
    """The rows in which some descriptor is known, and how many others there were."""
    known = pa.array(np.zeros(table.num_rows, bool))
    for name in (*VALENCE_AROUSAL, "expression", *ACTION_UNITS):
        known = pc.or_(known, pc.is_valid(table[name]))
    kept = table.filter(known)
    return kept, table.num_rows - kept.num_rows


def label_arrays(table: pa.Table, descriptor_set: DescriptorSet) -> LabelArrays:
    """The labels of a table for one descriptor set; an expression or action unit that the set lacks is unknown."""

    def columns(names: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        values = np.zeros((table.num_rows, len(names)), np.float32)
        known = np.zeros(values.shape, bool)
        for k, name in enumerate(names):
            known[:, k] = pc.is_valid(table[name]).to_numpy()
            values[:, k] = pc.fill_null(table[name], 0.0).to_numpy()
        return values, known

    index = pc.index_in(table["expression"], value_set=pa.array(descriptor_set.expressions))
    expression = pc.fill_null(index, -1).to_numpy().astype(np.int64)
    valence_arousal = columns(descriptor_set.valence_arousal)
    action_units = columns(descriptor_set.action_units)
    return LabelArrays(*valence_arousal, expression, *action_units)
