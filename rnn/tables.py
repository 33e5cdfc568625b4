"""Small tables of videos, csv or Parquet, as text under their columns' names; nothing is guessed about a cell.

A number read as a number would lose the zeros of an id, and a row with a cell too many would shift its columns: so all
cells stay text, and rows that do not fit their header are refused.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ID_NAMES = ("video_id", "file_id", "id")
"""Columns of ids, in lower case, the first that a table has."""
UNKNOWN_WORDS = ("", "nan", "na", "n/a", "<na>", "none", "null")
"""Cells, in lower case, that say nothing: what pandas, R and databases write where a value is missing."""

Cells = Sequence[str | None]

_SHOWN = 12


def read_table(name: str, content: bytes) -> pd.DataFrame:
    """Cells as str, None where a Parquet file has a null; columns in the file's order, blanks around their names cut.

    Raises ValueError where it is neither csv nor Parquet, where a row does not fit the header, and where two columns
    have one name.
    """
    header, columns = (_parquet if content[:4] == b"PAR1" else _csv)(name, content)
    places: dict[str, int] = {}
    for place, each in enumerate(header):
        if (first := places.setdefault(plain(each), place)) != place:
            raise ValueError(f"{name} has two columns of one name, {header[first]!r} and {each!r}: keep one of them")
    return pd.DataFrame({each: pd.Series(cells, dtype=object) for each, cells in zip(header, columns)})


def plain(column: str) -> str:
    """The form in which names of columns are compared: `Empathic-Pain`, `empathic_pain` and `Empathic Pain` are one."""
    return " ".join(column.lower().replace("-", " ").replace("_", " ").split())


def told_columns(table: pd.DataFrame) -> str:
    """Its columns, for errors."""
    names = [str(each)[:40] for each in table.columns]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def id_column(table: pd.DataFrame, name: str) -> str:
    """The column of ids. Raises ValueError if there is none."""
    found = next((column for each in ID_NAMES for column in table.columns if column.lower() == each), None)
    if found is None:
        raise ValueError(f"{name} has no column of ids: name it File_ID or video_id (it has {told_columns(table)})")
    return str(found)


def video_ids(cells: pd.Series, name: str) -> list[str]:
    """Ids without the brackets around them. Raises ValueError for a row without an id, and for one that comes twice."""
    ids = [bare_id(cell or "") for cell in cells]
    rows: dict[str, int] = {}
    for row, each in enumerate(ids, start=1):
        if not each:
            raise ValueError(f"{name}: row {row} has no id in the column {cells.name}: give it one, or cut the row")
        if (first := rows.setdefault(each, row)) != row:
            raise ValueError(f"{name} has the id {each!r} twice, in rows {first} and {row}: keep one of them")
    return ids


def bare_id(word: str) -> str:
    """`[00000]` as ABAW5 writes it is 00000; a bracket that is part of an id, as in `clip[1]`, stays."""
    word = word.strip()
    return word[1:-1].strip() if word.startswith("[") and word.endswith("]") else word


def words(cells: pd.Series) -> list[str | None]:
    """Cells without blanks around them, None where they say nothing (`UNKNOWN_WORDS`)."""
    trimmed = ["" if cell is None else cell.strip() for cell in cells]
    return [None if cell.lower() in UNKNOWN_WORDS else cell for cell in trimmed]


def numbers(
    cells: pd.Series, name: str, ids: Sequence[str], *, low: float, high: float, rule: str
) -> npt.NDArray[np.float64]:
    """float64 (N,), NaN where a cell says nothing. Raises ValueError naming the first that is no number from low to
    high, with the rule that it breaks."""
    given = pd.Series(words(cells), dtype=object)
    values = pd.to_numeric(given, errors="coerce").to_numpy(np.float64)
    bad = given.notna().to_numpy() & ~((values >= low) & (values <= high))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"{name}: {cells.name} of {ids[row]} is {given[row][:40]}; {rule}")
    return values


def _parquet(name: str, content: bytes) -> tuple[list[str], list[Cells]]:
    # By pyarrow and not pandas, which hides a column that was an index and gives some columns types of its own.
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{name} is no whole Parquet file ({_one_line(error)}): fetch or save it again") from error
    return [each.strip() for each in table.column_names], [
        [None if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns
    ]


def _csv(name: str, content: bytes) -> tuple[list[str], list[Cells]]:
    rows: list[list[str]] = []
    try:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), skipinitialspace=True, strict=True)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            while rows and len(row) > len(rows[0]) and not row[-1].strip():  # a comma at the end of every row
                row.pop()
            if rows and len(row) != len(rows[0]):
                raise ValueError(
                    f"{name}: line {reader.line_num} has {len(row)} cells under a header of {len(rows[0])}: the file "
                    "is cut short, has a comma too many, or is no csv"
                )
            rows.append(row)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{name} is neither a csv table in UTF-8 nor a Parquet file ({_one_line(error)}): save it as one"
        ) from error
    if not rows:
        raise ValueError(f"{name} is empty: give a csv or Parquet table")
    header, columns = [each.strip() for each in rows[0]], list(zip(*rows[1:])) or [()] * len(rows[0])
    # A column without a name is the row numbers that pandas writes, or what a comma at the header's end leaves.
    named = [place for place, each in enumerate(header) if each]
    return [header[place] for place in named], [columns[place] for place in named]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]
