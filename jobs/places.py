"""Which options of a job name places, and which of them it writes to: what a cluster must be able to see."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cluster.storage import Folder
from cluster.uri import display, parse_uri

WRITTEN = ("out", "crops")
STORE_WRITERS = ("extract", "import-openface", "forget", "doctor")
"""Jobs that write to their --store; others read it."""
READ = ("videos", "csvs", "store", "labels", "subjects", "model", "mma", "detector_weights", "init", "prior", "space")
GLOB = re.compile(r"[*?\[]")
_FORMAT = re.compile(r"^[a-z][a-z0-9-]*=")
"""Before the URI of frame labels: synth=corpus."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A place that an option names."""

    option: str
    """As it is written: --out."""
    uri: str
    written: bool
    """Whether the job writes there."""

    @property
    def shown(self) -> str:
        """Option and URI as they may be shown."""
        return f"{self.option} {display(self.uri)}"

    @property
    def relative(self) -> bool:
        """Whether it depends on a working folder."""
        return "://" not in self.uri and not self.uri.startswith(("/", "~/"))

    @property
    def folder(self) -> str | None:
        """URI of the folder that is written to, None where it is only read."""
        if not self.written:
            return None
        is_file = self.uri.endswith((".csv", ".parquet"))
        return Folder(str(parse_uri(self.uri)).rpartition("/")[0] or "/" if is_file else self.uri).uri

    @property
    def local_path(self) -> str | None:
        """The local path that is read, of a glob the folder above; None where it is remote, or written to."""
        place = parse_uri(self.uri)
        if self.written or place.scheme != "file":
            return None
        return os.path.dirname(GLOB.split(place.path)[0]) if GLOB.search(place.path) else place.path


def places_of(job: str, options: Any) -> Iterator[Place]:
    """The places that a job's options name."""
    for name in (*WRITTEN, *READ):
        value = getattr(options, name, None)
        values = value if isinstance(value, tuple) else (value,)
        for uri in (each for each in values if isinstance(each, str)):  # synth --videos is a number
            uri = _FORMAT.sub("", uri) if name == "labels" else uri
            if not (name == "mma" and uri.startswith("random:")):
                written = name in WRITTEN or (name == "store" and job in STORE_WRITERS)
                yield Place(option=f"--{name.replace('_', '-')}", uri=uri, written=written)


def tracks(options: Any) -> bool:
    """Whether a job writes to MLflow under these options."""
    return bool(getattr(getattr(options, "run", options), "tracking", False))
