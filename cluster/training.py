"""A training on Ray Train: the workers' side (`report`, `restored`) and the driver's (`run_training`).

Workers report an entry and some files after each epoch; Ray keeps the files as a checkpoint, starts the workers again
from the newest one when one of them is lost, and goes on from it when a later driver asks for the same name. The driver
sees every entry as it comes: progress and tracking are its matter alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConfig, RunConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.config import FailureConfig, ScalingConfig

from cluster.capacity import Workers
from cluster.session import Stop
from cluster.storage import Folder

POLL_S = 0.3
"""How often the driver looks for what was reported."""
MAX_WORDS = 200
"""Characters of an error that are told: of a dead worker Ray says six times as much."""
ABORT_S = 20
"""How long a signalled training may take to end its workers in an orderly way."""
TIMEOUT_S = 600
"""How long a worker waits for the others in a gather before it fails, and Ray starts them all again."""
PLACE_S = 20
"""How long an elastic training waits for the places that it was told of, before it asks again what there is: Ray's view
of the nodes is up to 20 s old (its own wait: 60 s)."""
WITHOUT_PLACE = 30
"""How often a fixed number of workers that finds no place is asked for again, a minute each, before the training fails.
An elastic training waits for its least number without end."""
ALLOCATION = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}
"""Environment of workers, by which glibc keeps up to 1 GiB of what a batch took for the next one, as `mma.allocation`
does for frames. Ray runs a training in a thread, whose memory only the first of these joins to the rest."""
SIOCGIFADDR = 0x8915
"""Linux: asks for an interface's IPv4 address."""


class TrainingError(Exception):
    """The training did not come to its end; one line, in the words of the first worker that failed."""


# --- in a worker ---


def restored(name: str) -> bytes | None:
    """A file of the newest checkpoint, None where the training starts."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return (Path(folder) / name).read_bytes()


def report(entry: Mapping[str, Any], files: Mapping[str, bytes] | None) -> None:
    """Hand an entry (plain values) to the driver and keep the files; every rank calls it, equally often.

    Files of rank 0 alone are kept, so that others may give none. None: there is no checkpoint.
    """
    context = ray.train.get_context()
    told = {**entry, "workers": context.get_world_size()}
    if files is None or context.get_world_rank() != 0:
        ray.train.report(told)
        return
    with tempfile.TemporaryDirectory(prefix="mma-mrnnet-checkpoint-") as local:
        for name, content in files.items():
            (Path(local) / name).write_bytes(content)
        ray.train.report(told, checkpoint=Checkpoint.from_directory(local))


def _use_cluster_interface() -> None:
    """Let gloo and NCCL talk through the interface that carries this node's address in the cluster.

    Gloo takes the one that the host's name stands for, which on many machines is the loopback: fine for one node.
    """
    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, interface)


def interface_of(address: str) -> str | None:
    """The network interface with this IPv4 address; None where none has it, or the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


# --- on the driver ---


class _Entries:
    """Holds what was reported until the driver fetches it; an actor that takes no CPU."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)

    def since(self, count: int) -> list[dict[str, Any]]:
        return self.entries[count:]


class _ToDriver(UserCallback):
    """Runs in Ray's controller: passes the entry of rank 0 on."""

    def __init__(self, entries: Any) -> None:
        self.entries = entries

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        ray.get(self.entries.add.remote(metrics[0]))

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        rank, error = next(iter(sorted(worker_exceptions.items())))
        ray.get(self.entries.add.remote({"failure": f"worker {rank}: {first_line(error)}"}))


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(_use_cluster_interface)
        super().on_start(worker_group, backend_config)


class _Config(TorchConfig):
    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Trainer(TorchTrainer):
    """Ray's, which keeps its controller at hand, so that a signal can end it before the session is closed.

    Otherwise Ray ends the whole process with 1 when the thread in `fit` meets the closed session.
    """

    controller: Any = None

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        # As in Ray 2.60 (pinned), less the handler of SIGINT, which is ours.
        place: Any = {**_here(), "runtime_env": {"env_vars": get_env_vars_to_propagate()}}
        actor: Any = ray.remote(**place)(TrainController)
        self.controller = actor.remote(**settings)
        ray.get(self.controller.run.remote())
        return ray.get(self.controller.get_result.remote())

    def abort(self) -> None:
        """End workers and controller; `fit` then raises."""
        try:
            ray.get(self.controller.abort.remote(), timeout=ABORT_S)
        except ray.exceptions.RayActorError:
            return  # how an abort ends
        except ray.exceptions.GetTimeoutError:
            ray.kill(self.controller)


