"""`make demo`: the whole path on a made corpus, from mp4 clips to a feature store, a table, and a picture of both.

It runs the same commands that a person would type, and prints each of them first.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from jobs.cli import main as run_job
from jobs.progress import say

VIDEOS, DAMAGED = 24, 12


def main() -> int:
    """Run the demo; returns the exit code of the first command that fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the corpus, the store and the rest")
    out = parser.parse_args().out
    corpus, store = out / "corpus", out / "store"
    commands = [
        ["synth", "--out", corpus, "--videos", VIDEOS, "--seconds", "2,4", "--damaged", DAMAGED],
        # A third of these files is damaged on purpose: the run must end well all the same.
        ["extract", "--videos", corpus, "--store", store, "--mma", "random:0:tiny", "--max-failed-fraction", 0.5],
        ["export", "--store", store, "--out", out / "frames.csv", "--overwrite"],
    ]
    for command in commands:
        words = [str(word) for word in command]
        say(f"\n$ mma-mrnnet {shlex.join(words)}")
        if code := run_job(words):
            return code
        sys.stdout.flush()
    from jobs.picture import draw_store

    picture = out / "store.png"
    draw_store(store, picture)
    say(
        f"\nThe feature store is {store}, one row a frame is in {out / 'frames.csv'}, and {picture} shows a clip.\n"
        f"No MMA network has been trained yet: these descriptors come from random weights and mean nothing."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
