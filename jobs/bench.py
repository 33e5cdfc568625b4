"""`make bench`: extraction beside its limit in one run, the same decoding, cropping and network without Ray.

First the counts must agree, then the times are told: the whole `extract` command, and two bare processes that
share the files between them. Shared machines are noisy: both are run in turns, and the medians count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from jobs.cli import main as run_job
from jobs.models import load_weights
from jobs.progress import say

NETWORK = "random:0:tiny"
PROCESSES = 2


def bare(paths: list[str]) -> int:
    """Decode, find, crop and describe these files in this process; returns the frames."""
    import torch

    from mma.checkpoint import load_mma
    from mma.extractor import DescriptorExtractor
    from mma.video.options import DecodeOptions
    from mma.video.slot import DecodeSlot

    torch.set_num_threads(1)
    extractor = DescriptorExtractor(load_mma(load_weights(NETWORK).data).network, device="cpu", micro_batch=16)
    frames = 0
    with DecodeSlot(DecodeOptions()) as slot:
        for path in paths:
            for chunk in slot.chunks(path):
                extractor.extract([chunk.faces])
                frames += len(chunk.frame_index)
    return frames


def measure(corpus: Path, folder: Path, turn: int) -> dict[str, float]:
    """One turn of both: seconds and frames of each."""
    paths = sorted(map(str, corpus.iterdir()))
    started_s = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        bare_frames = sum(pool.map(bare, [paths[i::PROCESSES] for i in range(PROCESSES)]))
    bare_s = time.monotonic() - started_s
    out = io.StringIO()
    words = ["extract", "--videos", str(corpus), "--store", str(folder / f"store{turn}"), "--mma", NETWORK]
    started_s = time.monotonic()
    if code := run_job([*words, "--num-cpus", str(PROCESSES)], summary_stream=out):
        raise SystemExit(code)
    extract_s = time.monotonic() - started_s
    frames = json.loads(out.getvalue())["frames"]
    if frames != bare_frames:
        raise SystemExit(f"bench: extract committed {frames} frames and the bare processes read {bare_frames}")
    return {"frames": frames, "bare_s": bare_s, "extract_s": extract_s}


def main() -> int:
    """Run the bench and print its result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench", description=__doc__)
    parser.add_argument("--clips", type=int, default=60, help="clips to extract (copies of 8 drawn ones)")
    parser.add_argument("--turns", type=int, default=1, help="how often both are run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mma-mrnnet-bench-") as local, contextlib.redirect_stdout(sys.stderr):
        folder = Path(local)
        run_job(["synth", "--out", str(folder / "made"), "--videos", "8", "--seconds", "3,5"])
        drawn = sorted((folder / "made").glob("*/mp4/*.mp4"))
        (folder / "corpus").mkdir()
        for number in range(given.clips):
            shutil.copy(drawn[number % len(drawn)], folder / "corpus" / f"{number:05d}.mp4")
        turns = [measure(folder / "corpus", folder, turn) for turn in range(given.turns)]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    medians["overhead_s"] = medians["extract_s"] - medians["bare_s"]
    result = {name: round(value, 2) for name, value in medians.items()} | {"clips": given.clips, "turns": given.turns}
    say(f"extract took {result['overhead_s']} s more than two bare processes, Ray's start included")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
