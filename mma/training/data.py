"""What a training run learns from: faces and what is known of them, from several sets at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from mma.descriptors import DescriptorSet
from mma.labels.table import SPLITS, LabelArrays, label_arrays


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingData:
    """N samples of all sets and splits."""

    faces: npt.NDArray[np.uint8]
    """(N, 112, 112, 3) RGB; may be a memory map."""
    labels: LabelArrays
    """Of all N, in the orders of one descriptor set."""
    members: Mapping[str, Mapping[str, npt.NDArray[np.int64]]]
    """split -> set -> its samples."""
    people: npt.NDArray[np.int64]
    """(N,) a number for the subject of each sample (for its source, where no subject is known)."""

    def of_split(self, split: str) -> npt.NDArray[np.int64]:
        """All samples of a split."""
        return np.concatenate([*self.members[split].values(), np.empty(0, np.int64)])


def training_data(samples: pa.Table, faces: npt.NDArray[np.uint8], descriptor_set: DescriptorSet) -> TrainingData:
    """From rows of `LABEL_SCHEMA` with a column `set`, and the face of each row. Every row has a split.

    Raises ValueError where rows and faces are not as many.
    """
    if samples.num_rows != len(faces):
        raise ValueError(f"{samples.num_rows} labelled samples, but {len(faces)} faces")
    names = pc.unique(samples["set"]).to_pylist()
    samples = samples.combine_chunks()
    members = {}
    for split in SPLITS:
        here = pc.equal(samples["split"], split)
        found = {name: np.flatnonzero(pc.and_(here, pc.equal(samples["set"], name)).to_numpy()) for name in names}
        members[split] = {name: rows for name, rows in found.items() if len(rows)}
    who = pc.binary_join_element_wise(samples["set"], pc.coalesce(samples["subject"], samples["source"]), "/")
    people = who.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return TrainingData(faces=faces, labels=label_arrays(samples, descriptor_set), members=members, people=people)
