"""What the importers share: where images lie, by the ends of their paths, and how a `LabelSet` comes about.

A row whose image a listing lacks has no `source`; `label_set` drops it and counts it, so that no importer shifts rows.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from mma.labels.registry import FORMATS, LayoutError
from mma.labels.source import LabelFolder
from mma.labels.table import LabelSet, drop_unlabelled

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")


def is_image(name: str) -> bool:
    """Whether a file's name is that of an image."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_video(name: str) -> bool:
    """Whether a file's name is that of a video."""
    return name.lower().endswith(VIDEO_SUFFIXES)


def stem(name: str) -> str:
    """The last segment of a path without its ending."""
    return posixpath.splitext(posixpath.basename(name))[0]


def tail(name: str, parts: int) -> str:
    """The last parts of a path, e.g. `video/00001.jpg` for 2."""
    return "/".join(name.split("/")[-parts:])


def last_two(name: str) -> str:
    """`tail` of two parts."""
    return tail(name, 2)


def shown(folder: LabelFolder, name: str) -> str:
    """A file of the folder, as errors show it: one line."""
    return f"{folder.display}/{name if name.isprintable() else ascii(name)}"


def wrong_layout(form: str, folder: LabelFolder, problem: str) -> NoReturn:
    """Raises the LayoutError that quotes the format's layout."""
    raise LayoutError(f"{folder.display}: {problem}; {form} expects {FORMATS[form].layout}")


def only_one(form: str, folder: LabelFolder, names: Sequence[str], what: str) -> str:
    """The one file of those found. LayoutError for none and for several."""
    if not names:
        wrong_layout(form, folder, f"there is no {what} in it")
    if len(names) > 1:
        wrong_layout(form, folder, f"there are several of {what} ({names[0]}, {names[1]}), name the folder of one")
    return names[0]


class FileIndex:
    """Files of a folder by the ends of their paths.

    Where two files have one end, those below a folder called `prefer` are meant; if that does not decide, asking
    for that end is a LayoutError, since the labels belong to one of the two only.
    """

    def __init__(
        self,
        folder: LabelFolder,
        names: Iterable[str],
        *,
        end: Callable[[str], str] = last_two,
        prefer: str = "",
    ):
        self._folder = folder
        self._names: dict[str, str] = {}
        self._twice: dict[str, str] = {}
        preferred: set[str] = set()
        for name in names:
            key = end(name)
            liked = bool(prefer) and prefer in name.split("/")[:-1]
            if key not in self._names or (liked and key not in preferred):
                self._names[key] = name
                self._twice.pop(key, None)
            elif liked or key not in preferred:
                self._twice[key] = name
            if liked:
                preferred.add(key)

    def __contains__(self, key: str) -> bool:
        return key in self._names

    def uri(self, key: str) -> str | None:
        """Where the file lies; None if there is none."""
        if key in self._twice:
            raise LayoutError(
                f"{self._folder.display}: both {self._names[key]} and {self._twice[key]} end in {key}, and the labels "
                f"say no more; keep one of them in the folder"
            )
        name = self._names.get(key)
        return None if name is None else self._folder.uri_of(name)

    def uris(self, keys: Iterable[str]) -> list[str | None]:
        """The same of many."""
        return [self.uri(key) for key in keys]


def label_set(form: str, folder: LabelFolder, table: pa.Table, **notes: int) -> LabelSet:
    """The rows that have a source and a label, the others counted in the notes as `missing` and `unlabelled`.

    LayoutError if rows were read and no image of theirs is there, or if two rows are of one image or frame.
    """
    found = table.filter(pc.is_valid(table["source"]))
    missing = table.num_rows - found.num_rows
    if missing and not found.num_rows:
        wrong_layout(form, folder, f"none of the images or videos of its {missing} rows of labels is there")
    keys = found.select(["source", "frame"]).group_by(["source", "frame"]).aggregate([([], "count_all")])
    if keys.num_rows < found.num_rows:
        source, frame, count = keys.filter(pc.greater(keys["count_all"], 1)).slice(0, 1).to_pylist()[0].values()
        which = f"frame {frame} of {source}" if frame is not None else source
        raise LayoutError(f"{folder.display}: {count} rows of labels are of {which}; keep one")
    kept, unlabelled = drop_unlabelled(found)
    return LabelSet(format=form, table=kept, notes={"missing": missing, "unlabelled": unlabelled, **notes})
