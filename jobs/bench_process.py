"""A side of a bench as a process of its own: started from nothing, as a person starts it, and watched from outside."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs

PERIOD_S = 0.1
"""Between two looks at the memory of a side."""
LIMIT_S = 1500.0
"""A side that takes longer is ended."""


class SideError(Exception):
    """A side ended with an error; the text has its last line."""

    def __init__(self, message: str, log: str = ""):
        super().__init__(message)
        self.log = log
        """The end of what it wrote for people."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """A side that came to its end."""

    found: Any
    """What it told, plain JSON."""
    seconds: float
    """Of the whole process, the interpreter's start included."""
    process_bytes: int
    """Largest resident memory of the process that was started."""
    tree_bytes: int
    """Where asked for: the largest memory of it and all below it together, what each holds alone, and what they share
    once."""


def run_side(side: str, folder: Path, *, tree: bool = False, **request: Any) -> Ran:
    """Call `module:function` with plain JSON arguments in a fresh process, and give what it returned.

    tree: look at the memory of all processes below it too, which costs some time of a core.
    Raises SideError where it ended with an error.
    """
    return _run(Side(side, folder, **request), tree=tree)


def run_job(folder: Path, *words: object, codes: tuple[int, ...] = (0,)) -> Ran:
    """A command of `mma-mrnnet` in a fresh process; `found` is its summary."""
    return _run(Side(None, folder, words=[str(word) for word in words]), codes=codes)


class Side:
    """A side that is running."""

    def __init__(self, side: str | None, folder: Path, **request: Any):
        """`side` None: the command `request["words"]`."""
        name = f"{(side or 'job').rpartition(':')[2]}-{time.monotonic_ns()}"
        folder.mkdir(parents=True, exist_ok=True)
        self.result, self.log = folder / f"{name}.json", folder / f"{name}.log"
        self.side = side
        script = "import sys; from jobs.bench_process import serve; serve(*sys.argv[1:])"
        words = ["-m", "jobs", *request["words"]] if side is None else ["-c", script, side, str(self.result)]
        root = str(Path(next(iter(jobs.__path__))).resolve().parent)
        search_path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
        self.started_s = time.monotonic()
        with open(self.result if side is None else self.log, "wb") as out, open(self.log, "ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env={**os.environ, "PYTHONPATH": search_path},
            )
        assert self.process.stdin is not None
        with self.process.stdin as stdin:
            stdin.write(b"" if side is None else json.dumps(request).encode())

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def error(self, what: str) -> SideError:
        """That it failed, in its own words."""
        log = self.log.read_text(errors="replace").strip()[-4000:]
        return SideError(f"{self.side or 'the command'} {what}: {log.rpartition(chr(10))[2]}", log)

    def found(self, codes: tuple[int, ...] = (0,)) -> Any:
        """What it returned. Raises SideError where it ended with another exit code than these."""
        if self.process.returncode not in codes:
            raise self.error(f"ended with {self.process.returncode}")
        text = self.result.read_text().strip()
        return json.loads(text) if text else None

    def end(self, wait_s: float = 0.0) -> None:
        """Wait so long for its end, and then end it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait_s)
        if self.running:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def _run(side: Side, *, codes: tuple[int, ...] = (0,), tree: bool = False) -> Ran:
    peak, over = [0, 0], threading.Event()

    def watch() -> None:
        while not over.wait(PERIOD_S):
            peak[0] = max(peak[0], memory_of(side.process.pid).get("VmHWM", 0))
            if tree:
                peak[1] = max(peak[1], tree_bytes(side.process.pid))

    watcher = threading.Thread(target=watch, daemon=True)
    limit = threading.Timer(LIMIT_S, side.process.kill)
    watcher.start()
    limit.start()
    try:
        side.process.wait()
        seconds = time.monotonic() - side.started_s
    finally:
        over.set()
        limit.cancel()
        watcher.join()
        side.end()
    return Ran(found=side.found(codes), seconds=seconds, process_bytes=peak[0], tree_bytes=peak[1])


def serve(side: str, result: str) -> None:
    """What a side's process does: read the request, call the function, write down what it returns."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    module, _, function = side.partition(":")
    request = json.load(sys.stdin)
    found = getattr(importlib.import_module(module), function)(**request)
    partial = Path(f"{result}.partial")
    partial.write_text(json.dumps(found))
    partial.rename(result)


def _end_with(parent: int) -> None:
    """End this process once the bench is gone, were it by SIGKILL: a training side would wait for its turn for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def memory_of(pid: int) -> dict[str, int]:
    """What Linux tells of a process's memory, in bytes by name; empty elsewhere, and once it has ended.

    Not `getrusage`, whose maximum of a child begins with the memory of the process that started it.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        name: 1024 * int(rest.split()[0]) for name, _, rest in (e.partition(":") for e in lines) if rest[-2:] == "kB"
    }


def tree_bytes(pid: int) -> int:
    """Memory of a process and all below it now: what each holds alone, and the most shared memory that one maps."""
    children: dict[int, list[int]] = defaultdict(list)
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            children[int((entry / "stat").read_text().rpartition(")")[2].split()[1])].append(int(entry.name))
        except (OSError, ValueError, IndexError):  # ended meanwhile
            continue
    alone, shared, waiting = 0, 0, [pid]
    while waiting:
        process = waiting.pop()
        waiting += children[process]
        memory = memory_of(process)
        alone += memory.get("RssAnon", 0)
        shared = max(shared, memory.get("RssShmem", 0))
    return alone + shared
