"""The label formats by name. An importer registers itself with its layout, which errors quote."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from mma.labels.source import LabelFolder
from mma.labels.table import LabelSet

MODULES = {
    "affwild2": "affwild2",
    "s-affwild2": "s_affwild2",
    "affectnet": "affectnet",
    "rafdb": "rafdb",
    "emotionet": "emotionet",
    "disfa": "disfa",
    "bp4d": "bp4d",
    "synth": "synth",
    "frames": "frames",
}
"""Format -> its module in `mma.labels`."""


class LayoutError(ValueError):
    """A folder is not laid out as its format says; the message names the path and what was expected there."""


Reader = Callable[[LabelFolder, str], LabelSet]
"""The folder, and the file in it that the user named, "" where they named the folder."""


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """One format and its importer."""

    name: str
    layout: str
    """What is expected in the folder, in one line."""
    read: Reader
    takes_file: bool
    """Whether the user may name one file (a table) instead of the folder."""


FORMATS: dict[str, LabelFormat] = {}
"""Filled as the modules are imported (`label_format`)."""


def label_format(name: str, layout: str, *, takes_file: bool = False) -> Callable[[Reader], Reader]:
    """Registers an importer under the format's name: `@label_format("rafdb", "EmoLabel/...")`."""

    def register(read: Reader) -> Reader:
        FORMATS[name] = LabelFormat(name=name, layout=layout, read=read, takes_file=takes_file)
        return read

    return register


def read_labels(name: str, folder: LabelFolder, file: str = "") -> LabelSet:
    """The labels in a folder (or in one file of it). Raises ValueError for an unknown format, LayoutError for another
    layout."""
    if name not in FORMATS:
        raise ValueError(f"no label format is called {name!r}; there are {', '.join(MODULES)}")
    known = FORMATS[name]
    if file and not known.takes_file:
        raise LayoutError(f"{folder.display}/{file} is a file; {name} is read from its folder: {known.layout}")
    return known.read(folder, file)


for _module in MODULES.values():
    importlib.import_module(f"mma.labels.{_module}")
