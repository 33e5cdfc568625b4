"""What five minutes on two cores must reach on a made corpus, and that it is learnt from the faces (all slow).

The corpora are those of `MMA_MRNNET_TARGET_CORPORA` (two folders of `synth`, with a colon between; the crop store is kept
beside the first), or drawn here, which takes twenty minutes: many people, few frames of each, since neighbouring frames
are nearly the same picture. Everything is chosen on validation, and scored on test subjects.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.linear_model import Ridge

from cluster.storage import Folder
from jobs.cli import main
from mma.descriptors import MMA26
from mma.labels import LABEL_SCHEMA, label_arrays, read_labels
from mma.labels.table import ACTION_UNITS, VALENCE_AROUSAL
from mma.metrics import Stage1Metrics

CORPUS = ("--videos", "14000", "--seconds", "2,4", "--fps", "1", "--seed")
SEEDS = ("41", "43")
SETTINGS = (
    "--trunk", "tiny", "--learning-rate", "5e-3", "--balance", "0.4", "--loss.action-unit-weight", "8",
    "--loss.matching", "off", "--precision", "bfloat16",
)  # fmt: skip
EPOCHS = 5
"""What two cores with bfloat16 instructions show in five minutes; without those take float32 and 3."""
COMMON = 0.05
"""Share of positives from which an action unit counts."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * 3600)]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> list[Path]:
    given = os.environ.get("MMA_MRNNET_TARGET_CORPORA")
    if given:
        return [Path(each) for each in given.split(":")]
    folder = tmp_path_factory.mktemp("target")
    for seed in SEEDS:
        assert main(["synth", "--out", str(folder / seed), *CORPUS, seed]) == 0
    return [folder / seed for seed in SEEDS]


@pytest.fixture(scope="module")
def corpus(corpora) -> Path:
    """The first of them."""
    return corpora[0]


def trained(labels: list[str], corpus: Path, out: Path, epochs: int) -> dict:
    command = ["train-mma", "--out", str(out), "--crops", f"{corpus}-crops", "--no-tracking"]
    command += [word for each in labels for word in ("--labels", each)]
    command += [*SETTINGS, "--epochs", str(epochs)]
    assert main(command) == 0
    told = json.loads((out / "metrics.json").read_text())
    units = {name: each for name, each in told["scores"]["by_name"].items() if name.startswith("AU")}
    common = {name: each["f1"] for name, each in units.items() if each["n"] >= COMMON * each["known"]}
    scores = {name: told["scores"][name] for name in ("valence_ccc", "arousal_ccc", "expression_f1")}
    seconds = sum(entry["seconds"] for entry in told["history"])
    return scores | {
        "au_f1": float(np.mean(list(common.values()))),
        "least_au": min(common.values()),
        "seconds": seconds,
    }


@pytest.fixture(scope="module")
def five_minutes(corpora, corpus, tmp_path_factory) -> dict:
    started_s = time.monotonic()
    scores = trained([f"synth={each}" for each in corpora], corpus, tmp_path_factory.mktemp("five") / "mma", EPOCHS)
    print("five minutes:", scores, "with crops", round(time.monotonic() - started_s))
    return scores


