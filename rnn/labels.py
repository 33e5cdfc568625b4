"""Reaction labels in the layouts in which they are handed out, as one table: a row a video, unknown cells NaN.

Columns are found by name, whatever their order; ids are strings that keep their zeros; what is not understood is
refused in one line that names the file, the column and the mend. Layouts: PAPER.md, "Hume-Reaction, as distributed".
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from rnn.reactions import REACTIONS

SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel"), "val"),
    "test": "test",
}
ID_NAMES = ("video_id", "file_id", "id")
EMI = frozenset({"admiration", "amusement", "determination", "empathic pain", "excitement", "joy"})
"""The columns of another challenge, whose file looks like one of these."""
TOLERANCE = 1e-6

Read = Callable[[str], bytes]
"""Gives the content of a file below the labels' folder; raises FileNotFoundError."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReactionLabels:
    """What is known of N videos."""

    video_ids: tuple[str, ...]
    """Unique; stems of the video files, without brackets."""
    values: npt.NDArray[np.float32]
    """(N, 7) intensities in [0, 1], in the order of `REACTIONS`; NaN where unknown."""
    splits: tuple[str | None, ...]
    """train, val, test, or None where the labels say nothing."""
    subjects: tuple[str | None, ...]
    countries: tuple[str | None, ...]
    ages: npt.NDArray[np.float32]
    """(N,) years; NaN where unknown."""
    layout: str
    """abaw5, muse2022 or table."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Worth telling: `rows`, `without_label`, `largest_is_1` (a share), `columns_left_aside`, `unknown`."""

    def told(self) -> str:
        """One line for people."""
        notes = self.notes
        parts = [f"{notes['rows']:,} rows", f"{notes['without_label']:,} without a label"]
        parts.append(f"in {notes['largest_is_1']:.0%} of the others the largest label is 1")
        if notes["unknown"]:
            parts.append(f"no column for {', '.join(notes['unknown'])}: unknown")
        if notes["columns_left_aside"]:
            parts.append(f"columns left aside: {', '.join(notes['columns_left_aside'])}")
        return f"labels ({self.layout}): {'; '.join(parts)}"


def read_labels(name: str, content: bytes) -> ReactionLabels:
    """One file: `data_info.csv` of ABAW5, or a csv or Parquet table of one's own. `name` stands for it in errors.

    Raises ValueError, in one line.
    """
    table = read_table(name, content)
    layout = "abaw5" if "file_id" in (column.lower() for column in table.columns) else "table"
    return _labels(table, name, layout)


def read_muse(name: str, read: Read) -> ReactionLabels:
    """The MuSe-2022 layout: `labels.csv` and `partition.csv`, joined by id. Raises ValueError, in one line."""
    labels = read_table(f"{name}/labels.csv", read("labels.csv"))
    partition = read_table(f"{name}/partition.csv", read("partition.csv"))
    if partition.shape[1] < 2:
        raise ValueError(f"{name}/partition.csv has {partition.shape[1]} columns: the id first, the partition last")
    pairs = pd.DataFrame({"video_id": _ids(partition.iloc[:, 0]), "split": partition.iloc[:, -1]})
    _demand_unique(pairs["video_id"], f"{name}/partition.csv")
    id_name = _id_column(labels, f"{name}/labels.csv")
    labels = labels.assign(**{id_name: _ids(labels[id_name])})
    _demand_unique(labels[id_name], f"{name}/labels.csv")
    both = labels.merge(pairs, left_on=id_name, right_on="video_id", how="outer", suffixes=("", " "))
    # Rows of one file alone count as well: a test video has a partition and, in some copies, no row of labels.
    both["video_id"] = both["video_id"].fillna(both[id_name])
    return _labels(both.drop(columns=[id_name] if id_name != "video_id" else []), f"{name}/labels.csv", "muse2022")


def read_subjects(name: str, content: bytes) -> dict[str, str]:
    """A table (video_id, subject), csv or Parquet. Raises ValueError, in one line."""
    table = read_table(name, content)
    id_name = _id_column(table, name)
    column = next((each for each in table.columns if each.lower() == "subject"), None)
    if column is None:
        raise ValueError(f"{name} has no column subject (it has {', '.join(table.columns)})")
    ids = _ids(table[id_name])
    _demand_unique(ids, name)
    return {video: str(who).strip() for video, who in zip(ids, table[column]) if _given(who)}


def with_subjects(labels: ReactionLabels, subjects: Mapping[str, str]) -> ReactionLabels:
    """The same labels with these subjects over their own. Raises ValueError for one on two sides of a split."""
    found = tuple(subjects.get(video, own) for video, own in zip(labels.video_ids, labels.subjects))
    changed = replace(labels, subjects=found)
    demand_separate(changed)
    return changed


def demand_separate(labels: ReactionLabels) -> None:
    """Raises ValueError for a subject on two sides of a split: every score would be of people already seen."""
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


