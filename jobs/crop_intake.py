"""Crop rows that the pipeline delivers, counted and committed: `jobs.intake` with a face where that has a video."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from cluster.lock import StoreLock
from cluster.session import Stop
from cluster.storage import Folder
from jobs.intake import Intake
from jobs.progress import RunProgress
from mma.crops import rows as r
from mma.crops import store


class CropIntake(Intake):
    """Takes batches of crop rows: each face once, whatever arrives; commits as `Intake` does."""

    def __init__(
        self,
        folder: Folder,
        lock: StoreLock,
        writer: store.CropWriter,
        outcome: NDArray[np.int8],
        progress: RunProgress,
        stop: Stop,
    ) -> None:
        """outcome: (U,) of each face by number, `NO_ROW` where it is awaited; filled in as rows come."""
        super().__init__(folder, lock, writer, progress, stop)  # type: ignore[arg-type]  # has add, due and commit too
        self.outcome = outcome
        self.repeated = 0

    def _add(self, batch: pa.Table) -> None:
        self.retries += pc.sum(batch["retries"]).as_py() or 0
        missed = pc.equal(batch["status"], r.UNREACHABLE)
        rows = batch.filter(pc.invert(missed)) if pc.any(missed).as_py() else batch
        faces, first = np.unique(rows["key"].to_numpy(), return_index=True)
        first = np.sort(first[self.outcome[faces] == r.NO_ROW])
        self.repeated += rows.num_rows - len(first)
        if len(first) < rows.num_rows:
            rows = rows.take(pa.array(first))
        outcome = store.outcomes_of(rows)
        self.outcome[rows["key"].to_numpy()] = outcome
        if rows.num_rows:
            self.writer.add(rows)
        self.progress.done += rows.num_rows
        self.progress.frames += rows.num_rows
        self.progress.failed += int((outcome == r.OUTCOMES.index(r.FAILED)).sum())
        for _ in range(min(rows.num_rows, self.reachability.recent.maxlen or 0)):
            self.reachability.saw(None)
        for words in batch.filter(missed)["error_message"].to_pylist():
            self.reachability.saw(words)
