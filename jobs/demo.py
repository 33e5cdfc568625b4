"""`make demo`: the whole path on a made corpus: clips, both networks trained, a feature store, predictions, a report.

It runs the same commands that a person would type, and prints each of them first.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from jobs.cli import main as run_job
from jobs.models import RUN_FILE
from jobs.progress import say

VIDEOS, DAMAGED, EPOCHS = 240, 12, 12
SEQUENCES = shlex.split("--fit.batch-size 32")
LEARNING = shlex.split("--learning-rate 4e-3 --batch-size 32 --balance 0.4 --loss.action-unit-weight 8")


def commands(out: Path) -> list[list[str]]:
    """What is run, word by word, into a folder; trainings that were begun there are gone on with."""
    corpus, model, store, reactions = out / "corpus", out / "mma", out / "store", out / "reactions"
    again, again2 = (["--resume"] if (folder / RUN_FILE).exists() else [] for folder in (model, reactions))
    told = [
        ["synth", "--out", corpus, "--videos", VIDEOS, "--seconds", "2,4", "--fps", 4, "--damaged", DAMAGED],
        [
            *("train-mma", "--labels", f"synth={corpus}", "--out", model, "--trunk", "tiny", "--epochs", EPOCHS),
            *LEARNING,
            *again,
        ],
        # Some of these files are damaged on purpose: the run must end well all the same.
        ["extract", "--videos", corpus, "--store", store, "--mma", model, "--max-failed-fraction", 0.5],
        ["export", "--store", store, "--out", out / "frames.csv", "--overwrite"],
        ["train", "--store", store, "--labels", corpus, "--out", reactions, "--seeds", 0, 1, 2, *SEQUENCES, *again2],
        # The corpus hands out no test labels; its truth has them.
        [
            *("evaluate", "--model", reactions, "--store", store, "--labels", corpus / "truth.parquet"),
            *("--split", "test", "--out", out, "--thumbnails", "--overwrite"),
        ],
        ["predict", "--model", reactions, "--store", store, "--out", out, "--overwrite"],
    ]
    return [[str(word) for word in words] for words in told]


def main() -> int:
    """Run the demo; returns the exit code of the first command that fails, else 0."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the corpus, the store and the rest")
    out = parser.parse_args().out
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{out.absolute()}/mlflow.db")
    for words in commands(out):
        say(f"\n$ mma-mrnnet {shlex.join(words)}")
        if code := run_job(words):
            return code
        sys.stdout.flush()
    from jobs.picture import draw_store

    picture = out / "store.png"
    draw_store(out / "store", picture)
    say(
        f"\n{out / 'report.html'} is the report; {out / 'predictions.csv'} has a row a video, the damaged ones too.\n"
        f"The networks are {out / 'mma/mma.safetensors'} and {out / 'reactions/mrnnet.safetensors'}, each with a "
        f"MODEL_CARD.md beside it;\n"
        f"`mlflow ui --backend-store-uri {os.environ['MLFLOW_TRACKING_URI']}` shows their trainings. The feature store "
        f"is {out / 'store'}, one row a frame is in {out / 'frames.csv'}, and {picture} shows a clip.\n"
        f"A minute's training on {VIDEOS} clips is a trial: the README says what longer ones reach."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
