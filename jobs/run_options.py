"""Options that every training job shares: how many workers, where they run, and who keeps the books."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec


class WorkerCount(int):
    """`--num-workers`: N, or MIN:MAX, whose number is MAX, and which goes on with MIN."""

    least: int | None
    """MIN; None where the count is fixed."""

    def __new__(cls, text: str | int) -> WorkerCount:
        """Raises ValueError where it is neither N nor MIN:MAX of numbers from 1 on."""
        least, colon, most = str(text).rpartition(":")
        known = [each for each in ((least, most) if colon else (most,)) if each.isdigit() and int(each) > 0]
        if len(known) < 1 + len(colon) or (colon and int(least) > int(most)):
            raise ValueError(f"--num-workers {text}: give a number from 1 on, or two as MIN:MAX")
        count = super().__new__(cls, most)
        count.least = int(least) if colon else None
        return count

    def __str__(self) -> str:
        return f"{self.least}:{int(self)}" if self.least is not None else str(int(self))


_READ_COUNT = PrimitiveConstructorSpec(
    nargs=1,
    metavar="N|MIN:MAX",
    instance_from_str=lambda words: WorkerCount(words[0]),
    is_instance=lambda value: isinstance(value, WorkerCount),
    str_from_instance=lambda value: [str(value)],
)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a training runs. None of these changes a number of the result."""

    num_workers: Annotated[WorkerCount, _READ_COUNT] = WorkerCount(1)  # noqa: RUF009  (immutable)
    """Training processes; results do not depend on their number. MIN:MAX: as many as there is room for, and when a node
    is lost or has joined, on from the last checkpoint with those that there is room for then."""
    worker_cpus: float | None = None
    """CPUs of one; default: what the node offers, less what the others need."""
    worker_gpus: float | None = None
    """GPUs of one; default: 1 where there are GPUs, else 0."""
    max_failures: int = 3
    """How often lost workers are started again, from the last epoch's checkpoint, before the run fails."""
    experiment: str | None = None
    """MLflow experiment, default: the job's name; the server is MLFLOW_TRACKING_URI's, by default sqlite:///mlflow.db
    in this folder."""
    tracking: bool = True
    """Whether MLflow gets the parameters, losses, metrics and the checkpoint."""
    address: str | None = None
    """Ray cluster to run on, host:port or auto; default: a Ray of its own on this machine."""
    num_cpus: int | None = None
    """CPUs of the local Ray; default: all."""
    scratch: str | None = None
    """Node-local folder for what workers map and for videos in transit; default: as of extract."""

    def __post_init__(self) -> None:
        if self.num_cpus is not None and self.num_cpus < 1:
            raise ValueError(f"--num-cpus {self.num_cpus}: give 1 or more")
        if self.worker_cpus is not None and not self.worker_cpus > 0:
            raise ValueError(f"--worker-cpus {self.worker_cpus}: give a number above 0")
        if self.worker_gpus is not None and not self.worker_gpus >= 0:
            raise ValueError(f"--worker-gpus {self.worker_gpus}: give 0 or more")
        if not self.max_failures >= -1:
            raise ValueError(f"--max-failures {self.max_failures}: give 0 or more, or -1 for no limit")
