"""Reaction labels in the layouts in which they are handed out, as one table: a row a video, unknown cells NaN.

Columns are found by name, whatever their order; ids are strings that keep their zeros; what is not understood is
refused in one line that names the file, the column and the mend. Layouts: PAPER.md, "Hume-Reaction, as distributed".
No real file of the set could be had here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rnn.reactions import REACTIONS
from rnn.tables import id_column, numbers, plain, read_table, told_columns, video_ids, words

SPLITS = ("train", "val", "test")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel"), "val"),
    "test": "test",
}
EMI = frozenset({"determination", "excitement"})
"""Columns that tell a file of the EMI challenge, some of whose others are reactions as well."""
TOLERANCE = 1e-6
OLDEST_YEARS = 130

Read = Callable[[str], bytes]
"""Gives the content of a file below the labels' folder; raises what the storage raises."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReactionLabels:
    """What is known of N videos.

    Raises ValueError where the parts do not fit each other, an id comes twice, an intensity is outside [0, 1], or a
    subject is on two sides of a split.
    """

    video_ids: tuple[str, ...]
    """Unique; stems of the video files, without brackets."""
    values: npt.NDArray[np.float32]
    """(N, 7) intensities in [0, 1], in the order of `REACTIONS`; NaN where unknown. Read-only."""
    splits: tuple[str | None, ...]
    """train, val, test, or None where the labels say nothing."""
    subjects: tuple[str | None, ...]
    countries: tuple[str | None, ...]
    ages: npt.NDArray[np.float32]
    """(N,) years; NaN where unknown. Read-only."""
    layout: str
    """abaw5, muse2022 or table."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What reading left aside: `columns_left_aside`, `unknown` (reactions without a column), `subjects_without_row`."""

    def __post_init__(self) -> None:
        rows = len(self.video_ids)
        for name, shape in (("values", (rows, len(REACTIONS))), ("ages", (rows,))):
            array = np.array(getattr(self, name))  # a copy: what is made read-only belongs to nobody else
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{name} is {array.dtype} {array.shape} for {rows} videos; expected float32 {shape}")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        for name in ("splits", "subjects", "countries"):
            if len(getattr(self, name)) != rows:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {rows} videos")
        if len(set(self.video_ids)) != rows:
            raise ValueError("an id comes twice in video_ids")
        if not (np.isnan(self.values) | ((self.values >= 0) & (self.values <= 1))).all():
            raise ValueError("values holds an intensity outside [0, 1]")
        if wrong := set(self.splits) - {*SPLITS, None}:
            raise ValueError(f"splits holds {wrong}; expected {', '.join(SPLITS)} or None")
        _demand_separate(self)

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """(N,) whether a row has any known intensity."""
        return np.asarray(~np.isnan(self.values).all(axis=1))

    @property
    def largest_is_1(self) -> float:
        """The share of labelled rows whose largest intensity is 1; of Hume-Reaction's it seems that all are."""
        known = self.values[self.labelled]
        return float((np.nanmax(known, axis=1) >= 1 - TOLERANCE).mean()) if len(known) else 0.0

    def told(self) -> str:
        """One line for people."""
        rows, counts = len(self.video_ids), Counter(self.splits)
        by_split = [f"{counts[name]:,} {name}" for name in SPLITS if counts[name]]
        parts = [f"{rows:,} rows ({', '.join(by_split) or 'no splits'})"]
        if by_split and counts[None]:
            parts.append(f"{counts[None]:,} without a split")
        parts.append(f"{rows - self.labelled.sum():,} without a label")
        parts.append(f"in {self.largest_is_1:.0%} of the others the largest label is 1")
        if lacking := self.subjects.count(None) if any(self.subjects) else 0:
            parts.append(f"{lacking:,} without a subject: each counts as a person")
        if unknown := self.notes.get("unknown"):
            parts.append(f"no column for {', '.join(unknown)}: unknown")
        if aside := self.notes.get("columns_left_aside"):
            parts.append(f"columns left aside: {', '.join(aside)}")
        if extra := self.notes.get("subjects_without_row"):
            parts.append(f"{extra:,} videos of the subjects' table are not among them")
        return f"labels ({self.layout}): {'; '.join(parts)}"


def read_labels(name: str, content: bytes) -> ReactionLabels:
    """One file: `data_info.csv` of ABAW5, or a csv or Parquet table of one's own. `name` stands for it in errors.

    Raises ValueError, in one line.
    """
    table = read_table(name, content)
    abaw5 = {"file id", "split"} <= {plain(column) for column in table.columns}
    return _labels(table, name, "abaw5" if abaw5 else "table")


def read_muse(name: str, read: Read) -> ReactionLabels:
    """The MuSe-2022 layout: `labels.csv` and `partition.csv`, joined by id. Raises ValueError, in one line."""
    labels_name, partition_name = f"{name}/labels.csv", f"{name}/partition.csv"
    labels, partition = read_table(labels_name, read("labels.csv")), read_table(partition_name, read("partition.csv"))
    if partition.shape[1] < 2:
        raise ValueError(f"{partition_name} has the column {told_columns(partition)} alone: id first, partition last")
    ids = video_ids(partition.iloc[:, 0], partition_name)
    splits = pd.DataFrame({"video_id": ids, "split": _splits(partition.iloc[:, -1], partition_name, ids)}, dtype=object)
    of = id_column(labels, labels_name)
    labels = labels.assign(**{of: video_ids(labels[of], labels_name)}).rename(columns={of: "video_id"})
    if len(labels) and not set(labels["video_id"]) & set(ids):
        raise ValueError(
            f"{partition_name} names no video of labels.csv: its first column has {', '.join(ids[:1]) or 'no row'}, "
            f"{of} there {labels['video_id'][0]}"
        )
    own = [column for column in labels.columns if plain(column) in ("split", "partition")]
    # Rows of one file alone count as well: a test video has a partition and, in some copies, no row of labels.
    both = labels.drop(columns=own).merge(splits, on="video_id", how="outer")
    return _labels(both.astype(object).where(both.notna(), None), labels_name, "muse2022")


