"""Label sets in the layouts of PAPER.md, "Frame label sets for stage 1", in a few bytes: no importer reads a pixel."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Folder
from mma.labels import LabelSet, read_labels

ABAW_CLASSES = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other"
TASKS = {"VA": "VA_Estimation", "EXPR": "EXPR_Classification", "AU": "AU_Detection"}
LANDMARKS = [(float(k), 100.0 + k) for k in range(68)]
"""68 landmarks that tell their own numbers."""


def touch(folder: Path, *names: str) -> None:
    """Files of one byte."""
    for name in names:
        write(folder / name, "x")


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_lines(path: Path, lines: Iterable[object], end: str = "\n") -> Path:
    return write(path, "".join(f"{line}{end}" for line in lines))


def imported(form: str, folder: Path, file: str = "") -> LabelSet:
    return read_labels(form, Folder(str(folder)), file)


def rows(labels: LabelSet, *columns: str) -> list[Any]:
    """Rows by `source` below the folder that all have in common, as its last two parts; one column gives bare values."""
    found = []
    for row in labels.table.to_pylist():
        key = "/".join(row["source"].split("/")[-2:])
        found.append((key if row["frame"] is None else (key, row["frame"]), *(row[name] for name in columns)))
    return found


def by_image(labels: LabelSet, column: str) -> dict[Any, Any]:
    """Image, or video and frame -> the value of one column."""
    return dict(rows(labels, column))


def known(labels: LabelSet, row: int = 0) -> dict[str, Any]:
    """The descriptors that are known of a row."""
    values = labels.table.slice(row, 1).to_pylist()[0]
    head = ("source", "frame", "split", "subject", "crop", "box", "points")
    return {name: value for name, value in values.items() if value is not None and name not in head}


def abaw_task(
    folder: Path,
    task: str,
    video: str,
    lines: Sequence[object],
    *,
    header: str,
    split: str = "Train",
    above: str = "Third ABAW Annotations/",
) -> Path:
    name = f"{above}{TASKS.get(task, task)}_Challenge/{split}_Set/{video}.txt"
    return write_lines(folder / name, [header, *lines])


def abaw_crops(folder: Path, video: str, numbers: Iterable[int], *, above: str = "batch1/cropped_aligned/") -> None:
    touch(folder, *(f"{above}{video}/{number:05d}.jpg" for number in numbers))


def affectnet_2021(folder: Path, values: Mapping[str, tuple[object, object, object]], split: str = "train") -> None:
    """Id -> (exp, val, aro), as string scalars."""
    for name, triple in values.items():
        at = folder / f"{split}_set/annotations/{name}"
        at.parent.mkdir(parents=True, exist_ok=True)
        for end, value in zip(("exp", "val", "aro"), triple):
            np.save(f"{at}_{end}.npy", np.array(str(value)))
        np.save(f"{at}_lnd.npy", np.zeros(136))
        touch(folder, f"{split}_set/images/{name}.jpg")


AFFECTNET_HEADER = (
    "subDirectory_filePath,face_x,face_y,face_width,face_height,facial_landmarks,expression,valence,arousal"
)


def affectnet_row(path: str, expression: object, valence: object = 0.1, arousal: object = 0.2) -> str:
    points = ";".join(f"{x};{y}" for x, y in LANDMARKS)
    return f"{path},10,20,30,40,{points},{expression},{valence},{arousal}"


def rafdb(folder: Path, lines: Sequence[str], *, images: str = "aligned") -> None:
    write_lines(folder / "basic/EmoLabel/list_patition_label.txt", lines)
    for line in lines:
        stem = line.split(".")[0]
        touch(folder, f"basic/Image/{images}/{stem}{'_aligned' if images == 'aligned' else ''}.jpg")


def disfa(folder: Path, subject: str, units: Mapping[int, Sequence[int]]) -> None:
    """Action unit -> intensities of frames 1, 2, ..."""
    for unit, values in units.items():
        lines = [f"{frame},{value}" for frame, value in enumerate(values, 1)]
        write_lines(folder / f"ActionUnit_Labels/{subject}/{subject}_au{unit}.txt", lines)


def bp4d(folder: Path, task: str, header: str, lines: Sequence[str]) -> None:
    write_lines(folder / f"AUCoding/AU_OCC/{task}.csv", [header, *lines], end="\r\n")


def synth(folder: Path, *, clips: Sequence[str] = ("train/mp4/00000.mp4", "val/mp4/00001.mp4")) -> Path:
    """Three rows of two videos with truth beside; gives the path of frames.parquet."""
    from mma.descriptors import MMA26

    table: dict[str, Any] = {
        "video_id": ["00000", "00000", "00001"],
        "frame": pa.array([0, 3, 0], pa.int32()),
        "time_s": [0.0, 0.25, 0.0],
        "subject": ["s1", "s1", "s2"],
        "split": ["Train", "Train", "Val"],
        "valence": [0.5, -0.5, 0.0],
        "arousal": [0.1, 0.2, 0.3],
        "expression": ["happiness", None, "fear"],
        **{name: pa.array([1.0, None, 0.0], pa.float32()) for name in MMA26.action_units},
        **{f"true_{name}": [0.25, 0.5, 0.75] for name in MMA26.names},
        "true_expression": ["anger", "anger", "anger"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / "frames.parquet")
    touch(folder, *clips)
    return folder / "frames.parquet"
