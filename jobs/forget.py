"""`mma-mrnnet forget`: take people's rows out of a feature store for good, so that no rerun brings them back."""

from __future__ import annotations

import json
import posixpath
import socket
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow.compute as pc

from cluster.lock import STORE_ERRORS, StoreLock
from cluster.storage import Folder, read
from cluster.uri import StorageError, display
from jobs.outcome import JobFailedError, Outcome, input_errors
from jobs.progress import say
from mma.store.reader import drop_videos, read_index, read_spec
from mma.store.schema import RUNS_FOLDER
from mma.store.tombstones import forgotten, write_tombstone
from mma.store.writer import new_run_id
from rnn.tables import ID_NAMES, bare_id, id_column, read_table


@dataclass(frozen=True, kw_only=True)
class Options:
    """Remove all rows of some videos from a feature store, and leave a tombstone (salted hashes of their ids) that
    keeps a rerun from bringing them back.

    What this does not reach: models trained on them, which must be trained again; crop stores, which must be cut again;
    tables of predictions; copies that training keeps in the nodes' scratch until the next training there; the old
    versions of files that a bucket with versioning keeps until they are deleted there.
    """

    store: str
    """Folder of the feature store."""
    videos: str
    """URI of the ids: a csv or Parquet table with video_id (or File_ID), or a text file with one id a line."""
    dry_run: bool = False
    """Say what would go, and change nothing."""


def run(options: Options) -> Outcome:
    """The job: the tombstone first, then the rows, so that a kill in between leaves what a rerun completes."""
    asked = read_ids(options.videos)
    # Labels write ids in brackets, and some stores were made from files whose names have them: both forms are meant.
    ids = asked | {f"[{each}]" for each in asked}
    with input_errors(*STORE_ERRORS, option="--store"):
        store = Folder(options.store)
        read_spec(store)
        if options.dry_run:
            return _told(store, asked, _held(store, ids), removed=0, dry_run=True)
        store.check_writable()
        with StoreLock(store, f"forget on {socket.gethostname()}", on_wait=say):
            held = _held(store, ids)
            new = ids - forgotten(store, sorted(ids))
            try:
                removed = _remove(store, ids, new, set(held))
            except (OSError, StorageError) as error:
                raise JobFailedError(
                    f"not all rows are gone: {error}. No rerun brings them back; run the same command again when that "
                    "is mended"
                ) from error
            return _told(store, asked, held, removed=removed, dry_run=False)


def read_ids(uri: str) -> set[str]:
    """The ids of a table or of a text file, without the brackets that labels put around them.

    Raises InputError where there are none, and for a table without a column of ids.
    """
    name = display(uri)
    with input_errors(ValueError, OSError, StorageError, option="--videos"):
        content = read(uri)
        first = content.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0].decode("utf-8", "replace")
        header = {cell.strip(' \r"').lower() for cell in first.split(",")}
        named = uri.lower().endswith((".csv", ".parquet", ".pq"))
        if named or content.startswith(b"PAR1") or header & set(ID_NAMES):
            table = read_table(name, content)
            words = [each or "" for each in table[id_column(table, name)]]
        else:
            try:
                words = content.decode("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{name} is neither a table nor a text file in UTF-8 ({error})") from error
        ids = {bare_id(word) for word in words} - {""}
        if not ids:
            raise ValueError(f"{name} names no video: give one id a line, or a table with video_id")
    return ids


def _remove(store: Folder, ids: set[str], new: set[str], held: set[str]) -> int:
    """Note the `new` among the ids, take out the rows of those `held`, and whatever else tells of them."""
    if new:
        write_tombstone(store, new_run_id(), new)
    removed = drop_videos(store, held)
    _scrub_runs(store, ids)
    for each in (store, store.child(RUNS_FOLDER)):
        each.sweep_temporaries(older_than_s=0)  # a killed writer's may hold rows; the lock is ours
    return removed


def _held(store: Folder, ids: Collection[str]) -> dict[str, int]:
    """Those of the ids that the store has rows of, with how many."""
    counts = pc.value_counts(read_index(store)["video_id"])
    return {each["values"]: each["counts"] for each in counts.to_pylist() if each["values"] in ids}


def _scrub_runs(store: Folder, ids: Collection[str]) -> None:
    """Records of runs hold no ids but where one was of a single file, which its option names."""
    runs = store.child(RUNS_FOLDER)
    for entry in runs.list(suffix=".json"):
        record = json.loads(runs.read(entry.name))
        for option in ("videos", "csvs"):
            file = posixpath.basename(str(record["options"].get(option) or ""))
            if {file, posixpath.splitext(file)[0]} & set(ids):
                record["options"][option] = "forgotten"
                runs.write(entry.name, json.dumps(record, indent=1).encode())


def _told(store: Folder, asked: set[str], held: dict[str, int], *, removed: int, dry_run: bool) -> Outcome:
    holds = "holds" if dry_run else "held"
    say(f"{len(asked):,} ids asked for; the store {holds} {len(held):,} of them, in {sum(held.values()):,} rows")
    summary = {
        "job": "forget",
        "store": store.display,
        "asked": len(asked),
        "videos": len(held),
        "rows_removed": removed,
        "not_in_store": len(asked - {bare_id(each) for each in held}),
        "dry_run": dry_run,
    }
    return Outcome(summary=summary)
