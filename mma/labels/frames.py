"""This project's own table of frame labels, csv or Parquet, for whoever has labels in no published set's layout.

Each row names an image (`image`) or a frame of a video (`frame` and `video_id` or `uri`) and what is known of it, under
the descriptors' names; an empty cell or NaN is unknown. Columns of other names are ignored. Where a row has both, its
image counts. A URI outside the table's folder is taken as it stands, since no listing shows it.
"""

from __future__ import annotations

import io
import posixpath
import re
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mma.descriptors import VALENCE_AROUSAL
from mma.labels.reading import FileIndex, is_video, label_set, only_one, shown, stem, wrong_layout
from mma.labels.registry import LayoutError, label_format
from mma.labels.sheet import Sheet, column_name, parse_csv
from mma.labels.source import LabelFolder
from mma.labels.table import ACTION_UNITS, CUT, EXPRESSIONS, LabelSet, label_table

_BOX = ("x", "y", "w", "h")
_PLACES = ("image", "video_id", "uri", "frame")
_COLUMNS = (*_PLACES, "split", "subject", *_BOX, *VALENCE_AROUSAL, "expression")
_SPLITS = {"train": "train", "val": "val", "validation": "val", "dev": "val", "devel": "val", "test": "test", "": None}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_NO_FRAME = 2**31


@label_format(
    "frames",
    "frames.csv or frames.parquet with image, or frame and video_id or uri; and any of valence, arousal, expression, "
    "AU01 ... AU26, split, subject, x, y, w, h",
    takes_file=True,
)
def read(folder: LabelFolder, file: str) -> LabelSet:
    """The table named, or the one called frames.csv or frames.parquet."""
    names = {each.name for each in folder.walk()}
    tables = sorted(names & {"frames.csv", "frames.parquet"})
    sheet = _sheet(folder, file or only_one("frames", folder, tables, "frames.csv or frames.parquet"))
    labels = [name for name in (*VALENCE_AROUSAL, "expression", *ACTION_UNITS) if name in sheet.columns]
    if not labels:
        wrong_layout("frames", folder, f"{sheet.place} has no column of a descriptor")
    columns: dict[str, Any] = {
        name: sheet.within(name, -1, 1, blank=True) for name in VALENCE_AROUSAL if name in labels
    }
    columns |= sheet.occurrences(blank=True)
    if "expression" in labels:
        columns["expression"] = _expressions(sheet)
    if "split" in sheet.columns:
        columns["split"] = _splits(sheet)
    if "subject" in sheet.columns:
        columns["subject"] = [each or None for each in sheet.text("subject")]
    if present := [name for name in _BOX if name in sheet.columns]:
        columns["box"] = _boxes(sheet, present)
    columns["crop"] = pa.repeat(CUT, sheet.num_rows)
    return label_set("frames", folder, label_table({**_places(folder, sheet, names), **columns}))


def _sheet(folder: LabelFolder, name: str) -> Sheet:
    place, data = shown(folder, name), folder.read(name)
    if not name.lower().endswith((".parquet", ".pq")):
        return parse_csv(data, place, wanted=_COLUMNS)
    try:
        parquet = pq.ParquetFile(io.BytesIO(data))
        headers = {header: column_name(header) for header in parquet.schema_arrow.names}
        used = {header: known for header, known in headers.items() if known in (*_COLUMNS, *ACTION_UNITS)}
        if len(set(used.values())) < len(used):
            raise LayoutError(f"{place}: two columns have one name ({', '.join(used)}); remove one")
        table = parquet.read(columns=list(used))
    except pa.ArrowInvalid as error:
        raise LayoutError(f"{place} is no Parquet file: {error}") from error
    columns = {known: table[header] for header, known in used.items()}
    return Sheet(place=place, columns=columns, where=lambda row: f"{place}, row {row + 1}")


