"""Options that every training job shares: how many workers, where they run, and who keeps the books."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a training runs. None of these changes a number of the result."""

    num_workers: int = 1
    """Training processes; results do not depend on their number."""
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
        for name in ("num_workers", "num_cpus"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if self.worker_cpus is not None and not self.worker_cpus > 0:
            raise ValueError(f"--worker-cpus {self.worker_cpus}: give a number above 0")
        if self.worker_gpus is not None and not self.worker_gpus >= 0:
            raise ValueError(f"--worker-gpus {self.worker_gpus}: give 0 or more")
        if not self.max_failures >= -1:
            raise ValueError(f"--max-failures {self.max_failures}: give 0 or more, or -1 for no limit")
