"""`mma-mrnnet forget`: take people's rows out of a feature store for good, so that no rerun brings them back."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass

import pyarrow.compute as pc

from cluster.lock import LockHeld, StoreLock
from cluster.storage import Folder, read
from cluster.uri import StorageError, display
from jobs.outcome import InputError, Outcome, input_errors
from jobs.progress import say
from mma.store.reader import drop_videos, read_index, read_spec
from mma.store.tombstones import forgotten, write_tombstone
from rnn.labels import read_table

ID_COLUMNS = ("video_id", "File_ID", "id")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Remove all rows of some videos from a feature store, and leave a tombstone that keeps a rerun from bringing them
    back. Models trained on them must be trained again, and crop stores cut again; an object store with versions keeps
    the old files until these are deleted there.
    """

    store: str
    """Folder of the feature store."""
    videos: str
    """URI of the ids: a csv or Parquet table with video_id, or a text file with one id a line."""
    dry_run: bool = False
    """Say what would go, and change nothing."""


def run(options: Options) -> Outcome:
    """The job: the tombstone first, then the rows, so that a kill in between leaves what a rerun completes."""
    asked = read_ids(options.videos)
    with input_errors(ValueError, OSError, StorageError, LockHeld, option="--store"):
        store = Folder(options.store)
        read_spec(store)
        if options.dry_run:
            return _told(store, asked, removed=0, dry_run=True)
        store.check_writable()
        with StoreLock(store, f"forget on {socket.gethostname()}", on_wait=say):
            held = asked & set(pc.unique(read_index(store)["video_id"]).to_pylist())
            new = asked - forgotten(store, sorted(asked))
            if new:
                run_id = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
                write_tombstone(store, run_id, new)
            removed = drop_videos(store, held)
            return _told(store, asked, removed=removed, dry_run=False, videos=len(held))


def read_ids(uri: str) -> set[str]:
    """The ids of a table or of a text file. Raises InputError where there are none."""
    with input_errors(ValueError, OSError, StorageError, option=f"--videos {display(uri)}"):
        content = read(uri)
        if uri.endswith((".csv", ".parquet", ".pq")):
            table = read_table(display(uri), content)
            column = next((name for name in ID_COLUMNS if name in table.columns), None)
            if column is None:
                raise ValueError(f"no column video_id (it has {', '.join(table.columns)})")
            words = [str(each) for each in table[column]]
        else:
            words = content.decode().splitlines()
        ids = {word.strip().strip("[]").strip() for word in words} - {""}
        if not ids:
            raise InputError(f"--videos {display(uri)} names no video")
    return ids


def _told(store: Folder, asked: set[str], *, removed: int, dry_run: bool, videos: int | None = None) -> Outcome:
    if videos is None:
        videos = len(asked & set(pc.unique(read_index(store)["video_id"]).to_pylist()))
    say(f"{len(asked):,} ids asked for; the store {'holds' if dry_run else 'held'} {videos:,} of them")
    summary = {
        "job": "forget",
        "store": store.display,
        "asked": len(asked),
        "videos": videos,
        "rows_removed": removed,
        "not_in_store": len(asked) - videos,
        "dry_run": dry_run,
    }
    return Outcome(summary=summary)
