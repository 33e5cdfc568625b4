"""What importers need of a folder, wherever it lies. `cluster.storage.Folder` is one; tests make local ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Named(Protocol):
    """A file of a listing."""

    @property
    def name(self) -> str:
        """Relative to the folder, posix."""


class LabelFolder(Protocol):
    """A folder or prefix that holds a label set."""

    @property
    def uri(self) -> str:
        """Where it lies."""

    @property
    def display(self) -> str:
        """The URI as it may be shown."""

    def walk(self) -> Iterable[Named]:
        """All files below."""

    def read(self, name: str) -> bytes:
        """The whole content of a file."""

    def uri_of(self, name: str) -> str:
        """The URI of a file that `walk` named."""
