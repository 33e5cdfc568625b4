"""Faults in the decoding child, without any hook in the product's code.

The child is `python -m mma.video.child`, started by exec with the environment of its parent. Python imports a module
called `sitecustomize` at its start from PYTHONPATH: `fault_environment` writes one that, in that child alone (it looks
at `sys.orig_argv`), replaces `mma.video.readers.open_video` by a version that misbehaves for chosen videos. Whoever
starts children with these variables set gets the faults: a `DecodeSlot` in this process (use monkeypatch.setenv), or
Ray's workers, which pass their environment on.

A video is chosen by its stem. Remote videos are decoded from a scratch copy whose name ends with the original's name,
so a stem also matches behind any sign that is no letter or digit.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

KINDS = ("segfault", "segfault_late", "sleep", "memory", "kill_parent")
"""What a video can do: crash the process on opening, or after some frames; sleep for ever holding the GIL; take memory
without end; kill the process that reads its frames, after some of them, the first time it is decoded. "After some" is
five, or as many as the kind says: "segfault_late:250"."""

EVERY_VIDEO = "*"

_SITECUSTOMIZE = """
import json, os, re, sys, time

if "mma.video.child" in sys.orig_argv:
    import ctypes
    import mma.video.readers as readers

    faults = json.loads(FAULTS)
    log = LOG
    honest = readers.open_video

    def crash():
        ctypes.string_at(0)

    def sleep_holding_the_gil():
        ctypes.PyDLL(None).sleep(3600)

    def hoard():
        held = []
        while True:
            held.append(bytearray(32 << 20))

    def late(kind):
        # (name, frame at which it happens) of the kinds that wait
        name, _, frame = (kind or "").partition(":")
        return (name, int(frame or 5)) if name in ("segfault_late", "kill_parent") else (None, 0)

    def open_video(path, **options):
        name = os.path.basename(path)
        if log:
            descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            os.write(descriptor, (name.replace("\\n", " ") + "\\n").encode())
            os.close(descriptor)
        stem = os.path.splitext(name)[0]
        kind = next((k for s, k in faults.items() if re.search("(^|[^0-9A-Za-z])" + re.escape(s) + "$", stem)), None)
        if kind == "segfault":
            crash()
        if kind == "sleep":
            sleep_holding_the_gil()
        if kind == "memory":
            hoard()
        reader = honest(path, **options)
        waits, at = late(kind)
        if waits:
            frames = reader.frames
            mark = os.path.join(os.path.dirname(__file__), stem + ".killed")

            def few(indices):
                for count, frame in enumerate(frames(indices)):
                    if count == at and waits == "segfault_late":
                        crash()
                    if count == at and waits == "kill_parent" and not os.path.exists(mark):
                        open(mark, "w").close()
                        time.sleep(2)  # what was read before is on its way
                        os.kill(os.getppid(), 9)
                    yield frame

            reader.frames = few
        return reader

    readers.open_video = open_video
"""


def fault_environment(folder: Path, faults: dict[str, str]) -> dict[str, str]:
    """Environment variables under which decoding children misbehave; to be laid over the present environment.

    `faults` maps a video's stem to one of `KINDS`. {"*": "count"} has every opened video's file name written to
    `opened_log(folder)`, a line each, in every child.
    """
    chosen = {stem: kind for stem, kind in faults.items() if stem != EVERY_VIDEO}
    unknown = {kind.partition(":")[0] for kind in chosen.values()} - set(KINDS)
    if unknown or faults.get(EVERY_VIDEO, "count") != "count":
        raise ValueError(f"unknown faults {sorted(unknown)}: choose of {KINDS}, or 'count' for '*'")
    log = str(opened_log(folder)) if EVERY_VIDEO in faults else ""
    place = folder / "faulty-python"
    place.mkdir(parents=True, exist_ok=True)
    (place / "sitecustomize.py").write_text(
        _SITECUSTOMIZE.replace("FAULTS", repr(json.dumps(chosen))).replace("LOG", repr(log))
    )
    root = str(Path(__file__).parent.parent)  # sitecustomize runs before the child's own path is complete
    path = [str(place), root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {"PYTHONPATH": os.pathsep.join(part for part in path if part)}


def opened_log(folder: Path) -> Path:
    """Where "count" writes."""
    return folder / "opened-videos.log"


def opened_videos(folder: Path) -> list[str]:
    """The file names of all videos opened so far, in order, as often as they were opened."""
    log = opened_log(folder)
    return log.read_text().splitlines() if log.exists() else []
