"""Csv as the sets write it, and its cells as values: each within its range, a documented "unknown", or refused.

A `Sheet` keeps where each row is from, so that a value no set documents is named by file and line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from mma.descriptors import action_unit_name
from mma.labels.registry import LayoutError
from mma.labels.table import ACTION_UNITS

Values = npt.NDArray[np.float64]

_ACTION_UNIT = re.compile(r"^AU\s*0*(\d+)$", re.IGNORECASE)


def column_name(header: str) -> str:
    """The name by which importers look a column up: without blanks and quotes, in lower case, action units as `AU01`.

    `"'AU 1'"`, `AU1` and `AU01` are one name; `AU1_intensity` is none of an action unit.
    """
    plain = header.strip(" \t'\"")
    unit = _ACTION_UNIT.match(plain)
    return action_unit_name(int(unit[1])) if unit else plain.lower()


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Columns of one length by `column_name`, as text or, where a file has types, as numbers."""

    place: str
    """The file, as errors show it."""
    columns: Mapping[str, pa.ChunkedArray]
    where: Callable[[int], str]
    """Row -> where it stands, for errors."""

    @property
    def num_rows(self) -> int:
        """Rows without the header."""
        return len(next(iter(self.columns.values())))

    @property
    def action_units(self) -> list[str]:
        """The columns of action units that some descriptor set has."""
        return [name for name in ACTION_UNITS if name in self.columns]

    def text(self, name: str) -> list[str]:
        """Cells without blanks around them, "" where empty."""
        column = self.columns[name].cast(pa.string())
        return pc.utf8_trim_whitespace(pc.fill_null(column, "")).to_pylist()

    def refused(self, name: str, row: int, expected: str) -> LayoutError:
        """The error that names the cell."""
        value = self.columns[name][row].as_py()
        return LayoutError(f"{self.where(row)}: {name} is {value!r}; expected {expected}")

    def numbers(self, name: str) -> Values:
        """Float64, NaN where a cell is empty or says NaN."""
        column = self.columns[name]
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            plain = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(plain, ""), pa.scalar(None, plain.type), plain)
        try:
            return pc.fill_null(column.cast(pa.float64()), np.nan).to_numpy()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            for row, cell in enumerate(column.to_pylist()):
                try:
                    float(cell or 0)
                except (TypeError, ValueError):
                    raise self.refused(name, row, "a number") from error
            raise LayoutError(f"{self.place}: column {name} holds no numbers: {error}") from error

    def within(
        self, name: str, low: float, high: float, *, unknown: Sequence[float] = (), blank: bool = False
    ) -> Values:
        """Numbers from low to high, NaN where unknown: one of the markers or, if `blank`, an empty cell."""
        values = self.numbers(name)
        good = (values >= low) & (values <= high)
        return self._known(name, values, good, unknown, blank, f"{low:g} to {high:g}")

    def one_of(
        self, name: str, allowed: Sequence[int], *, unknown: Sequence[float] = (), blank: bool = False
    ) -> Values:
        """As `within`, of a few whole numbers."""
        values = self.numbers(name)
        expected = "one of " + ", ".join(map(str, allowed))
        return self._known(name, values, np.isin(values, allowed), unknown, blank, expected)

    def _known(
        self,
        name: str,
        values: Values,
        good: npt.NDArray[np.bool_],
        unknown: Sequence[float],
        blank: bool,
        expected: str,
    ) -> Values:
        marked = np.isin(values, unknown) | (blank & np.isnan(values))
        bad = ~(good | marked)
        if bad.any():
            markers = [*(f"{each:g}" for each in unknown), *(["an empty cell"] if blank else [])]
            expected += f", or {' or '.join(markers)} for unknown" if markers else ""
            raise self.refused(name, int(np.argmax(bad)), expected)
        return np.where(marked, np.nan, values)

    def valence_arousal(self, *, unknown: float) -> dict[str, Values]:
        """Both columns; the marker in one makes both unknown."""
        pair = [self.within(name, -1.0, 1.0, unknown=[unknown]) for name in ("valence", "arousal")]
        either = np.isnan(pair[0]) | np.isnan(pair[1])
        return {name: np.where(either, np.nan, values) for name, values in zip(("valence", "arousal"), pair)}

    def occurrences(self, *, unknown: Sequence[float] = (), blank: bool = False) -> dict[str, Values]:
        """The columns of action units, 0 or 1."""
        return {name: self.one_of(name, (0, 1), unknown=unknown, blank=blank) for name in self.action_units}

    def classes(self, name: str, names: Mapping[int, str], *, unknown: Sequence[int] = ()) -> pa.Array:
        """The names of a column of class numbers; null for those in `unknown`."""
        return class_names(self.one_of(name, sorted(names), unknown=unknown), names)


def class_names(numbers: Values, names: Mapping[int, str]) -> pa.Array:
    """Class numbers by their names, null for NaN."""
    known = ~np.isnan(numbers)
    positions = np.searchsorted(sorted(names), np.where(known, numbers, min(names))).astype(np.int32)
    by_number = pa.array([names[number] for number in sorted(names)])
    return pa.DictionaryArray.from_arrays(pa.array(positions, mask=~known), by_number).cast(pa.string())


def header_of(data: bytes, place: str) -> list[str]:
    """The cells of a csv's first line."""
    first = data.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0]
    try:
        return next(csv.reader([first.decode().rstrip("\r")]), [])
    except UnicodeDecodeError as error:
        raise LayoutError(f"{place}, line 1: {error}") from error


def parse_csv(
    data: bytes,
    place: str,
    *,
    wanted: Collection[str] = (),
    header: Sequence[str] | None = None,
    headless: bool = False,
) -> Sheet:
    """The columns of a csv that are wanted by name, and those of action units.

    `header` stands in for a first line that does not name the columns, or that is not there (`headless`). A row that is
    not as long as the header, or two wanted columns of one name, is a LayoutError. Empty lines are rows, since rows
    may be counted; only those at the end are not.
    """
    names = [column_name(each) for each in (header_of(data, place) if header is None else header)]
    used = [k for k, name in enumerate(names) if name in wanted or name in ACTION_UNITS]
    for k in used:
        if names.count(names[k]) > 1:
            raise LayoutError(f"{place}: two columns are called {names[k]}; remove one")
    body = data.rstrip(b"\r\n") + b"\n"
    keys = [str(k) for k in range(len(names))]
    skipped = 0 if headless else 1
    if not used or not body.strip() or body.count(b"\n") <= skipped:
        return Sheet(
            place=place,
            columns={names[k]: pa.chunked_array([], pa.string()) for k in used},
            where=lambda row: place,
        )
    try:
        table = pa_csv.read_csv(
            io.BytesIO(body),
            read_options=pa_csv.ReadOptions(use_threads=False, skip_rows=skipped, column_names=keys),
            parse_options=pa_csv.ParseOptions(ignore_empty_lines=False),
            convert_options=pa_csv.ConvertOptions(
                column_types={keys[k]: pa.string() for k in used}, include_columns=[keys[k] for k in used]
            ),
        )
    except pa.ArrowInvalid as error:
        raise LayoutError(f"{place}: {' '.join(str(error).split())}") from error
    return Sheet(
        place=place,
        columns={names[k]: table[keys[k]] for k in used},
        where=lambda row: f"{place}, line {row + 1 + skipped}",
    )
