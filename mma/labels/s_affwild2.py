"""s-Aff-Wild2, the multi-task set of the ABAW challenges: one csv a split with all three families.

Layout: PAPER.md, "Frame label sets for stage 1"; no real file of the set could be had here.
"""

from __future__ import annotations

import pyarrow as pa

from mma.labels.reading import FileIndex, is_image, label_set, only_one, shown, tail, wrong_layout
from mma.labels.registry import LayoutError, label_format
from mma.labels.sheet import parse_csv
from mma.labels.source import LabelFolder
from mma.labels.table import GIVEN, LabelSet, label_table

CLASSES = dict(
    enumerate(("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other"))
)  # the set's own numbers, which no order of ours may move
_FILES = {"training_set_annotations.txt": "train", "validation_set_annotations.txt": "val"}
_COLUMNS = ("image", "valence", "arousal", "expression")


@label_format(
    "s-affwild2",
    "training_set_annotations.txt (image,valence,arousal,expression,AU1,...,AU26), with or without "
    "validation_set_annotations.txt, and the images <video>/00001.jpg, anywhere below it",
)
def read(folder: LabelFolder, file: str) -> LabelSet:
    """Classes are numbered in ABAW's order; a video's name is its subject."""
    names = [each.name for each in folder.walk()]
    index = FileIndex(folder, filter(is_image, names), prefer="cropped_aligned")
    tables = []
    for base, split in _FILES.items():
        found = [name for name in names if tail(name, 1) == base]
        if not found and split == "val":
            continue
        tables.append(_table(folder, only_one("s-affwild2", folder, found, base), split, index))
    return label_set("s-affwild2", folder, pa.concat_tables(tables))


def _table(folder: LabelFolder, name: str, split: str, index: FileIndex) -> pa.Table:
    sheet = parse_csv(folder.read(name), shown(folder, name), wanted=_COLUMNS)
    if lacking := [each for each in _COLUMNS if each not in sheet.columns]:
        wrong_layout("s-affwild2", folder, f"{name} lacks the column {' and '.join(lacking)}")
    if not sheet.action_units:
        wrong_layout("s-affwild2", folder, f"{name} has no columns of action units")
    images = [tail(each, 2) for each in sheet.text("image")]
    for row, image in enumerate(images):
        if image.count("/") != 1:
            raise LayoutError(f"{sheet.where(row)}: the image is {image!r}; expected <video>/00001.jpg")
    return label_table(
        {
            "source": pa.array(index.uris(images), pa.string()),
            "split": pa.repeat(split, len(images)),
            "subject": [image.split("/")[0] for image in images],
            "crop": pa.repeat(GIVEN, len(images)),
            **sheet.valence_arousal(unknown=-5),
            "expression": sheet.classes("expression", CLASSES, unknown=[-1]),
            **sheet.occurrences(unknown=[-1]),
        }
    )
