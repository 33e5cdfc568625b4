"""How fast training crops reach a training worker: the flat file as `train-mma` uses it, beside its alternatives.

Three ways over the same crop store, shuffled batches of uint8 crops, counted first: gathered from the flat file in the
training process itself; the same through torch's DataLoader in a process of its own; and Ray Data reading the store's
Parquet anew each epoch. Run side by side in one process, turn by turn, since shared machines are noisy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

from cluster.storage import Folder
from mma.crops import flat_faces
from mma.crops.keys import KEY_COLUMNS

BATCH = 64


class Faces(torch.utils.data.Dataset):
    """The flat file as torch's DataLoader takes it: an item is a batch's crops."""

    def __init__(self, faces: np.ndarray, batches: list[np.ndarray]):
        self.faces, self.batches = faces, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.faces[self.batches[index]]))


def main() -> int:
    """Prints the figures as JSON: median crops a second of each way, and ratios to the first."""
    parser = argparse.ArgumentParser(prog="python -m jobs.bench_faces", description=__doc__)
    parser.add_argument("crops", help="a crop store, such as OUT/crops of a train-mma run")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    folder = Folder(asked.crops)
    rows = pq.read_table(_files(folder), filesystem=folder.filesystem()[0], columns=[*KEY_COLUMNS, "status"])
    rows = rows.filter(pc.equal(rows["status"], "ok"))
    with tempfile.TemporaryDirectory() as scratch:
        faces = flat_faces(folder, rows, Path(scratch))
        ray.init(address="local", include_dashboard=False, log_to_driver=False)
        ways = {
            "flat file, in process": lambda seed: _in_process(faces, seed),
            "flat file, DataLoader": lambda seed: _data_loader(faces, seed),
            "Parquet, Ray Data": lambda seed: _ray_data(folder, seed),
        }
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(asked.turns):
            for name, way in ways.items():
                speeds[name].append(_speed(lambda way=way, turn=turn: way(turn), rows.num_rows))  # type: ignore[misc]
    medians = {name: statistics.median(each) for name, each in speeds.items()}
    first = medians["flat file, in process"]
    told = {name: {"crops_per_s": round(each), "ratio": round(each / first, 3)} for name, each in medians.items()}
    print(json.dumps({"crops": rows.num_rows, "batch": BATCH, "turns": asked.turns, "ways": told}, indent=1))
    return 0


def _speed(way: Callable[[], Iterator[Any]], count: int) -> float:
    started_s = time.perf_counter()
    seen = sum(len(batch) for batch in way())
    if seen != count:
        raise RuntimeError(f"{seen} crops came of {count}: a way that loses crops is no way")
    return count / (time.perf_counter() - started_s)


def _batches(count: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(count)
    return [order[start : start + BATCH] for start in range(0, count, BATCH)]


def _in_process(faces: np.ndarray, seed: int) -> Iterator[torch.Tensor]:
    dataset = Faces(faces, _batches(len(faces), seed))
    return (dataset[index] for index in range(len(dataset)))


def _data_loader(faces: np.ndarray, seed: int) -> Iterator[torch.Tensor]:
    dataset = Faces(faces, _batches(len(faces), seed))
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1))


def _ray_data(folder: Folder, seed: int) -> Iterator[np.ndarray]:
    dataset = ray.data.read_parquet(_files(folder), filesystem=folder.filesystem()[0], columns=["face"])
    shuffled = dataset.random_shuffle(seed=seed).map_batches(_pixels, batch_format="pyarrow")
    return (batch["face"] for batch in shuffled.iter_batches(batch_size=BATCH, batch_format="numpy"))


def _files(folder: Folder) -> list[str]:
    path = folder.filesystem()[1]
    return [f"{path}/{file.name}" for file in folder.list(suffix=".parquet")]


def _pixels(rows: pa.Table) -> dict[str, np.ndarray]:
    faces = [np.frombuffer(each.as_buffer(), np.uint8) for each in rows["face"].combine_chunks() if each.is_valid]
    return {"face": np.stack(faces).reshape(-1, 112, 112, 3)}


if __name__ == "__main__":
    raise SystemExit(main())
