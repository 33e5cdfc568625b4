"""`MODEL_CARD.md` of both stages, from records as the jobs write them, and the page on consent."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from markdown_it import MarkdownIt
from reaction_worlds import WIDTH, made_network

from cluster.uri import StorageError
from jobs import forget, model_card, train, train_mma
from jobs.model_card import FROM_SCRATCH, MADE, TRUTH, UNTRAINED, CardFacts, mma_card, people_by_split, reaction_card
from mma.checkpoint import dump_mma, weights_sha256
from mma.faces.alignment import CropGeometry
from mma.faces.options import FaceOptions
from mma.floors import constant_floors
from mma.metrics import Stage1Metrics
from mma.network import MMAConfig, random_mma
from mma.store import schema as s
from rnn.bootstrap import group_scores
from rnn.model import NO_CALIBRATION, ReactionModel
from rnn.network import NetworkConfig
from rnn.reactions import REACTIONS
from rnn.sequences import Normaliser, SequenceOptions
from rnn.training.final import split_scores

ROOT = Path(__file__).parents[2]
CONSENT = (ROOT / "docs/consent.md").read_text()
NETWORK = random_mma(MMAConfig(trunk="tiny", crop=CropGeometry().spec()), seed=0)
DESCRIPTORS = NETWORK.config.descriptors
CHECKPOINT = dump_mma(NETWORK, {})
FIELDS = {
    "name": "20260101T000000-abcdef",
    "weights_sha256": "0" * 64,
    "date": "2026-01-01",
    "versions": {"mma-mrnnet": "0.1.0"},
    "network": {"trunk": "tiny"},
    "sources": [{"set": "faces", "from": "/data/faces"}],
    "splits": [{"split": "train", "samples": "1,000"}],
    "preprocessing": {"detector": "haar"},
    "settings": {"epochs": 3},
    "defaults": {"epochs": 20},
}


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=dataclasses.asdict))


# --- records as the jobs leave them ---


def frame_metrics(samples: int = 400, units_known: bool = True) -> Stage1Metrics:
    """Of made predictions: AU26 is never there, AU25 rarely."""
    rng = np.random.default_rng(0)
    classes, units = len(DESCRIPTORS.expressions), len(DESCRIPTORS.action_units)
    unit_labels = (rng.random((samples, units)) < 0.2).astype(np.float32)
    unit_labels[:, -1] = 0
    unit_labels[:, -2] = np.arange(samples) < 5
    return Stage1Metrics.of(
        DESCRIPTORS,
        {
            "valence_arousal": rng.normal(size=(samples, 2)),
            "expressions": rng.dirichlet(np.ones(classes), samples),
            "action_units": rng.random((samples, units)),
        },
        {},
    )


def test_placeholder():
    assert frame_metrics
