"""DISFA: one txt a subject and action unit, `frame,intensity`, with frames counted from 1 and intensities from 0 to 5.

Layout: PAPER.md, "Frame label sets for stage 1"; no real file of the set could be had here.
"""

from __future__ import annotations

import posixpath
import re

import numpy as np
import pyarrow as pa

from mma.descriptors import action_unit_name
from mma.labels.reading import is_image, is_video, label_set, shown, stem, wrong_layout
from mma.labels.registry import LayoutError, label_format
from mma.labels.sheet import parse_csv
from mma.labels.source import LabelFolder
from mma.labels.table import ACTION_UNITS, CUT, LabelSet, label_table

OCCURS_FROM = 2
"""An action unit of this intensity or more occurs."""
_COLUMNS = ("frame", "intensity")
_FILE = re.compile(r"(?:^|/)ActionUnit_Labels/([^/]+)/\1_au(\d+)\.txt$", re.IGNORECASE)


@label_format(
    "disfa",
    "ActionUnit_Labels/SN001/SN001_au1.txt (frame,intensity) and a video whose name holds SN001, or images with their "
    "frame's number in a folder SN001",
)
def read(folder: LabelFolder, file: str) -> LabelSet:
    """Frame n of the labels is frame n - 1 of the video: the left camera's, where there are both."""
    names = [each.name for each in folder.walk()]
    subjects: dict[str, dict[int, str]] = {}
    for name in names:
        if found := _FILE.search(name):
            of_subject = subjects.setdefault(found[1], {})
            if (unit := int(found[2])) in of_subject:
                wrong_layout("disfa", folder, f"both {of_subject[unit]} and {name} are labels of one subject; keep one")
            of_subject[unit] = name
    if not subjects:
        wrong_layout("disfa", folder, "there is no such txt in it")
    videos = [name for name in names if is_video(name)]
    images = [name for name in names if is_image(name)]
    tables = []
    for subject, units in sorted(subjects.items()):
        labels = _labels(folder, units)
        count = len(next(iter(labels.values()), ()))
        video = _video(folder, subject, videos)
        sources = [folder.uri_of(video)] * count if video else _frame_images(folder, subject, images, count)
        rows = {
            "source": pa.array(sources, pa.string()),
            "frame": pa.array(np.arange(count) if video else [None] * count, pa.int32()),
            "subject": pa.repeat(subject, count),
            "crop": pa.repeat(CUT, count),
        }
        tables.append(label_table({**rows, **labels}))
    return label_set("disfa", folder, pa.concat_tables(tables))


def _labels(folder: LabelFolder, units: dict[int, str]) -> dict[str, np.ndarray]:
    """Action unit -> 0 or 1 for each frame, by the number in the file's name and the number of the frame in the row."""
    read = {}
    for unit, name in units.items():
        if action_unit_name(unit) not in ACTION_UNITS:
            continue
        place = shown(folder, name)
        sheet = parse_csv(folder.read(name), place, wanted=_COLUMNS, header=_COLUMNS, headless=True)
        frames, intensity = sheet.numbers("frame"), sheet.one_of("intensity", range(6))
        if (bad := ~((frames >= 1) & (frames % 1 == 0) & (frames < 10_000_000))).any():
            raise sheet.refused("frame", int(np.argmax(bad)), "a whole number from 1")
        if len(np.unique(frames)) < len(frames):
            raise LayoutError(f"{place}: a frame has two rows; expected one a frame")
        read[action_unit_name(unit)] = (frames.astype(int) - 1, intensity)
    count = max((int(frames.max()) + 1 for frames, _ in read.values() if len(frames)), default=0)
    labels = {}
    for name, (frames, intensity) in read.items():
        labels[name] = np.full(count, np.nan)
        labels[name][frames] = intensity >= OCCURS_FROM
    return labels


def _video(folder: LabelFolder, subject: str, videos: list[str]) -> str:
    """The subject's video, "" if there is none."""
    whole = re.compile(rf"(?<![A-Za-z0-9]){re.escape(subject)}(?!\d)|Video{re.escape(subject)}(?!\d)", re.IGNORECASE)
    found = [name for name in videos if whole.search(stem(name))]
    found = [name for name in found if "left" in stem(name).lower()] or found
    if len(found) > 1:
        wrong_layout("disfa", folder, f"both {found[0]} and {found[1]} are videos of {subject}; keep one")
    return found[0] if found else ""


def _frame_images(folder: LabelFolder, subject: str, images: list[str], count: int) -> list[str | None]:
    """URI of each frame's image by the digits that end its name, from 0 if there is an image 0, else from 1."""
    numbered: dict[int, str] = {}
    for name in images:
        digits = re.search(r"\d+$", stem(name))
        if digits and subject in posixpath.dirname(name).split("/"):
            if (number := int(digits[0])) in numbered:
                wrong_layout("disfa", folder, f"both {numbered[number]} and {name} are frame {number} of {subject}")
            numbered[number] = name
    first = 0 if 0 in numbered else 1
    found = (numbered.get(frame + first) for frame in range(count))
    return [None if name is None else folder.uri_of(name) for name in found]
