"""What a store lacks of a plan: the store is the checkpoint, so a run begins with a subtraction."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from cluster.storage import Folder, stat
from cluster.uri import StorageError
from jobs.outcome import InputError
from jobs.pipeline import shown_uri
from jobs.progress import say
from mma.store.reader import FAILED_PREFIX, read_index
from mma.store.tombstones import forgotten


@dataclass(frozen=True, kw_only=True)
class ToDo:
    """What a run has to do, beside what the store has."""

    videos: pa.Table
    """Rows of the plan that the store lacks."""
    planned: pa.Table
    """The whole plan, less who was forgotten."""
    index: pa.Table
    """The store as it is (`mma.store.reader.read_index`), less what is done again."""
    again: set[str]
    """Videos whose rows go before they are done again: `--retry-failed`, `--redo-changed`."""
    skipped: int
    changed: int
    forgotten: int
    """Videos of the plan that a tombstone keeps out."""


def left_to_do(folder: Folder, videos: pa.Table, *, retry_failed: bool, redo_changed: bool) -> ToDo:
    """What a store does not have yet of a plan (rows of `jobs.plan.PLAN_SCHEMA`), and what is to be done again.

    Raises ValueError or StorageError where the store cannot be read, InputError as `_changed` does.
    """
    gone = forgotten(folder, videos["video_id"].to_pylist())
    if gone:
        say(f"{len(gone)} videos were forgotten on their people's demand (forget) and are left out")
        videos = videos.filter(pc.invert(pc.is_in(videos["video_id"], value_set=pa.array(sorted(gone)))))
    index = read_index(folder)
    changed = _changed(videos, index, ask_storage=redo_changed)
    again = set(changed) if redo_changed else set()
    if changed and not redo_changed:
        say(f"{len(changed)} videos have changed since, such as {min(changed)!r}: --redo-changed does them again")
    if retry_failed:
        failed = index.filter(pc.starts_with(index["file"], FAILED_PREFIX))["video_id"]
        again |= set(pc.unique(failed).to_pylist()) & set(videos["video_id"].to_pylist())
    kept = index.filter(pc.invert(pc.is_in(index["video_id"], value_set=pa.array(sorted(again), pa.string()))))
    todo = videos.filter(pc.invert(pc.is_in(videos["video_id"], value_set=pc.unique(kept["video_id"]))))
    skipped = videos.num_rows - todo.num_rows
    if skipped or again:
        say(f"{skipped} videos are in the store already, {todo.num_rows} are left ({len(again)} of them done again)")
    return ToDo(
        videos=todo,
        planned=videos,
        index=kept,
        again=again,
        skipped=skipped,
        changed=len(changed),
        forgotten=len(gone),
    )


def _changed(videos: pa.Table, index: pa.Table, *, ask_storage: bool) -> set[str]:
    """Ids of planned videos whose bytes are no longer those the store was made from.

    A listing tells their version; of a table's videos storage is asked, where `ask_storage`.

    Raises:
        InputError: an id of the plan stands in the store for another video.
    """
    stored = index.group_by("video_id").aggregate([("source_version", "max"), ("source_bytes", "max"), ("uri", "min")])
    both = videos.join(stored, "video_id", join_type="inner")
    same = pc.equal(both["uri"], both["uri_min"])
    moved = 0
    for video in both.filter(pc.invert(same)).to_pylist():
        if shown_uri(video["uri"]) == video["uri_min"]:
            continue
        if video["bytes"] not in (None, video["source_bytes_max"]):
            raise InputError(
                f"--videos: the id {video['video_id']!r} stands for {shown_uri(video['uri'])} here and for "
                f"{video['uri_min']} in the store: give --video-id path, or name another --store"
            )
        moved += 1
    if moved:
        say(f"{moved} videos stand in the store under another URI and are taken for the same, moved")
    both = both.filter(same)
    differs = pc.fill_null(pc.not_equal(both["version"], both["source_version_max"]), False)
    changed = set(both.filter(differs)["video_id"].to_pylist())
    if ask_storage:
        unknown = both.filter(pc.is_null(both["version"])).to_pylist()
        with ThreadPoolExecutor(16) as pool:
            now = pool.map(_version, [video["uri"] for video in unknown])
            changed |= {v["video_id"] for v, new in zip(unknown, now) if new not in (None, v["source_version_max"])}
    return changed


def _version(uri: str) -> str | None:
    try:
        return stat(uri).version
    except (StorageError, ValueError):  # not to be had now: what the store has of it stays
        return None
