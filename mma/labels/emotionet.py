"""EmotioNet: a table of URLs and action units, whose images somebody has fetched. Nothing is fetched here.

Layout: PAPER.md, "Frame label sets for stage 1"; no real file of the set could be had here.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from urllib.parse import unquote

import pyarrow as pa

from mma.labels.reading import FileIndex, label_set, only_one, shown, wrong_layout
from mma.labels.registry import label_format
from mma.labels.sheet import column_name, header_of, parse_csv
from mma.labels.source import LabelFolder
from mma.labels.table import CUT, LabelSet, label_table

UNKNOWN = (999, -1)
_SEGMENT = re.compile(r"([^/?#]*)/*(?:[?#].*)?$", re.DOTALL)


@label_format(
    "emotionet",
    "one csv with a column URL and columns of action units ('AU 1', 'AU 2', ...), and images called as the last "
    "segment of their URL, anywhere below it",
    takes_file=True,
)
def read(folder: LabelFolder, file: str) -> LabelSet:
    """Many images are gone (`missing`). Where several URLs end alike, no image can be told to be one's: `ambiguous`."""
    names = [each.name for each in folder.walk()]
    name = file or only_one("emotionet", folder, [each for each in names if each.lower().endswith(".csv")], "csv")
    data, place = folder.read(name), shown(folder, name)
    urls = [each for each in map(column_name, header_of(data, place)) if "url" in each]
    urls.sort(key=lambda each: each != "url")
    sheet = parse_csv(data, place, wanted=urls[:1])
    if not urls or not sheet.action_units:
        wrong_layout("emotionet", folder, f"{name} lacks {'a column URL' if not urls else 'columns of action units'}")
    index = FileIndex(folder, (each for each in names if each != name), end=posixpath.basename)
    segments = [_segment(url) for url in sheet.text(urls[0])]
    keys = [each if each in index else unquote(each) for each in segments]
    times = Counter(keys)
    ambiguous = [times[key] > 1 and key in index for key in keys]
    table = label_table(
        {
            "source": pa.array([None if twice else index.uri(key) for key, twice in zip(keys, ambiguous)], pa.string()),
            "crop": pa.repeat(CUT, len(keys)),
            **sheet.occurrences(unknown=UNKNOWN),
        }
    )
    table = table.filter(pa.array([not twice for twice in ambiguous], pa.bool_()))
    return label_set("emotionet", folder, table, ambiguous=sum(ambiguous))


def _segment(url: str) -> str:
    """`http://host/a/b.jpg?size=2` -> `b.jpg`."""
    found = _SEGMENT.search(url.strip(" '\""))
    return found[1] if found else ""
