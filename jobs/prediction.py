"""From a model's URI and feature stores to predictions: what predict and evaluate share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cluster.scratch import node_folder
from cluster.storage import Folder, read
from cluster.uri import StorageError, display
from jobs.outcome import InputError, input_errors
from jobs.reaction_training import MODEL_FILE
from mma.store.schema import spec_differences
from rnn.flat import flat_videos, stores_spec
from rnn.grid import GridVideos
from rnn.model import Predictions, ReactionModel, load_model
from rnn.reactions import REACTIONS


def read_model(uri: str) -> ReactionModel:
    """A model at the URI of its file or its folder. Raises InputError where there is none."""
    place = uri if uri.endswith(".safetensors") else f"{uri.rstrip('/')}/{MODEL_FILE}"
    with input_errors(ValueError, OSError, StorageError, option=f"--model {display(uri)}"):
        if place != uri and not Folder(uri).exists(MODEL_FILE):
            raise InputError(f"--model {display(uri)} holds no {MODEL_FILE}: give a folder that train or tune wrote")
        return load_model(read(place), name=display(place))


def read_grid(model: ReactionModel, stores: Sequence[Folder], scratch: str | None) -> GridVideos:
    """The stores' videos on the model's grid. Raises InputError where they were made under another spec."""
    with input_errors(ValueError, OSError, StorageError, option="--store"):
        spec = stores_spec(stores)
        if differences := spec_differences(spec, model.spec):
            raise InputError(
                f"--store {stores[0].display} was made under another spec than the store of the model (given / its): "
                f"{'; '.join(differences)}; extract it again with the model's own"
            )
        return flat_videos(stores, spec, model.step_s, node_folder(scratch, "sequences"))


def best_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def prediction_table(predicted: Predictions, error_types: Mapping[str, str | None]) -> pa.Table:
    """A row a video: `video_id`, the 7 reactions, `spread_<reaction>` over seeds, and how each came about."""
    columns: dict[str, Any] = {"video_id": pa.array(predicted.video_ids, pa.string())}
    for prefix, values in (("", predicted.values), ("spread_", predicted.spread)):
        for column, name in enumerate(REACTIONS):
            columns[f"{prefix}{name}"] = pa.array(values[:, column].astype(np.float32), pa.float32())
    columns["status"] = pa.array(predicted.status, pa.string())
    columns["error_type"] = pa.array([error_types.get(video) for video in predicted.video_ids], pa.string())
    columns["steps"] = pa.array(predicted.steps, pa.int64())
    columns["steps_used"] = pa.array(predicted.steps_used, pa.int64())
    columns["face_share"] = pa.array(predicted.face_share.astype(np.float32), pa.float32())
    columns["outside_share"] = pa.array(predicted.outside_share.astype(np.float32), pa.float32())
    return pa.table(columns)
