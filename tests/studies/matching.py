"""Does distribution matching help where action unit labels are scarce? A study on a made corpus, five seeds, paired.

Action unit labels are kept on a tenth of the training subjects; expressions and affect are known everywhere. Five arms
share each seed's subjects, start, order of samples and augmentation: no matching term, the Du prior, the corpus's own
P(AU | expression) counted on its training truth, and the Du prior with its action units permuted, which must not help.
Run by hand (a quarter of an hour for a small corpus): `python -m tests.studies.matching CORPUS CROPS --out study.json`.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.storage import Folder
from jobs.models import start_network
from mma.crops import flat_faces, found
from mma.descriptors import MMA26
from mma.labels import read_labels
from mma.losses import LossOptions
from mma.prior import prior_matrix
from mma.training.data import TrainingData, training_data
from mma.training.final import final_scores
from mma.training.loop import Training
from mma.training.options import TrainingOptions

ARMS = ("off", "du", "true", "permuted")
SCORES = ("au_f1", "expression_f1", "valence_ccc", "arousal_ccc")
LABELLED_SHARE = 0.1


def corpus_prior(corpus: Folder) -> np.ndarray:
    """P(AU occurs | expression) over the training frames' truth, float32 (7, 17); 0 for neutral, as Du's table has it."""
    truth = pq.read_table(io.BytesIO(corpus.read("frames.parquet"))).to_pandas()
    truth = truth[(truth["split"] == "Train") & truth["true_expression"].notna()]
    occurs = truth[[f"true_{unit}" for unit in MMA26.action_units]].to_numpy() >= 0.4
    prior = np.zeros((len(MMA26.expressions), len(MMA26.action_units)), np.float32)
    for row, name in enumerate(MMA26.expressions):
        frames = (truth["true_expression"] == name).to_numpy()
        if name != "neutral" and frames.any():
            prior[row] = occurs[frames].mean(axis=0)
    return prior


def arm_prior(arm: str, corpus: Folder, seed: int) -> np.ndarray:
    """The prior of one arm; the permuted one moves whole columns, so that each expression keeps other weights' sum."""
    if arm == "true":
        return corpus_prior(corpus)
    du = prior_matrix(MMA26)
    return du[:, np.random.default_rng([seed, 7]).permutation(du.shape[1])] if arm == "permuted" else du


def scarce(data: TrainingData, seed: int) -> TrainingData:
    """The same data with action unit labels on a tenth of the training subjects, at least two."""
    train = data.of_split("train")
    people = np.random.default_rng([seed, 3]).permutation(np.unique(data.people[train]))
    kept = people[: max(2, round(LABELLED_SHARE * len(people)))]
    known = data.labels.action_units_known.copy()
    known[train[~np.isin(data.people[train], kept)]] = False
    return replace(data, labels=data.labels._replace(action_units_known=known))


def run_arm(data: TrainingData, arm: str, seed: int, corpus: Folder, options: TrainingOptions) -> dict[str, float]:
    """The test scores of one arm and seed, everything chosen on validation."""
    options = replace(options, seed=seed, loss=replace(options.loss, matching="off" if arm == "off" else "both"))
    network, _ = start_network("tiny", "mma26", None, seed=seed)
    prior = None if arm == "off" else torch.from_numpy(arm_prior(arm, corpus, seed))
    training = Training(network, scarce(data, seed), options, prior=prior, bfloat16=True)
    for _ in training.epochs():
        pass
    scores = final_scores(training, training.best_network())["scores"]
    return {name: scores[name] for name in SCORES}


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % by Student's t over the paired differences of the seeds."""
    from scipy.stats import t

    half = t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean() - half), float(differences.mean() + half)


def study(
    corpus: Folder, data: TrainingData, options: TrainingOptions, seeds: int, kept: Path, say: Any = print
) -> dict[str, Any]:
    """All arms over all seeds: the scores, and each arm's paired difference from `off` with its interval.

    `kept` holds the scores so far, a line a run: a study that was stopped goes on there.
    """
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    before = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(line["seed"], line["arm"]): line["scores"] for line in before}
    for seed in range(seeds):
        for arm in ARMS:
            if (seed, arm) not in done:
                scores = run_arm(data, arm, seed, corpus, options)
                with kept.open("a") as lines:
                    lines.write(json.dumps({"seed": seed, "arm": arm, "scores": scores}) + "\n")
                done[seed, arm] = scores
            runs[arm].append(done[seed, arm])
            say(f"seed {seed} {arm}: " + ", ".join(f"{name} {value:.3f}" for name, value in runs[arm][-1].items()))
    told: dict[str, Any] = {"runs": runs, "against_off": {}}
    for arm in ARMS[1:]:
        told["against_off"][arm] = {}
        for name in SCORES:
            differences = np.array([ours[name] - off[name] for ours, off in zip(runs[arm], runs["off"])])
            low, high = interval(differences)
            told["against_off"][arm][name] = {"mean": float(differences.mean()), "low": low, "high": high}
    return told


def load(corpus: Folder, crops: Folder, scratch: Path, every: int = 1) -> TrainingData:
    """The corpus's labelled frames with a face in the crop store."""
    table = read_labels("synth", corpus).table
    table = table.filter(pa.array(found(crops, table)))
    table = table.take(np.arange(0, table.num_rows, every))
    table = table.drop_columns(["box", "points"]).add_column(0, "set", pa.array(["synth"] * table.num_rows))
    return training_data(table, flat_faces(crops, table, scratch), MMA26)


def main() -> None:
    """Prints a line a run and writes the whole as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus")
    parser.add_argument("crops")
    parser.add_argument("--out", type=Path, default=Path("matching.json"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--epoch-samples", type=int, default=12000)
    asked = parser.parse_args()
    options = TrainingOptions(
        epochs=asked.epochs,
        epoch_samples=asked.epoch_samples,
        learning_rate=5e-3,
        balance=0.4,
        loss=LossOptions(action_unit_weight=8.0),
    )
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Folder(asked.corpus)
        data = load(corpus, Folder(asked.crops), Path(scratch))
        told = study(corpus, data, options, asked.seeds, asked.out.with_suffix(".lines"))
    asked.out.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