def _here() -> dict[str, Any]:
    """Options of an actor that lives and dies with the driver's node, and takes nothing of it."""
    return {"num_cpus": 0, "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}


def run_training(
    worker: Callable[[dict[str, Any]], None],
    config: dict[str, Any],
    *,
    workers: Workers,
    folder: Folder,
    name: str,
    max_failures: int,
    on_entry: Callable[[dict[str, Any]], None],
    stop: Stop,
) -> dict[str, bytes] | None:
    """Train, and give the files of the last checkpoint, if any; None where a signal ended it (the checkpoints stay).

    Args:
        worker: runs in each worker, with `config`.
        config: plain values, bytes and `Folder`s.
        workers: how many, and what each takes.
        folder: where Ray keeps its checkpoints; all nodes see it.
        name: a run that exists there under this name is gone on with.
        max_failures: how often workers are started again before the training fails.
        on_entry: called on the driver with each entry that rank 0 reported, `workers` (their number) in it, and
            `{"failure": words}` when workers are started again.
        stop: looked at between two polls; a signal ends the training.

    Raises:
        TrainingError: workers failed more often than that, or a fixed number found no place for half an hour.
    """
    if drop_damaged_snapshot(folder, name):
        on_entry({"failure": "a kill has cut the list of checkpoints short, so that the first epoch begins again"})
    filesystem, path = folder.filesystem()
    entries: Any = ray.remote(**_here())(_Entries).remote()
    if workers.span:
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PLACE_S))
    trainer = _Trainer(
        worker,
        train_loop_config=config,
        torch_config=_Config(timeout_s=TIMEOUT_S, backend="nccl" if workers.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers.span or workers.count,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        run_config=RunConfig(  # type: ignore[call-arg]  # ray.train.RunConfig is typed as its V1 namesake
            name=name,
            storage_path=path,
            storage_filesystem=None if folder.is_local else filesystem,
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=WITHOUT_PLACE),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            worker_runtime_env={"env_vars": ALLOCATION},
            callbacks=[_ToDriver(entries)],  # type: ignore[list-item]
        ),
    )
    ended: dict[str, Any] = {}

    def fit() -> None:
        try:
            ended["checkpoint"] = trainer.fit().checkpoint
        except Exception as error:  # handed to the driver's thread, which tells it
            ended["error"] = error

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    seen = 0

    def fetch() -> int:
        new = ray.get(entries.since.remote(seen))
        for entry in new:
            on_entry(entry)
        return len(new)

    while thread.is_alive() and not stop.signal:
        seen += fetch()
        thread.join(POLL_S)
    seen += fetch()
    if stop.signal and not ended:
        until = time.monotonic() + ABORT_S
        while trainer.controller is None and thread.is_alive() and time.monotonic() < until:
            thread.join(POLL_S)
        if trainer.controller is not None:
            trainer.abort()
        thread.join(ABORT_S)
        return None
    if "error" in ended:
        raise TrainingError(first_line(ended["error"])) from ended["error"]
    if ended["checkpoint"] is None:  # workers that keep their state elsewhere
        return {}
    with ended["checkpoint"].as_directory() as local:
        return {each.name: each.read_bytes() for each in Path(local).iterdir() if each.is_file()}


def drop_damaged_snapshot(folder: Folder, name: str) -> bool:
    """Delete Ray's list of checkpoints where it is cut short; whether it was.

    Ray writes it in place, so that a kill or a power cut in that instant leaves a part, at which every later start
    would fail.
    """
    snapshot = f"{name}/checkpoint_manager_snapshot.json"
    if not folder.exists(snapshot):
        return False
    try:
        json.loads(folder.read(snapshot))
    except ValueError:
        folder.delete([snapshot])
        return True
    return False


def first_line(error: Exception) -> str:
    """What a person needs of Ray's nested errors: the last line of the innermost one's text that says something."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else error
    cause = getattr(inner, "cause", None) or getattr(inner, "base_exc", None) or inner
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    words = lines[-1] if lines else type(cause).__name__
    words = words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"
    return f"{type(cause).__name__}: {words}" if type(cause).__name__ not in words else words