def read_subjects(name: str, content: bytes) -> dict[str, str]:
    """A table (video_id, subject), csv or Parquet. Raises ValueError, in one line."""
    table = read_table(name, content)
    ids = video_ids(table[id_column(table, name)], name)
    column = next((each for each in table.columns if plain(each) == "subject"), None)
    if column is None:
        raise ValueError(f"{name} has no column subject (it has {told_columns(table)}): name it so")
    return {video: who for video, who in zip(ids, words(table[column])) if who is not None}


def with_subjects(labels: ReactionLabels, subjects: Mapping[str, str]) -> ReactionLabels:
    """The same labels with these subjects over their own; counts those of other videos in the notes.

    Raises ValueError for a subject on two sides of a split, and where no video of the labels has one.
    """
    extra = len(subjects.keys() - set(labels.video_ids))
    if extra == len(subjects) and labels.video_ids:
        raise ValueError(
            f"no video of the labels has a subject: ids are such as {next(iter(subjects), 'none at all')!r} with the "
            f"subjects and {labels.video_ids[0]!r} with the labels; name the videos alike"
        )
    found = tuple(subjects.get(video, own) for video, own in zip(labels.video_ids, labels.subjects))
    return replace(labels, subjects=found, notes={**labels.notes, "subjects_without_row": extra})


def _demand_separate(labels: ReactionLabels) -> None:
    """With a subject on two sides of a split, every score would be of people already seen."""
    seen: dict[str, tuple[str, str]] = {}
    for video, split, who in zip(labels.video_ids, labels.splits, labels.subjects):
        if split is None or who is None:
            continue
        other, first = seen.setdefault(who, (split, video))
        if other != split:
            raise ValueError(
                f"subject {who!r} is in {other} (video {first}) and in {split} (video {video}): a person may be on one "
                "side of a split alone; move their videos"
            )


def _labels(table: pd.DataFrame, name: str, layout: str) -> ReactionLabels:
    by_name = {plain(column): column for column in table.columns}
    if by_name.keys() >= EMI:
        raise ValueError(
            f"{name} holds the six emotions of the EMI challenge (Admiration, Amusement, Determination, Empathic Pain, "
            f"Excitement, Joy), not the 7 reactions {', '.join(REACTIONS)}: give the labels of Hume-Reaction"
        )
    id_name = id_column(table, name)
    ids = video_ids(table[id_name], name)
    columns = {each: by_name.get(plain(each)) for each in REACTIONS}
    if not any(columns.values()):
        raise ValueError(
            f"{name} has none of the columns {', '.join(REACTIONS)} (it has {told_columns(table)}): name them so"
        )
    rule = "intensities lie in [0, 1]: scale the column, or leave the cell empty where it is unknown"
    values = np.full((len(ids), len(REACTIONS)), np.nan)
    for place, column in enumerate(columns.values()):
        if column is not None:
            values[:, place] = numbers(table[column], name, ids, low=-TOLERANCE, high=1 + TOLERANCE, rule=rule)

    nothing = pd.Series([None] * len(ids), dtype=object)
    split, subject, country, age = (
        next((by_name[each] for each in names if each in by_name), None)
        for names in (("split", "partition"), ("subject",), ("country",), ("age",))
    )
    cells = {column: table[column] for column in (split, subject, country, age) if column is not None}
    used = {id_name, *cells, *filter(None, columns.values())}
    years = f"give years from 0 to {OLDEST_YEARS}, or leave the cell empty"
    ages = numbers(cells.get(age, nothing), name, ids, low=0, high=OLDEST_YEARS, rule=years)
    return ReactionLabels(
        video_ids=tuple(ids),
        values=np.clip(values, 0.0, 1.0).astype(np.float32),
        splits=tuple(_splits(cells.get(split, nothing), name, ids)),
        subjects=tuple(words(cells.get(subject, nothing))),
        countries=tuple(words(cells.get(country, nothing))),
        ages=ages.astype(np.float32),
        layout=layout,
        notes={
            # A made corpus's truth is no column of anybody else's.
            "columns_left_aside": [
                each for each in table.columns if each not in used and not each.startswith(("felt_", "shown_"))
            ],
            "unknown": [reaction for reaction, column in columns.items() if column is None],
        },
    )


def _splits(cells: pd.Series, name: str, ids: list[str]) -> list[str | None]:
    given = words(cells)
    for video, word in zip(ids, given):
        if word is not None and word.lower() not in SPLIT_WORDS:
            raise ValueError(f"{name}: {cells.name} of {video} is {word[:40]}; give Train, Val or Test")
    return [None if word is None else SPLIT_WORDS[word.lower()] for word in given]