def pixel_floor(corpus: Path) -> dict:
    """Ridge on 28 x 28 grey crops, standardised per image, in the same scores, thresholds chosen on validation."""
    import cv2

    from mma.crops import flat_faces, found

    table = read_labels("synth", Folder(str(corpus))).table
    crops = Folder(f"{corpus}-crops")
    table = table.filter(pa.array(found(crops, table)))
    faces = flat_faces(crops, table, corpus.parent / "floor-scratch")
    grey = [
        cv2.resize(cv2.cvtColor(each, cv2.COLOR_RGB2GRAY), (28, 28), interpolation=cv2.INTER_AREA) for each in faces
    ]
    x = np.stack(grey).reshape(len(grey), -1).astype(np.float32)
    x = (x - x.mean(axis=1, keepdims=True)) / (x.std(axis=1, keepdims=True) + 1)
    split, labels = np.array(table["split"]), label_arrays(table, MMA26)
    train = split == "train"

    def fitted(y: np.ndarray, known: np.ndarray) -> np.ndarray:
        return Ridge(alpha=300.0).fit(x[train & known], y[train & known]).predict(x)

    everywhere = np.ones(len(x), bool)
    va = fitted(labels.valence_arousal, everywhere)
    one_hot = np.eye(len(MMA26.expressions))[labels.expression.clip(min=0)]
    expressions = fitted(one_hot, labels.expression >= 0)
    columns = range(labels.action_units.shape[1])
    units = np.stack([fitted(labels.action_units[:, k], labels.action_units_known[:, k]) for k in columns], axis=1)

    def metrics(rows: np.ndarray) -> Stage1Metrics:
        return Stage1Metrics.of(
            MMA26,
            valence_arousal=va[rows],
            expressions=expressions[rows],
            action_units=units[rows],
            valence_arousal_label=labels.valence_arousal[rows],
            valence_arousal_known=labels.valence_arousal_known[rows],
            expression_label=labels.expression[rows],
            action_unit_label=labels.action_units[rows],
            action_unit_known=labels.action_units_known[rows],
        )

    scores = metrics(split == "test").scores(metrics(split == "val").action_units.best_thresholds())
    by_name = scores["by_name"]
    common = [by_name[u]["f1"] for u in MMA26.action_units if by_name[u]["n"] >= COMMON * by_name[u]["known"]]
    names = ("valence_ccc", "arousal_ccc", "expression_f1")
    return {name: scores[name] for name in names} | {"au_f1": float(np.mean(common))}


def test_five_minutes_reach_the_targets_of_expressions_and_action_units(five_minutes):
    assert five_minutes["seconds"] <= 330  # 290 on a quiet machine
    assert five_minutes["expression_f1"] >= 0.65
    assert five_minutes["au_f1"] >= 0.65
    assert five_minutes["least_au"] >= 0.35


@pytest.mark.xfail(
    reason="valence .733, arousal .747 in 5 epochs; .750, .758 in 28: six times the time adds .01 to .02"
)
def test_five_minutes_reach_the_targets_of_affect(five_minutes):
    assert five_minutes["valence_ccc"] >= 0.75
    assert five_minutes["arousal_ccc"] >= 0.75


def test_pixels_alone_are_far_below(five_minutes, corpus):
    floor = pixel_floor(corpus)
    print("pixel floor:", floor)
    for name, value in floor.items():
        assert five_minutes[name] >= value + 0.25, name


def test_half_an_hour_reaches_little_more(five_minutes, corpora, corpus, tmp_path_factory):
    labels = [f"synth={each}" for each in corpora]
    longer = trained(labels, corpus, tmp_path_factory.mktemp("longer") / "mma", round(5.6 * EPOCHS))
    print("half an hour:", longer)
    for name in ("valence_ccc", "arousal_ccc", "expression_f1", "au_f1"):
        assert five_minutes[name] >= 0.9 * longer[name], name


def test_shuffled_labels_teach_nothing(five_minutes, corpus, tmp_path_factory):
    """The same faces with the training labels of other frames: in the table of one's own, over the same crop store."""
    table = read_labels("synth", Folder(str(corpus))).table.to_pandas()
    train = np.flatnonzero(table["split"] == "train")
    labels = [*VALENCE_AROUSAL, "expression", *ACTION_UNITS]
    order = np.random.default_rng(0).permutation(train)
    table.loc[train, labels] = table.loc[order, labels].to_numpy()
    folder = tmp_path_factory.mktemp("shuffled")
    kept = table[["source", "frame", "split", "subject", *labels]].rename(columns={"source": "uri"})
    kept.to_parquet(folder / "frames.parquet")
    assert set(labels) <= set(LABEL_SCHEMA.names)
    shuffled = trained([f"frames={folder}"], corpus, folder / "mma", 2 * EPOCHS)
    print("shuffled labels:", shuffled)
    for name in ("valence_ccc", "arousal_ccc", "expression_f1", "au_f1"):
        assert five_minutes[name] >= shuffled[name] + 0.25, name
