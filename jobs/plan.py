"""From `--videos` to a plan: one row a video with its id, its URI and, where a listing tells, its size and version.

A folder or prefix is searched through, a glob is matched, a csv or Parquet table names the videos itself, and a
single video is a plan of one. Plans are Arrow tables from end to end: a million rows cost no million objects.
"""

from __future__ import annotations

import fnmatch
import io
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cluster.storage import FileInfo, Folder
from cluster.uri import StorageError, Uri, display, parse_uri
from jobs.outcome import InputError, input_errors

PLAN_SCHEMA = pa.schema(
    [("video_id", pa.string()), ("uri", pa.string()), ("bytes", pa.int64()), ("version", pa.string())]
)
"""`bytes` and `version` (etag or mtime) are null where only a table names the video."""

GLOB_SIGNS = "*?["

VIDEO_SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .m2ts .m4v .mjpeg .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogg .ogv .ts .vob .webm .wmv".split()
)
"""What counts as a video when a folder is searched; a glob or a table may name anything."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The videos of a run, sorted as they were found."""

    videos: pa.Table
    """Rows of `PLAN_SCHEMA`; ids are unique."""
    ignored_files: int = 0
    """Files of a searched folder whose names are not those of videos."""


def find_videos(uri: str, *, video_id: str = "stem") -> Plan:
    """The plan for `--videos`.

    Args:
        uri: a folder or prefix, a glob, a csv or Parquet table with `video_id` and `uri`, or one video.
        video_id: `stem` (the file's name without its ending) or `path` (its path below the folder).

    Raises:
        InputError: nothing is there, two videos share an id, or a table lacks a column or names another protocol.
    """
    with input_errors(ValueError, StorageError, option="--videos"):
        place = parse_uri(uri)
        if any(sign in place.path for sign in GLOB_SIGNS) and (globbed := _from_glob(place, video_id)):
            return globbed
        parent, name = _parent(place), place.name
        if name.lower().endswith((".csv", ".parquet", ".pq")):
            return Plan(videos=_unique(_from_table(parent, name), "the table has two rows for it; keep one"))
        if single := [file for file in parent.list(prefix=name) if file.name == name]:
            return Plan(videos=_listed(parent, single, video_id))
        folder = Folder(str(place))
        files = list(folder.walk())
        videos = [file for file in files if posixpath.splitext(file.name)[1].lower() in VIDEO_SUFFIXES]
        if not files:
            raise InputError(f"--videos {display(uri)}: there is no such file, and no folder with files in it")
    if not videos:
        kinds = " ".join(sorted(VIDEO_SUFFIXES))
        raise InputError(
            f"--videos {display(uri)} holds {len(files)} files but no video ({kinds}); "
            f"a glob or a table takes files of any name"
        )
    return Plan(videos=_listed(folder, videos, video_id), ignored_files=len(files) - len(videos))


def _parent(place: Uri) -> Folder:
    above = place.path.rstrip("/").rpartition("/")[0]
    return Folder(str(replace(place, path=above or ("/" if place.scheme == "file" else ""))))


def _from_glob(place: Uri, video_id: str) -> Plan | None:
    """The videos a pattern matches; None where it stands for a real file whose name holds such a sign."""
    parts = place.path.split("/")
    first = next(position for position, part in enumerate(parts) if any(sign in part for sign in GLOB_SIGNS))
    root = "/".join(parts[:first]) or ("/" if place.scheme == "file" else "")
    folder = Folder(str(replace(place, path=root)))
    names = [*parts[first:]]
    files = list(folder.walk())
    found = [file for file in files if _matches(file.name.split("/"), names)]
    if found:
        return Plan(videos=_listed(folder, found, video_id))
    if any(file.name == "/".join(names) or file.name.startswith("/".join(names) + "/") for file in files):
        return None
    raise InputError(f"--videos {display(str(place))}: no file matches this pattern below {folder.display}")


