"""Training jobs as processes that tests stop and kill, and what MLflow knows of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

RECORD = "_run.json"


def mlflow_run(uri: str, out: Path):
    """The client, and the run that the record of OUT names."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return client, client.get_run(json.loads((out / RECORD).read_text())["mlflow_run_id"])


def steps_of(client, run, metric: str) -> list[int]:
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]


def session_workers() -> list[psutil.Process]:
    """The training workers of this session's cluster, known by the scratch that they inherit."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("MMA_MRNNET_SCRATCH") == os.environ["MMA_MRNNET_SCRATCH"]
            if ours and "TrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


class Driver:
    """A training job as a process of its own, started again and again on one folder."""

    def __init__(self, folder: Path, job: str, *options: object):
        self.folder, self.out = folder, folder / "m"
        self.command = [
            sys.executable, "-m", "jobs", job, "--out", str(self.out), *(str(each) for each in options),
        ]  # fmt: skip

    def start(self, *more: str) -> None:
        self.mark = uuid.uuid4().hex
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "MMA_MRNNET_SCRATCH": str(self.folder / "scratch"),
            "MMA_TEST_RUN": self.mark,
        }
        # A file and not a pipe for what it says: processes that outlive it would keep a pipe open.
        with open(self.folder / f"{self.mark}.err", "w") as err:
            self.process = subprocess.Popen(
                [*self.command, *more],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                start_new_session=True,
            )

    @property
    def told(self) -> str:
        return (self.folder / f"{self.mark}.err").read_text()

    def wait_for(self, words: str, limit_s: float = 150) -> None:
        self.wait_until(lambda: words in self.told, limit_s)

    def wait_until(self, condition: Callable[[], object], limit_s: float = 150) -> None:
        until = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, self.told
            assert time.monotonic() < until, self.told
            time.sleep(0.02)

    def ended(self) -> dict:
        out, _ = self.process.communicate(timeout=150)
        return json.loads(out) if out else {}

    def interrupt(self) -> None:
        """SIGTERM: it says that it was interrupted, and leaves no process."""
        self.process.send_signal(signal.SIGTERM)
        summary = self.ended()
        assert (self.process.returncode, summary["state"]) == (143, "interrupted"), self.told
        assert not self.left_after(10), "its own Ray outlived it"

    def left_after(self, limit_s: float) -> list[psutil.Process]:
        """What still lives of the run."""
        until = time.monotonic() + limit_s
        while (left := self._living()) and time.monotonic() < until:
            time.sleep(0.1)
        return left

    def kill_everything(self, when: Callable[[], bool] = lambda: True, limit_s: float = 60) -> None:
        """Driver, Ray and workers, all stopped first so that none sees the others go, at an instant at which the
        condition holds while they stand still."""
        until = time.monotonic() + limit_s
        self._send(signal.SIGSTOP)
        while not when():
            self._send(signal.SIGCONT)
            assert self.process.poll() is None, self.told
            assert time.monotonic() < until, self.told
            time.sleep(0.05)
            self._send(signal.SIGSTOP)
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        for process in self._living():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _living(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MMA_TEST_RUN") == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found
