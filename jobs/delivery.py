"""The driver's end of a pipeline: batches as they come, without the driver ever being stuck in waiting for one.

The pipeline is iterated by a thread, so that between two batches the driver still commits what is due, draws
progress, and sees a signal within half a second.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa

WAIT_S = 0.5
"""How long the driver waits for a batch before it looks at its other duties."""

JOIN_S = 10.0
"""How long the driver waits for the pipeline to close before it shuts Ray down or begins another pipeline."""

_END = object()


@contextmanager
def delivered(batches: Iterable[pa.Table]) -> Iterator[Iterator[pa.Table | None]]:
    """Iterate `batches` in a thread; the block gets an iterator that yields None whenever `WAIT_S` passed without one.

    An error of the pipeline is raised in the driver. Leaving the block early closes the pipeline at its next batch.
    """
    waiting: queue.Queue = queue.Queue(maxsize=4)
    abandoned = threading.Event()

    def hand_over(item: object) -> bool:
        while not abandoned.is_set():
            try:
                waiting.put(item, timeout=WAIT_S)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        iterator = iter(batches)
        try:
            for batch in iterator:
                if not hand_over(batch):
                    break
            hand_over(_END)
        except BaseException as error:  # also SystemExit: a driver that waits for a dead thread waits for ever
            hand_over(error)
        finally:
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def taken() -> Iterator[pa.Table | None]:
        while True:
            try:
                item = waiting.get(timeout=WAIT_S)
            except queue.Empty:
                yield None
                continue
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=run, name="pipeline", daemon=True)
    thread.start()
    try:
        yield taken()
    finally:
        abandoned.set()
        thread.join(JOIN_S)
