"""Aff-Wild2, the ABAW challenges: one txt a video and task, row k of which is the k-th crop of the video.

Layout: PAPER.md, "Frame label sets for stage 1"; no real file of the set could be had here. The tasks of a video are
merged, a row an image. Crops may be fewer than rows, so images are found by their numbers, never by counting them.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mma.descriptors import ABAW22
from mma.labels.reading import label_set, shown, wrong_layout
from mma.labels.registry import LayoutError, label_format
from mma.labels.sheet import column_name, header_of, parse_csv
from mma.labels.source import LabelFolder
from mma.labels.table import ACTION_UNITS, GIVEN, LabelSet, label_table

_FILE = re.compile(
    r"(?:^|/)(VA_Estimation|EXPR_Classification|EXPR_Recognition|AU_Detection)_Challenge"
    r"/(Train|Validation)_Set/([^/]+)\.txt$"
)
_ALIGNED = "cropped_aligned"

Columns = dict[str, np.ndarray | pa.Array]
Crops = dict[str, dict[str, array]]
"""Video -> folder of crops of that name -> the numbers of the crops in it."""


@label_format(
    "affwild2",
    "{VA_Estimation,EXPR_Classification,EXPR_Recognition,AU_Detection}_Challenge/{Train_Set,Validation_Set}/<video>.txt"
    " and crops <video>/00001.jpg, anywhere below it",
)
def read(folder: LabelFolder, file: str) -> LabelSet:
    """A video that is in Train_Set for one task and in Validation_Set for another is wholly `val` (`split_conflicts`).

    A video's name is its subject, with `_left` and `_right`: two persons of one picture.
    """
    videos: dict[str, dict[str, list[str]]] = {}
    splits: dict[str, set[str]] = {}
    crops: Crops = {}
    for each in folder.walk():
        name = each.name
        if name.endswith(".jpg"):
            _note_crop(crops, name)
        elif found := _FILE.search(name):
            task, split, video = found.groups()
            videos.setdefault(video, {}).setdefault(task.split("_")[0], []).append(name)
            splits.setdefault(video, set()).add(split)
    if not videos:
        wrong_layout("affwild2", folder, "there is no such txt in it")
    conflicts = {video for video, both in splits.items() if len(both) > 1}
    tables = []
    for video in sorted(videos):
        columns = _merged(_task_columns(folder, task, names) for task, names in sorted(videos[video].items()))
        count = len(next(iter(columns.values())))
        if not count:
            continue
        split = "val" if "Validation" in splits[video] else "train"
        same = {"split": split, "subject": video, "crop": GIVEN}
        columns |= {name: pa.repeat(value, count) for name, value in same.items()}
        tables.append(label_table({"source": _sources(folder, video, crops.get(video, {}), count), **columns}))
    if not tables:
        wrong_layout("affwild2", folder, "its txt files hold headers only")
    return label_set("affwild2", folder, pa.concat_tables(tables), split_conflicts=len(conflicts))


def _note_crop(crops: Crops, name: str) -> None:
    parent, _, stem = name[:-4].rpartition("/")
    if stem.isascii() and stem.isdecimal() and (len(stem) == 5 or (5 < len(stem) < 10 and stem[0] != "0")):
        of_video = crops.setdefault(parent.rpartition("/")[2], {})
        of_video.setdefault(parent, array("i")).append(int(stem))


def _sources(folder: LabelFolder, video: str, places: dict[str, array], count: int) -> pa.Array:
    """URIs of crops 1 to count, null where there is none."""
    places = {place: of for place, of in places.items() if _ALIGNED in place.split("/")} or places
    if not places:
        return pa.nulls(count, pa.string())
    if len(places) > 1:
        raise LayoutError(
            f"{folder.display}: crops of the video {video} lie in {' and in '.join(sorted(places)[:2])}, "
            f"and only one of them is what the labels mean; keep one"
        )
    ((place, numbers),) = places.items()
    wanted = np.arange(1, count + 1)
    missing = ~np.isin(wanted, np.frombuffer(numbers, np.int32))
    digits = pc.utf8_lpad(pa.array(wanted, mask=missing).cast(pa.string()), 5, "0")
    before = folder.uri_of(f"{place}/00001.jpg").removesuffix("00001.jpg")
    return pc.binary_join_element_wise(before, digits, ".jpg", "")


def _task_columns(folder: LabelFolder, task: str, names: list[str]) -> Columns:
    """The columns of one file. Several (of several years) are as good as one if they are equal."""
    data = folder.read(names[0])
    for other in names[1:]:
        if folder.read(other) != data:
            raise LayoutError(f"{shown(folder, names[0])} and {shown(folder, other)} differ; keep one release's labels")
    place = shown(folder, names[0])
    header = [column_name(each) for each in header_of(data, place)]

    def expect(good: object, expected: str) -> None:
        if not good:
            raise LayoutError(f"{place}, line 1: the header is {','.join(header)}; expected {expected}")

    if task == "VA":
        expect(sorted(header) == ["arousal", "valence"], "valence,arousal")
        return {**parse_csv(data, place, wanted=header).valence_arousal(unknown=-5)}
    if task == "EXPR":
        known = len(set(header)) == len(header) and set(header) <= set(ABAW22.expressions)
        expect(known, "the names of the classes, Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other")
        sheet = parse_csv(data, place, wanted=["expression"], header=["expression"])
        return {"expression": sheet.classes("expression", dict(enumerate(header)), unknown=[-1])}
    expect(all(re.fullmatch(r"AU\d\d", each) for each in header) and set(header) & set(ACTION_UNITS), "AU1,AU2,...")
    return {**parse_csv(data, place).occurrences(unknown=[-1])}


def _merged(tasks: Iterable[Columns]) -> Columns:
    """The columns of all tasks, as long as the longest: row k is the same image in each."""
    columns = {name: values for task in tasks for name, values in task.items()}
    count = max(map(len, columns.values()))
    merged: Columns = {}
    for name, values in columns.items():
        if isinstance(values, pa.Array):
            merged[name] = pa.concat_arrays([values, pa.nulls(count - len(values), values.type)])
        else:
            merged[name] = np.concatenate([values, np.full(count - len(values), np.nan)])
    return merged
