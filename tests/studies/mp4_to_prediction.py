"""What is lost on the way from mp4 to prediction: the same masked RNN on extracted and on true descriptors, paired,
each with the sequence options that suit it (`OF_EXTRACTED`, `OF_TRUE`).

Five folds over subjects, three seeds; every clip is predicted by networks that saw neither it nor its person, and the
MMA network that extracted it was trained on a corpus of other people. Used by `tests/jobs/test_mp4_to_prediction.py`;
by hand: `python -m tests.studies.mp4_to_prediction CORPUS STORE --out study.json`. `--nearer .4` draws the extracted
descriptors so far towards the true ones: how good an extractor would have to be for a given share of the score.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cluster.storage import Folder
from jobs.reaction_run import joined_samples
from jobs.synth import true_rows
from mma.descriptors import MMA26
from rnn import made
from rnn.bootstrap import paired_difference
from rnn.flat import flat_videos, stores_spec, stores_step
from rnn.grid import GridVideos, to_grid
from rnn.labels import read_labels
from rnn.metrics import ReactionMetrics
from rnn.network import NetworkConfig, random_rnn
from rnn.sequences import SequenceOptions
from rnn.training.data import labels_of, person_numbers, prepared_splits, steps_reached
from rnn.training.final import TrainedSeed, finished_model, split_predictions
from rnn.training.loop import ReactionTraining, predict
from rnn.training.options import PRESETS, FitOptions

FOLDS, SEEDS = 5, 3

OF_EXTRACTED = SequenceOptions(normalise="subject", probabilities="log-odds")
"""What an extracted descriptor needs and a true one does not: a person's resting face, which looks a little like some
AUs, is an offset of the evidence for them, so that each person's own median takes it away."""
OF_TRUE = SequenceOptions()
"""True descriptors score best as they are (by person: .98 of that)."""


def out_of_fold(
    grid: GridVideos, samples: pa.Table, sequence: SequenceOptions, scratch: Path, say: Any = print
) -> np.ndarray:
    """(SEEDS, N, 7): the calibrated prediction of each sample by networks that saw nothing of its person."""
    people = person_numbers(samples)
    fold = np.random.default_rng(0).permutation(people.max() + 1)[people] % FOLDS
    network = NetworkConfig(**PRESETS["recommended"]["network"])
    fit = FitOptions(**{**PRESETS["recommended"]["fit"], "batch_size": 64})
    found = np.full((SEEDS, samples.num_rows, 7), np.nan)
    for turn in range(FOLDS):
        split = np.where(fold == turn, "test", np.where(fold == (turn + 1) % FOLDS, "val", "train"))
        own = samples.set_column(
            samples.schema.get_field_index("split"), "split", pa.array(split.tolist(), pa.string())
        )
        splits, normaliser = prepared_splits(grid, own, sequence, scratch)
        steps = steps_reached(splits, None, network)
        trained = []
        for seed in range(SEEDS):
            training = ReactionTraining(
                random_rnn(len(normaliser.names), steps, network, seed=seed),
                splits["train"].labelled(),
                splits["val"].labelled(),
                fit,
                seed=seed,
            )
            for _ in training.epochs():
                pass
            best = training.best_network()
            outputs = {name: predict(best, each.sequences) for name, each in splits.items()}
            trained.append(
                TrainedSeed(seed=seed, network=best, outputs=outputs, best_epoch=training.progress.best_epoch, epochs=0)
            )
        model = finished_model(
            trained,
            splits,
            sequence=sequence,
            normaliser=normaliser,
            step_s=grid.step_s,
            spec={},
            calibrate=True,
            record={},
        )
        found[:, fold == turn] = split_predictions(model, trained, "test", splits["test"])
        say(f"fold {turn + 1} of {FOLDS}")
    return found


def true_grid(corpus: Folder) -> GridVideos:
    """The corpus's true descriptors at 10 Hz."""
    options = json.loads(corpus.read("_corpus.json"))
    from jobs.synth import Options

    settings = {name: value for name, value in options.items() if name in Options.__dataclass_fields__}
    clips = made.plan_corpus(Options(out="", **{**settings, "gap": tuple(settings.get("gap", ()))}).corpus())
    return to_grid(pa.concat_tables([true_rows(clip) for clip in clips]), MMA26.names, 0.1)


def true_of_frames(corpus: Folder, extracted: GridVideos) -> np.ndarray:
    """(S, 26): the truth at the extracted steps, each of which is a frame."""
    truth = pd.read_parquet(io.BytesIO(corpus.read("frames.parquet"))).sort_values(["video_id", "frame"])
    columns = [f"true_{name}" for name in extracted.names]
    by_video = {name: rows[columns].to_numpy(np.float32) for name, rows in truth.groupby("video_id")}
    lengths = np.diff(extracted.offsets)
    return np.concatenate([by_video[name][:length] for name, length in zip(extracted.video_ids, lengths)])


def study(corpus: Folder, store: Folder, scratch: Path, nearer: float = 0.0, say: Any = print) -> dict[str, Any]:
    """Scores of both, their ratio with its interval by subject, and how well descriptors agree."""
    labels = read_labels("truth.parquet", corpus.read("truth.parquet"))
    spec = stores_spec([store])
    extracted = flat_videos([store], spec, stores_step([store]), scratch)
    truth = true_of_frames(corpus, extracted)
    values = (nearer * truth + (1 - nearer) * extracted.values).astype(np.float32)
    extracted = replace(extracted, values=values, key="")
    known = ~np.isnan(values).any(axis=1)
    agreement = {
        name: float(np.corrcoef(values[known, k], truth[known, k])[0, 1]) for k, name in enumerate(extracted.names)
    }
    samples, _ = joined_samples(labels, extracted.video_ids)
    y, people = labels_of(samples), person_numbers(samples)
    ours = out_of_fold(extracted, samples, OF_EXTRACTED, scratch, say)
    theirs = out_of_fold(true_grid(corpus), samples, OF_TRUE, scratch, say)
    return {
        "clips": samples.num_rows,
        "subjects": int(people.max()) + 1,
        "extracted": [ReactionMetrics.of(each, y).scores()["mean_pearson"] for each in ours],
        "true": [ReactionMetrics.of(each, y).scores()["mean_pearson"] for each in theirs],
        "ratio": paired_difference(ours, theirs, y, people)["ratio"],
        "ratio_of_means_over_seeds": paired_difference(ours.mean(axis=0), theirs.mean(axis=0), y, people)["ratio"],
        "descriptor_r": agreement,
        "median_descriptor_r": float(np.median(list(agreement.values()))),
    }


def main() -> None:
    """By hand."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("store")
    parser.add_argument("--nearer", type=float, default=0.0)
    parser.add_argument("--scratch", type=Path, default=Path("scratch"))
    parser.add_argument("--out", type=Path, default=Path("mp4.json"))
    told = parser.parse_args()
    found = study(Folder(told.corpus), Folder(told.store), told.scratch, told.nearer)
    told.out.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
