"""People who asked to be forgotten: what a store remembers of them is only how to recognise, and refuse, their ids.

A tombstone holds salted hashes, so that the file by itself tells nobody who is meant; with an id at hand anyone can
check it, which is what a rerun does. All tombstones of a store share one salt, so that a check hashes an id once.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from mma.store.writer import FolderLike

TOMBSTONES = "_forgotten"
"""The folder of the tombstones inside a store, a JSON file for each `forget`."""


class TombstoneFolder(FolderLike, Protocol):
    """What tombstones need of a store's folder."""

    def list(self, prefix: str = "", suffix: str = "") -> Any:
        """The files of the folder, each with a `name`."""

    def child(self, name: str) -> Any:
        """A folder inside."""


def write_tombstone(store: TombstoneFolder, name: str, video_ids: Iterable[str]) -> None:
    """Note that these ids are not to come back. To be written before their rows are taken out.

    Raises ValueError as `forgotten` does.
    """
    salt = next((salt for salt, _ in _tombstones(store)), None) or secrets.token_hex(16)
    content = {"salt": salt, "sha256": sorted(_hashed(salt, video_id) for video_id in set(video_ids))}
    store.child(TOMBSTONES).write(f"{name}.json", json.dumps(content, indent=1).encode())


def forgotten(store: TombstoneFolder, video_ids: Sequence[str]) -> set[str]:
    """Those of the ids that some tombstone of the store names.

    Raises ValueError for a tombstone that cannot be read: to go on would bring people back.
    """
    by_salt: dict[str, set[str]] = defaultdict(set)
    for salt, hashes in _tombstones(store):
        by_salt[salt] |= hashes
    return {video_id for salt, hashes in by_salt.items() for video_id in video_ids if _hashed(salt, video_id) in hashes}


def _tombstones(store: TombstoneFolder) -> Iterator[tuple[str, set[str]]]:
    """The salt and the hashes of each."""
    folder = store.child(TOMBSTONES)
    for entry in folder.list(suffix=".json"):
        try:
            told = json.loads(folder.read(entry.name))
            salt, hashes = told["salt"], told["sha256"]
            if not isinstance(salt, str) or not isinstance(hashes, list):
                raise TypeError("salt is no text, or sha256 no list")
            hashes = set(hashes)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{folder.display}/{entry.name} cannot be read ({error!r}): restore it, or forget its people again and "
                "take the file away"
            ) from None
        yield salt, hashes


def _hashed(salt: str, video_id: str) -> str:
    return hashlib.sha256(f"{salt}{video_id}".encode()).hexdigest()
