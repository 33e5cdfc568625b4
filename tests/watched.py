"""A job as a process of its own, with the memory of all its processes watched by role."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

DECODER = "mma.video.child"
ROLES = {"MMAActor": "MMA actor", DECODER: "decoder"}
"""Roles of the driver's children by a word of the command line; Ray names an actor's worker after it. A decode worker
bears its task's name only while that runs, which may be shorter than a look: it is known by its decoder."""

PERIOD_S = 0.1


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """The peaks of this process and its children, by role, while the block runs."""
    peaks: dict[str, float] = defaultdict(float)
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(PERIOD_S):
            _note_peaks(os.getpid(), peaks)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def watched_job(folder: Path, *arguments: object, limit_s: float = 3000.0) -> tuple[dict, dict[str, float]]:
    """Run a job to its end; its summary, and for each role the largest memory of one process, in MB.

    Counted is what a process holds beyond files and shared memory (RssAnon): libraries count for whoever maps them
    first, and the object store, which Ray's processes share, has its own bound.
    """
    mark = uuid.uuid4().hex
    environment = {**os.environ, "MMA_TEST_RUN": mark}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{mark}.out", "w+") as out, open(folder / f"{mark}.err", "w+") as err:
        command = [sys.executable, "-m", "jobs", *map(str, arguments)]
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        peaks: dict[str, float] = defaultdict(float)
        until = time.monotonic() + limit_s
        while process.poll() is None:
            assert time.monotonic() < until, (folder / f"{mark}.err").read_text()
            _note_peaks(process.pid, peaks)
            time.sleep(PERIOD_S)
    told = (folder / f"{mark}.err").read_text()
    assert process.returncode == 0, told
    return json.loads((folder / f"{mark}.out").read_text()), dict(peaks)


def _note_peaks(driver: int, peaks: dict[str, float]) -> None:
    try:
        children = psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    workers = set()
    for pid in [driver, *reversed([child.pid for child in children])]:  # children before their parents
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            role = next((role for word, role in ROLES.items() if word in words), None)
            role = "driver" if pid == driver else "decode worker" if pid in workers else role
            if role == "decoder":
                workers.add(psutil.Process(pid).ppid())
            if role:
                peaks[role] = max(peaks[role], _anonymous_mb(pid))
        except (FileNotFoundError, ProcessLookupError, psutil.NoSuchProcess):  # ended meanwhile
            continue


def _anonymous_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("RssAnon:")), 0.0)
