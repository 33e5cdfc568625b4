"""A row of `bench train`: how fast training crops reach a training process of stage 1, beside its alternatives.

Three ways over the same crop store, shuffled batches of uint8 crops, counted first: gathered from the flat file in the
training process itself, as `train-mma` does; the same through torch's DataLoader in a process of its own; and Ray Data
reading the store's Parquet anew each epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Folder
from jobs.bench_inputs import Bench
from jobs.bench_process import run_side
from jobs.bench_table import Figure, Turn, demand_equal, ratio_figure
from mma.crops import crop_spec, flat_faces
from mma.crops.keys import KEY_COLUMNS
from mma.crops.rows import DETECTED, crop_rows
from mma.crops.store import CropWriter, settle_spec
from mma.faces.options import FaceOptions
from mma.labels.table import CUT

BATCH = 64
FILE_CROPS = 2_000


def crops(bench: Bench) -> Sequence[Figure]:
    """The flat file in process beside each of the others."""
    store = bench.folder / "crops"
    store.mkdir()
    write_crops(Folder(str(store)), bench.sizes.crops)
    request: dict[str, Any] = {"store": str(store), "scratch": str(bench.folder / "crops-scratch")}
    ran = run_side("jobs.bench_faces:speeds", bench.folder / "sides", turns=bench.turns, **request)
    sides = {name: [Turn(counts={"crops": n}, rate=rate) for n, rate in each] for name, each in ran.found.items()}
    whole = Turn(counts={"crops": bench.sizes.crops}, rate=1)
    for each in sides.values():
        for turn in each:
            demand_equal(turn, whole)
    first, *others = sides
    return [ratio_figure(sides[first], sides[name], name=f"times {name}", of="crops/s") for name in others]


def write_crops(folder: Folder, count: int) -> None:
    """A crop store of so many faces of noise."""
    spec = crop_spec(FaceOptions().spec())
    settle_spec(folder, spec)
    writer = CropWriter(folder, spec, "bench")
    rng = np.random.default_rng(0)
    for start in range(0, count, FILE_CROPS):
        own = min(FILE_CROPS, count - start)
        coarse = rng.integers(0, 256, (own, 28, 28, 3), dtype=np.uint8)  # about as compressible as faces are
        rows = crop_rows(
            sources=[f"/corpus/{start + number:06d}.png" for number in range(own)],
            versions=["1"] * own,
            crops=[CUT] * own,
            frames=np.full(own, -1),
            keys=np.arange(own),
            how=[DETECTED] * own,
            faces=coarse.repeat(4, axis=1).repeat(4, axis=2),
        )
        writer.add(rows)
        writer.commit()


def speeds(store: str, scratch: str, turns: int) -> dict[str, list[tuple[int, float]]]:
    """(crops, crops/s) of each way, a number a turn."""
    import ray
    import torch  # noqa: F401  (seconds, which the first way would take for its own)

    from cluster.session import ray_session

    folder = Folder(store)
    rows = pq.read_table(_files(folder), filesystem=folder.filesystem()[0], columns=KEY_COLUMNS)
    faces = flat_faces(folder, rows, Path(scratch))
    with ray_session("local"):
        ray.data.DataContext.get_current().enable_progress_bars = False
        ways: dict[str, Callable[[int], Iterator[Any]]] = {
            "the flat file in process": lambda seed: _in_process(faces, seed),
            "the flat file by DataLoader": lambda seed: _data_loader(faces, seed),
            "Parquet by Ray Data": lambda seed: _ray_data(folder, seed),
        }
        found: dict[str, list[tuple[int, float]]] = {name: [] for name in ways}
        for turn in range(turns):
            for name, way in ways.items():
                started_s = time.perf_counter()
                seen = sum(len(batch) for batch in way(turn))
                found[name].append((seen, seen / (time.perf_counter() - started_s)))
    return found


class Faces:
    """The flat file as torch's DataLoader takes it: an item is a batch's crops."""

    def __init__(self, faces: np.ndarray, batches: list[np.ndarray]):
        self.faces, self.batches = faces, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(self.faces[self.batches[index]]))


def _batches(count: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(count)
    return [order[start : start + BATCH] for start in range(0, count, BATCH)]


def _in_process(faces: np.ndarray, seed: int) -> Iterator[Any]:
    dataset = Faces(faces, _batches(len(faces), seed))
    return (dataset[index] for index in range(len(dataset)))


def _data_loader(faces: np.ndarray, seed: int) -> Iterator[Any]:
    import torch

    dataset: Any = Faces(faces, _batches(len(faces), seed))
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1))


def _ray_data(folder: Folder, seed: int) -> Iterator[np.ndarray]:
    import ray

    dataset = ray.data.read_parquet(_files(folder), filesystem=folder.filesystem()[0], columns=["face"])
    shuffled = dataset.random_shuffle(seed=seed).map_batches(_pixels, batch_format="pyarrow")
    return (batch["face"] for batch in shuffled.iter_batches(batch_size=BATCH, batch_format="numpy"))


def _files(folder: Folder) -> list[str]:
    path = folder.filesystem()[1]
    return [f"{path}/{file.name}" for file in folder.list(suffix=".parquet")]


def _pixels(rows: pa.Table) -> dict[str, np.ndarray]:
    faces = [np.frombuffer(each.as_buffer(), np.uint8) for each in rows["face"].combine_chunks()]
    return {"face": np.stack(faces).reshape(-1, 112, 112, 3)}