def _matches(names: list[str], patterns: list[str]) -> bool:
    """Whether a relative path matches, `*` staying within one folder and `**` crossing any number of them."""
    if not names or not patterns:
        return not names and not patterns
    if patterns[0] == "**":
        return any(_matches(names[cut:], patterns[1:]) for cut in range(len(names)))
    return fnmatch.fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _listed(folder: Folder, files: Iterable[FileInfo], video_id: str) -> pa.Table:
    files = sorted(files, key=lambda file: file.name)
    names = [file.name for file in files]
    ids = names
    if video_id == "stem":
        ids = [posixpath.splitext(posixpath.basename(name))[0] for name in names]
    table = pa.table(
        {
            # A name that is not UTF-8 on disk shows its odd bytes as escapes; its URI finds the file.
            "video_id": [each.encode("utf-8", "backslashreplace").decode() for each in ids],
            "uri": [folder.uri_of(name) for name in names],
            "bytes": [file.bytes for file in files],
            "version": [file.version for file in files],
        },
        schema=PLAN_SCHEMA,
    )
    return _unique(table, "give --video-id path, or a table with ids of your own")


def _from_table(parent: Folder, name: str) -> pa.Table:
    shown = f"--videos {parent.display}/{display(name)}"
    data = parent.read(name)
    try:
        if name.lower().endswith(".csv"):
            as_text = pa.csv.ConvertOptions(
                column_types={"video_id": pa.string(), "uri": pa.string()}, null_values=[""], strings_can_be_null=True
            )
            newlines = pa.csv.ParseOptions(newlines_in_values=True)
            table = pa.csv.read_csv(io.BytesIO(data), convert_options=as_text, parse_options=newlines)
        else:
            table = pq.read_table(io.BytesIO(data))
    except pa.ArrowInvalid as error:
        raise InputError(f"{shown} cannot be read as a table: {' '.join(str(error).split())}") from error
    lacking = [column for column in ("video_id", "uri") if column not in table.column_names]
    if lacking:
        raise InputError(
            f"{shown} lacks the column {' and '.join(lacking)} (it has {', '.join(table.column_names)}); "
            f"a table of videos needs video_id and uri"
        )
    if len(set(table.column_names)) < len(table.column_names):
        raise InputError(f"{shown} has two columns of one name ({', '.join(table.column_names)}); rename one")
    ids, uris = (table[column].cast(pa.string()).combine_chunks() for column in ("video_id", "uri"))
    for column, values in (("video_id", ids), ("uri", uris)):
        blank = pc.fill_null(pc.equal(pc.utf8_length(values), 0), True)
        if pc.any(blank).as_py():
            raise InputError(f"{shown} has no {column} in row {pc.index(blank, True).as_py() + 1}; fill it in")
    other = pc.and_(
        pc.match_substring_regex(uris, r"^[A-Za-z][A-Za-z0-9+.-]*://"),
        pc.invert(pc.match_substring_regex(uris, "^(file|s3)://")),
    )
    if pc.any(other).as_py():
        row = pc.index(other, True).as_py()
        raise InputError(
            f"{shown} names {display(uris[row].as_py())} in row {row + 1}; plain paths, file:// and s3:// are taken"
        )
    relative = pc.invert(pc.match_substring_regex(uris, "^([A-Za-z][A-Za-z0-9+.-]*://|/)"))
    uris = pc.if_else(relative, pc.binary_join_element_wise(str(parent.uri).rstrip("/"), uris, "/"), uris)
    missing = [pa.nulls(len(ids), PLAN_SCHEMA.field(column).type) for column in ("bytes", "version")]
    return pa.table([ids, uris, *missing], schema=PLAN_SCHEMA)


def _unique(videos: pa.Table, mend: str) -> pa.Table:
    """The same table, once no id stands twice in it."""
    counts = pc.value_counts(videos["video_id"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        same = twice[0]["values"].as_py()
        uris = videos.filter(pc.equal(videos["video_id"], same))["uri"].to_pylist()
        raise InputError(f"--videos: the id {same!r} stands for both {display(uris[0])} and {display(uris[1])}: {mend}")
    return videos


def shard(videos: pa.Table, which: str) -> pa.Table:
    """Every n-th row from the i-th on, for `--shard i/n` with i from 1.

    Raises:
        InputError: not of the form i/n with 1 <= i <= n.
    """
    left, _, right = which.partition("/")
    if not (left.isdigit() and right.isdigit() and 1 <= int(left) <= int(right)):
        raise InputError(f"--shard {which}: give i/n with i from 1 to n, such as 2/8")
    return videos.take(pa.array(range(int(left) - 1, videos.num_rows, int(right)), pa.int64()))
