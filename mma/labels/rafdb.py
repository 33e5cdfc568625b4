"""RAF-DB, its single-label part: one list of image names and class numbers, from 1.

Layout: PAPER.md, "Frame label sets for stage 1"; no real file of the set could be had here. The compound part has other
classes under the same numbers, so a list below a folder `compound` is never taken.
"""

from __future__ import annotations

from mma.labels.reading import label_set, only_one, shown, wrong_layout
from mma.labels.registry import LayoutError, label_format
from mma.labels.source import LabelFolder
from mma.labels.table import CUT, GIVEN, LabelSet, label_table

CLASSES = {
    "1": "surprise",
    "2": "fear",
    "3": "disgust",
    "4": "happiness",
    "5": "sadness",
    "6": "anger",
    "7": "neutral",
}
_LIST = "EmoLabel/list_patition_label.txt"


@label_format("rafdb", f"{_LIST} (train_00001.jpg 5) and Image/aligned/<stem>_aligned.jpg or Image/original/<stem>.jpg")
def read(folder: LabelFolder, file: str) -> LabelSet:
    """The aligned crops, where the folder has any; else the originals, to be cut."""
    listed = {each.name for each in folder.walk()}
    lists = sorted(
        name for name in listed if f"/{name}".endswith(f"/{_LIST}") and "compound" not in name.lower().split("/")
    )
    name = only_one("rafdb", folder, lists, _LIST)
    images = f"{name.removesuffix(_LIST)}Image/"
    aligned = any(each.startswith(f"{images}aligned/") for each in listed)
    pattern = f"{images}aligned/{{}}_aligned.jpg" if aligned else f"{images}original/{{}}.jpg"

    sources, splits, classes = [], [], []
    for number, line in enumerate(folder.read(name).decode("utf-8-sig", "replace").splitlines(), 1):
        match line.split():
            case []:
                continue
            case [image, label] if label in CLASSES and image.startswith(("train_", "test_")):
                path = pattern.format(image.removesuffix(".jpg"))
                sources.append(folder.uri_of(path) if path in listed else None)
                splits.append(image.split("_")[0])
                classes.append(CLASSES[label])
            case _:
                raise LayoutError(
                    f"{shown(folder, name)}, line {number}: {line!r}; expected train_<n>.jpg or test_<n>.jpg "
                    f"and a class, 1 to 7"
                )
    if not classes:
        wrong_layout("rafdb", folder, f"{name} is empty")
    crops = [GIVEN if aligned else CUT] * len(classes)
    return label_set(
        "rafdb", folder, label_table({"source": sources, "split": splits, "crop": crops, "expression": classes})
    )
