"""What a run counts, through Ray's own metrics: every node's Prometheus endpoint shows it, `ray_` in front.
Where Ray is not running nothing is told. `manifests/grafana-dashboard.json` shows what is.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util.metrics import Counter, Histogram

VIDEOS, FRAMES, FAILURES, RETRIES = (f"mma_mrnnet_{each}" for each in ("videos", "frames", "failures", "retries"))
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    VIDEOS: ("Videos committed to the store, by status.", ("status",)),
    FRAMES: ("Frames committed to the store.", ()),
    FAILURES: ("Videos that gave nothing, or not all, by the stage that says so.", ("stage",)),
    RETRIES: ("Requests sent again to object storage.", ()),
}
"""Name, what it counts, and its labels; Prometheus sees `ray_<name>_total`."""

STAGE_SECONDS = "mma_mrnnet_stage_seconds"
"""Histogram, with the label `stage`: fetch of a video, decode of a chunk, mma of the chunks that came together."""

T = TypeVar("T")


@functools.cache
def _metric(name: str) -> Any:
    if name == STAGE_SECONDS:
        return Histogram(name, "Seconds of a stage's work.", [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100], ("stage",))
    return Counter(name, *COUNTERS[name])


def count(name: str, added: float = 1, **labels: str) -> None:
    """Add to a counter of `COUNTERS`; 0 adds nothing."""
    if added > 0 and ray.is_initialized():
        _metric(name).inc(added, labels)


class Totals:
    """Feeds counters from totals that grow: each is told by how much it has grown since."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, ...], float] = {}

    def tell(self, name: str, total: float, **labels: str) -> None:
        """The total as it now stands."""
        key = (name, *labels.values())
        count(name, total - self._told.get(key, 0), **labels)
        self._told[key] = total


def observe(stage: str, seconds: float) -> None:
    """Note how long a stage took."""
    if ray.is_initialized():
        _metric(STAGE_SECONDS).observe(seconds, {"stage": stage})


@contextmanager
def timed(stage: str) -> Iterator[None]:
    """Note how long the block took, however it ended."""
    started_s = time.perf_counter()
    try:
        yield
    finally:
        observe(stage, time.perf_counter() - started_s)


def timed_each(stage: str, items: Iterable[T]) -> Iterator[T]:
    """The items, with a note of how long each took to come; not of what was done with it afterwards."""
    started_s = time.perf_counter()
    for item in items:
        observe(stage, time.perf_counter() - started_s)
        yield item
        started_s = time.perf_counter()
