"""BP4D and BP4D+: one csv a subject and task with the occurrence of each action unit in each coded frame.

Layout: PAPER.md, "Frame label sets for stage 1"; no real file of the sets could be had here.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from mma.descriptors import action_unit_name
from mma.labels.reading import is_image, label_set, shown, stem, wrong_layout
from mma.labels.registry import LayoutError, label_format
from mma.labels.sheet import header_of, parse_csv
from mma.labels.source import LabelFolder
from mma.labels.table import CUT, LabelSet, label_table

UNKNOWN = 9
_FILE = re.compile(r"(?:^|/)AU_OCC/([^/_]+)_([^/_]+)\.csv$")
_UNIT = re.compile(r"\s*(?:AU\s*)?(\d+)\s*$", re.IGNORECASE)

Frames = dict[int, str]


@label_format(
    "bp4d",
    "AUCoding/AU_OCC/F001_T1.csv (a header of action units' numbers, the frame in the first column) and images "
    "F001/T1/<frame>.jpg, anywhere below it",
)
def read(folder: LabelFolder, file: str) -> LabelSet:
    """Images are found by their numbers, with any number of leading zeros."""
    tasks: dict[tuple[str, str], str] = {}
    images: dict[tuple[str, str], Frames] = {}
    twice: dict[tuple[str, str], tuple[str, str]] = {}
    for each in folder.walk():
        parts = each.name.split("/")
        if found := _FILE.search(each.name):
            if (key := (found[1], found[2])) in tasks:
                wrong_layout("bp4d", folder, f"both {tasks[key]} and {each.name} are labels of one task; keep one")
            tasks[key] = each.name
        elif len(parts) > 2 and is_image(each.name) and stem(each.name).isdecimal():
            key, number = (parts[-3], parts[-2]), int(stem(each.name))
            of_task = images.setdefault(key, {})
            if number in of_task:
                twice.setdefault(key, (of_task[number], each.name))
            of_task[number] = each.name
    if not tasks:
        wrong_layout("bp4d", folder, "there is no such csv in it")
    for key in sorted(twice.keys() & tasks.keys()):
        wrong_layout("bp4d", folder, f"{' and '.join(twice[key])} are one frame of {'_'.join(key)}; keep one")
    tables = [_table(folder, name, key[0], images.get(key, {})) for key, name in sorted(tasks.items())]
    return label_set("bp4d", folder, pa.concat_tables(tables))


def _table(folder: LabelFolder, name: str, subject: str, images: Frames) -> pa.Table:
    data, place = folder.read(name), shown(folder, name)
    header = header_of(data, place)
    units = [_UNIT.match(each) for each in header[1:]]
    if not units or not all(units):
        raise LayoutError(
            f"{place}, line 1: {','.join(header)}; expected the numbers of action units after a first cell"
        )
    names = ["frame", *(action_unit_name(int(unit[1])) for unit in units if unit)]
    sheet = parse_csv(data, place, wanted=["frame"], header=names)
    frames = sheet.numbers("frame")
    if (bad := ~((frames >= 0) & (frames % 1 == 0))).any():
        raise sheet.refused("frame", int(np.argmax(bad)), "a whole number")
    found = [images.get(int(frame)) for frame in frames]
    return label_table(
        {
            "source": pa.array([None if each is None else folder.uri_of(each) for each in found], pa.string()),
            "subject": pa.repeat(subject, len(found)),
            "crop": pa.repeat(CUT, len(found)),
            **sheet.occurrences(unknown=[UNKNOWN]),
        }
    )