def read_table(name: str, content: bytes) -> pd.DataFrame:
    """A csv, all cells as text, or a Parquet file. Raises ValueError where it is neither."""
    try:
        if content[:4] == b"PAR1":
            return pd.read_parquet(io.BytesIO(content)).rename(columns=lambda each: str(each).strip())
        table = pd.read_csv(io.BytesIO(content), dtype=str, skipinitialspace=True, keep_default_na=False)
    except (ValueError, OSError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise ValueError(
            f"{name} is neither a csv table nor a Parquet file ({' '.join(str(error).split())[:120]})"
        ) from None
    return table.rename(columns=lambda each: str(each).strip().strip('"'))


def _labels(table: pd.DataFrame, name: str, layout: str) -> ReactionLabels:
    lower = {column.lower().replace("-", " ").replace("_", " "): column for column in table.columns}
    if EMI & set(lower) >= EMI or {"determination", "excitement"} <= set(lower):
        raise ValueError(
            f"{name} holds the six emotions of the EMI challenge (Admiration, Amusement, Determination, Empathic Pain, "
            f"Excitement, Joy), not the 7 reactions {', '.join(REACTIONS)}: give the labels of Hume-Reaction"
        )
    id_name = _id_column(table, name)
    ids = _ids(table[id_name])
    empty = np.flatnonzero([not each for each in ids])
    if len(empty):
        raise ValueError(f"{name}: row {empty[0] + 1} has no id in the column {id_name}")
    _demand_unique(ids, name)
    columns = {each: lower.get(each.lower().replace("-", " ")) for each in REACTIONS}
    if not any(columns.values()):
        raise ValueError(f"{name} has none of the columns {', '.join(REACTIONS)} (it has {', '.join(table.columns)})")
    values = np.full((len(table), len(REACTIONS)), np.nan, np.float32)
    for place, reaction in enumerate(REACTIONS):
        if (column := columns[reaction]) is not None:
            values[:, place] = _intensities(table[column], name, column, ids)

    def text(*names: str) -> tuple[str | None, ...]:
        column = next((lower[each] for each in names if each in lower), None)
        cells = [None] * len(table) if column is None else table[column]
        return tuple(str(cell).strip() if _given(cell) else None for cell in cells)

    used = {id_name, *filter(None, columns.values())}
    used |= {lower[each] for each in ("split", "partition", "subject", "country", "age") if each in lower}
    aside = [column for column in table.columns if column not in used and not column.startswith(("felt_", "shown_"))]
    labelled = ~np.isnan(values).all(axis=1)
    largest = np.nanmax(values[labelled], axis=1) if labelled.any() else np.empty(0)
    labels = ReactionLabels(
        video_ids=tuple(ids),
        values=values,
        splits=tuple(_split(word, name, video) for word, video in zip(text("split", "partition"), ids)),
        subjects=text("subject"),
        countries=text("country"),
        ages=np.array([_age(cell, name, video) for cell, video in zip(text("age"), ids)], np.float32),
        layout=layout,
        notes={
            "rows": len(table),
            "without_label": int((~labelled).sum()),
            "largest_is_1": float((largest >= 1 - TOLERANCE).mean()) if len(largest) else 0.0,
            "columns_left_aside": aside,
            "unknown": [reaction for reaction, column in columns.items() if column is None],
        },
    )
    values.setflags(write=False)
    demand_separate(labels)
    return labels


def _id_column(table: pd.DataFrame, name: str) -> str:
    found = next((column for each in ID_NAMES for column in table.columns if column.lower() == each), None)
    if found is None:
        raise ValueError(
            f"{name} has no column of ids: name it File_ID or video_id (it has {', '.join(table.columns)})"
        )
    return str(found)


def _ids(cells: Any) -> pd.Series:
    return pd.Series(
        ["" if not _given(cell) else str(cell).strip().strip("[]").strip() for cell in cells], dtype=object
    )


def _demand_unique(ids: pd.Series, name: str) -> None:
    twice = ids[ids.duplicated()]
    if len(twice):
        rows = np.flatnonzero(ids == twice.iloc[0])[:2] + 1
        raise ValueError(
            f"{name} has the id {twice.iloc[0]!r} twice, in rows {rows[0]} and {rows[1]}: keep one of them"
        )


def _given(cell: Any) -> bool:
    return cell is not None and cell == cell and str(cell).strip().lower() not in ("", "nan", "none", "null")


def _intensities(cells: Any, name: str, column: str, ids: pd.Series) -> npt.NDArray[np.float32]:
    values = np.full(len(ids), np.nan)
    for row, cell in enumerate(cells):
        if not _given(cell):
            continue
        try:
            values[row] = float(cell)
        except ValueError:
            raise ValueError(f"{name}: {column} of {ids[row]} is {str(cell)[:40]!r}, not a number") from None
        if not -TOLERANCE <= values[row] <= 1 + TOLERANCE:
            raise ValueError(
                f"{name}: {column} of {ids[row]} is {values[row]:g}; intensities lie in [0, 1]: scale the column, or "
                "leave the cell empty where it is unknown"
            )
    return np.clip(values, 0.0, 1.0).astype(np.float32)


def _split(word: str | None, name: str, video: str) -> str | None:
    if word is None:
        return None
    if word.lower() not in SPLIT_WORDS:
        raise ValueError(f"{name}: the split of {video} is {word[:40]!r}: give Train, Val or Test")
    return SPLIT_WORDS[word.lower()]


def _age(cell: str | None, name: str, video: str) -> float:
    try:
        return float("nan") if cell is None else float(cell)
    except ValueError:
        raise ValueError(f"{name}: the Age of {video} is {cell[:40]!r}, not a number" if cell else name) from None
