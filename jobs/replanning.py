"""When a running pipeline is left for another over what is missing: nodes have joined, or one was lost with its work.

Ray runs again what it knows as lost. It does not know of tasks on a host that fell silent: their connections are given
up after 5 to 7 minutes, in which the end of a run would wait (tests/hosts).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cluster.capacity import Capacity, CapacityError, Node

LOOK_S = 5.0
"""Between two looks at the nodes."""
SETTLED_S = 15.0
"""So long must what fits be the same before a larger pipeline is begun: nodes join one after the other."""
AT_ONCE = 1.5
"""Growth that is not waited on: while a cluster grows for an hour, its nodes are used in steps of a half."""
PATIENCE_S = (5.0, 60.0)
"""Bounds of how long a pipeline that has lost a node may be silent."""
GAPS = 3.0
"""Between these bounds: so many times the longest silence before the loss."""


class Watch:
    """Looks at one pipeline from the driver; to be asked at every turn of its loop.

    Leaving a pipeline costs what is on its way in it, and some 10 s: seconds of work for hours with more nodes, or for
    minutes of waiting.
    """

    def __init__(
        self,
        running: Capacity,
        look: Callable[[], Sequence[Node]],
        plan: Callable[[Sequence[Node]], Capacity],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`look`: the live nodes; `plan`: for nodes, its CapacityError counts as no growth."""
        self._running, self._look, self._plan, self._clock = running, look, plan, clock
        self._started_s = self._looked_s = self._fits_since_s = clock()
        self._nodes = {node.id for node in look()}
        self._fits: Capacity | None = None
        self._lost_s: float | None = None
        self._arrived_s: float | None = None
        self._longest_s = 0.0

    def __call__(self, arrived: bool) -> str | None:
        """Why to leave the pipeline now, None where there is no reason; `arrived`: a batch has come with this turn."""
        now_s = self._clock()
        if arrived:
            if self._arrived_s is not None and self._lost_s is None:
                self._longest_s = max(self._longest_s, now_s - self._arrived_s)
            self._arrived_s = now_s
        if now_s - self._looked_s >= LOOK_S:
            self._looked_s = now_s
            self._see(now_s)
        if arrived and self._grown(now_s):
            return "the cluster has grown"
        if self._lost_s is not None:
            silent_s = now_s - max(self._lost_s, self._arrived_s or 0.0)
            if silent_s >= self._patience_s():
                return f"a node was lost, and nothing has come for {silent_s:.0f} s"
        return None

    def _see(self, now_s: float) -> None:
        nodes = self._look()
        if self._lost_s is None and self._nodes - {node.id for node in nodes}:
            self._lost_s = now_s
        try:
            fits = self._plan(nodes)
        except CapacityError:
            fits = None
        if fits != self._fits:
            self._fits, self._fits_since_s = fits, now_s

    def _grown(self, now_s: float) -> bool:
        if self._fits is None or not self._fits.exceeds(self._running):
            return False
        settled = now_s - self._fits_since_s >= SETTLED_S
        return settled or self._fits.decoders >= AT_ONCE * self._running.decoders

    def _patience_s(self) -> float:
        if self._arrived_s is None:  # workers are starting still
            return PATIENCE_S[1]
        return min(max(GAPS * self._longest_s, PATIENCE_S[0]), PATIENCE_S[1])
