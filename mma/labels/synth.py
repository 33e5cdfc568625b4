"""The corpus that `synth` makes: its annotators' frame labels. Its `true_` columns are never read (CORPUS.md)."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mma.descriptors import VALENCE_AROUSAL
from mma.labels.reading import label_set, shown, wrong_layout
from mma.labels.registry import LayoutError, label_format
from mma.labels.source import LabelFolder
from mma.labels.table import ACTION_UNITS, CUT, LabelSet, label_table

_TABLE = "frames.parquet"
_COLUMNS = ("video_id", "frame", "split", "subject", *VALENCE_AROUSAL, "expression", *ACTION_UNITS)


@label_format("synth", f"{_TABLE} and the clips {{train,val,test}}/mp4/<video_id>.mp4")
def read(folder: LabelFolder, file: str) -> LabelSet:
    """A row a labelled frame; those of a clip that is not there are missing."""
    names = {each.name for each in folder.walk()}
    if _TABLE not in names:
        wrong_layout("synth", folder, f"there is no {_TABLE} in it")
    try:
        parquet = pq.ParquetFile(io.BytesIO(folder.read(_TABLE)))
    except pa.ArrowInvalid as error:
        raise LayoutError(f"{shown(folder, _TABLE)} is no Parquet file: {error}") from error
    if lacking := [each for each in _COLUMNS if each not in parquet.schema_arrow.names]:
        wrong_layout("synth", folder, f"{_TABLE} lacks the column {' and '.join(lacking)}")
    table = parquet.read(columns=list(_COLUMNS))
    split = pc.utf8_lower(table["split"])
    paths = pc.binary_join_element_wise(split, "/mp4/", table["video_id"], ".mp4", "")
    clips = paths.unique()
    uris = pa.array([folder.uri_of(clip) if clip in names else None for clip in clips.to_pylist()], pa.string())
    source = pc.take(uris, pc.index_in(paths, value_set=clips))
    columns = {name: table[name] for name in _COLUMNS if name not in ("video_id", "split")}
    crop = pa.repeat(CUT, table.num_rows)
    return label_set("synth", folder, label_table({"source": source, "split": split, "crop": crop, **columns}))