def _places(folder: LabelFolder, sheet: Sheet, names: set[str]) -> dict[str, pa.Array]:
    """`source`, null where the folder lacks it, and `frame`."""
    if "image" in sheet.columns:
        return {"source": _uris(folder, sheet, "image", names)}
    if "frame" not in sheet.columns or not {"video_id", "uri"} & set(sheet.columns):
        wrong_layout("frames", folder, f"{sheet.place} has neither image nor frame with video_id or uri")
    frames = sheet.numbers("frame")
    if (bad := ~((frames >= 0) & (frames % 1 == 0) & (frames < _NO_FRAME))).any():
        raise sheet.refused("frame", int(np.argmax(bad)), "a whole number from 0")
    frame = pa.array(frames.astype(np.int32))
    if "uri" in sheet.columns:
        return {"source": _uris(folder, sheet, "uri", names), "frame": frame}
    videos = sorted(filter(is_video, names))
    by_path = set(videos)
    by_stem = FileIndex(folder, videos, end=stem)
    found: dict[str, str | None] = {}
    ids = sheet.text("video_id")
    for each in dict.fromkeys(ids):
        found[each] = folder.uri_of(each) if each in by_path else by_stem.uri(each)
    return {"source": pa.array([found[each] for each in ids], pa.string()), "frame": frame}


def _uris(folder: LabelFolder, sheet: Sheet, name: str, names: set[str]) -> pa.Array:
    inside = re.compile(rf"(file://)?{re.escape(folder.uri.rstrip('/'))}/(.*)", re.DOTALL)
    uris: dict[str, str | None] = {"": None}
    cells = sheet.text(name)
    for row, cell in enumerate(cells):
        if not cell:
            raise sheet.refused(name, row, "a path or a URI")
        if cell in uris:
            continue
        scheme = _SCHEME.match(cell)
        if scheme and scheme[1].lower() not in ("file", "s3"):
            raise sheet.refused(name, row, "a path, a file:// or an s3:// URI")
        below = inside.fullmatch(cell)
        if below:
            relative = unquote(below[2]) if below[1] else below[2]
        elif scheme or cell.startswith("/"):
            uris[cell] = cell
            continue
        else:
            relative = posixpath.normpath(cell)
        uris[cell] = folder.uri_of(relative) if relative in names else None
    return pa.array([uris[cell] for cell in cells], pa.string())


def _expressions(sheet: Sheet) -> pa.Array:
    cells = [cell.lower() for cell in sheet.text("expression")]
    known = {**{name: name for name in EXPRESSIONS}, "": None, "nan": None}
    if unknown := sorted(set(cells) - set(known)):
        raise LayoutError(
            f"{sheet.place}: no expressions are called {', '.join(unknown)}; there are {', '.join(EXPRESSIONS)}"
        )
    return pa.array([known[cell] for cell in cells], pa.string())


def _splits(sheet: Sheet) -> pa.Array:
    cells = [cell.lower() for cell in sheet.text("split")]
    if unknown := sorted(set(cells) - set(_SPLITS)):
        raise LayoutError(
            f"{sheet.place}: no splits are called {', '.join(unknown)}; there are {', '.join(filter(None, _SPLITS))}"
        )
    return pa.array([_SPLITS[cell] for cell in cells], pa.string())


def _boxes(sheet: Sheet, present: list[str]) -> pa.Array:
    if lacking := [name for name in _BOX if name not in present]:
        raise LayoutError(f"{sheet.place}: a box is x, y, w, h, and the column {' and '.join(lacking)} is not there")
    box = np.stack([sheet.numbers(name) for name in _BOX], axis=1)
    none = np.isnan(box).any(axis=1)
    for k in (2, 3):
        if (bad := ~none & ~(box[:, k] > 0)).any():
            raise sheet.refused(_BOX[k], int(np.argmax(bad)), "more than 0 px")
    flat = pa.array(np.nan_to_num(box).astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, 4, mask=pa.array(none))
