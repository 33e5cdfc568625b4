"""AffectNet, in both its releases: the crops of 2021 with a file a value, and the older whole images with a csv.

Layout: PAPER.md, "Frame label sets for stage 1"; no real file of the set could be had here.
"""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mma.labels.reading import FileIndex, is_image, label_set, only_one, shown, tail, wrong_layout
from mma.labels.registry import LayoutError, label_format
from mma.labels.sheet import Sheet, parse_csv
from mma.labels.source import LabelFolder
from mma.labels.table import CUT, GIVEN, LabelSet, label_table

CLASSES = dict(enumerate(("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")))
NO_CLASS = (8, 9, 10)
"""None, uncertain, no face."""

_FILE = re.compile(r"(?:^|/)(train|val)_set/annotations/([^/]+)_exp\.npy$")
_CSV = {"training.csv": "train", "validation.csv": "val"}
_BOX = ("face_x", "face_y", "face_width", "face_height")
_PATH = "subdirectory_filepath"
_COLUMNS = (_PATH, *_BOX, "facial_landmarks", "expression", "valence", "arousal")
_READERS = 16


@label_format(
    "affectnet",
    "{train_set,val_set}/annotations/<id>_{exp,val,aro}.npy with images/<id>.jpg (2021), or training.csv and "
    "validation.csv (subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,"
    "arousal) with the images anywhere below",
    takes_file=True,
)
def read(folder: LabelFolder, file: str) -> LabelSet:
    """One csv if it is named, such as automatically_annotated.csv; else the release that the folder holds."""
    names = [each.name for each in folder.walk()]
    tables = [] if file else [name for name in names if tail(name, 1) in _CSV]
    crops = {} if file else {name: found for name in names if (found := _FILE.search(name))}
    if crops and tables:
        wrong_layout(
            "affectnet", folder, f"it holds both releases ({next(iter(crops))}, {tables[0]}); name one of them"
        )
    if crops:
        return _read_crops(folder, names, crops)
    if file:
        return _read_csvs(folder, names, [file])
    if not tables:
        wrong_layout("affectnet", folder, "there are neither such npy files nor such a csv in it")
    same = [[name for name in tables if tail(name, 1) == base] for base in _CSV]
    return _read_csvs(folder, names, [only_one("affectnet", folder, of, tail(of[0], 1)) for of in same if of])


def _read_crops(folder: LabelFolder, names: list[str], found: dict[str, re.Match[str]]) -> LabelSet:
    listed = set(names)
    ends = {"expression": "_exp.npy", "valence": "_val.npy", "arousal": "_aro.npy"}
    before = [name.removesuffix("_exp.npy") for name in found]
    for each in before:
        for end in ends.values():
            if each + end not in listed:
                wrong_layout("affectnet", folder, f"{each}_exp.npy is there and {each}{end} is not")

    def scalar(name: str) -> str:
        try:
            value = np.load(io.BytesIO(folder.read(name)), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise LayoutError(f"{shown(folder, name)}: not a plain npy file: {error}") from error
        if not isinstance(value, np.ndarray) or value.size != 1:
            raise LayoutError(f"{shown(folder, name)}: expected one value")
        return str(value.item())

    with ThreadPoolExecutor(_READERS) as pool:  # a million small files wait on the storage, not on this process
        columns = {
            column: pa.chunked_array([pa.array(pool.map(scalar, [each + end for each in before]), pa.string())])
            for column, end in ends.items()
        }
    sheet = Sheet(place=folder.display, columns=columns, where=lambda row: f"{shown(folder, before[row])}_*.npy")
    images = [
        f"{above}images/{number}.jpg" for above, _, number in (each.rpartition("annotations/") for each in before)
    ]
    rows = {
        "source": [folder.uri_of(image) if image in listed else None for image in images],
        "split": [match[1] for match in found.values()],
        "crop": [GIVEN] * len(before),
    }
    return label_set("affectnet", folder, label_table({**rows, **_labels(sheet)}))


def _read_csvs(folder: LabelFolder, names: list[str], files: list[str]) -> LabelSet:
    images = [name for name in names if is_image(name)]
    indices: dict[int, FileIndex] = {}
    tables = []
    for name in files:
        sheet = parse_csv(folder.read(name), shown(folder, name), wanted=_COLUMNS)
        if lacking := [each for each in _COLUMNS if each not in sheet.columns and each != "facial_landmarks"]:
            wrong_layout("affectnet", folder, f"{name} lacks the column {' and '.join(lacking)}")
        paths = sheet.text(_PATH)
        for parts in {path.count("/") + 1 for path in paths} - set(indices):
            indices[parts] = FileIndex(folder, images, end=partial(tail, parts=parts))
        rows = {
            "source": pa.array([indices[path.count("/") + 1].uri(path) for path in paths], pa.string()),
            "split": pa.array([_CSV.get(tail(name, 1))] * len(paths), pa.string()),
            "crop": pa.repeat(CUT, len(paths)),
            "box": _boxes(sheet),
            "points": _points(sheet),
        }
        tables.append(label_table({**rows, **_labels(sheet)}))
    return label_set("affectnet", folder, pa.concat_tables(tables))


def _labels(sheet: Sheet) -> dict[str, pa.Array | np.ndarray]:
    return {
        "expression": sheet.classes("expression", CLASSES, unknown=NO_CLASS),
        **sheet.valence_arousal(unknown=-2),
    }


def _boxes(sheet: Sheet) -> pa.Array:
    """x, y, w, h; null where a cell is empty or the box is."""
    box = np.stack([sheet.numbers(name) for name in _BOX], axis=1)
    none = ~(np.isfinite(box).all(axis=1) & (box[:, 2:] > 0).all(axis=1))
    flat = pa.array(np.nan_to_num(box).astype(np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, 4, mask=pa.array(none))


def _points(sheet: Sheet) -> pa.Array:
    """The five points of 68 landmarks `x1;y1;...;x68;y68`, null where there are not 68.

    36 to 41 are the eye at the left of the image, 42 to 47 the other, 30 the tip of the nose, 48 and 54 the corners of
    the mouth, counted from 0.
    """
    points = np.zeros((sheet.num_rows, 10), np.float32)
    has = np.zeros(sheet.num_rows, bool)
    if column := sheet.columns.get("facial_landmarks"):
        cells = pc.split_pattern(pc.utf8_trim(column, "; "), ";").combine_chunks()
        has = pc.equal(pc.list_value_length(cells), 136).to_numpy(zero_copy_only=False)
        try:
            flat = cells.filter(pa.array(has)).flatten().cast(pa.float32())
        except pa.ArrowInvalid as error:
            raise LayoutError(f"{sheet.place}: facial_landmarks: {error}") from error
        of = flat.to_numpy().reshape(-1, 68, 2)
        five = (of[:, 36:42].mean(axis=1), of[:, 42:48].mean(axis=1), of[:, 30], of[:, 48], of[:, 54])
        points[has] = np.concatenate(five, axis=1)
    return pa.FixedSizeListArray.from_arrays(pa.array(points.ravel()), 10, mask=pa.array(~has))
