"""Rows of the bench that need a GPU: skipped, with the reason, where there is none."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jobs.bench_inputs import Bench, read_sequences, sequence_files
from jobs.bench_process import run_side
from jobs.bench_table import CountsDifferError, Figure, Row, SkippedError, Turn, demand_equal, ratio_figure

TRUNK = "random:0:resnet50"
CHUNK_FRAMES = 1024
BATCHES = (128, 256, 512, 1024)
"""Of which the bare network gets its best."""


def demand_gpu() -> None:
    """Raises SkippedError where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        raise SkippedError("torch sees no GPU here")


def descriptors(bench: Bench) -> Sequence[Figure]:
    """Crops in main memory to descriptors there, beside the network over crops that lie on the GPU."""
    demand_gpu()
    frames = 2 * CHUNK_FRAMES if bench.small else 16 * CHUNK_FRAMES
    speeds = run_side("jobs.bench_gpu:descriptor_speeds", bench.folder / "sides", frames=frames, turns=bench.turns)
    return [ratio_figure(*_sides(speeds.found, "descriptors"), name="ratio", of="descriptors/s", to_reach=0.9)]


def _sides(speeds: Any, what: str) -> list[list[Turn]]:
    """Turns of ours and of theirs from (count, rate) of both, turn by turn."""
    sides = [[Turn(counts={what: count}, rate=rate) for count, rate in side] for side in zip(*speeds)]
    for ours, theirs in zip(*sides):
        demand_equal(ours, theirs)
    return sides


def descriptor_speeds(
    frames: int,
    turns: int,
    mma: str = TRUNK,
    device: str = "cuda",
    micro_batch: int = 256,
    batches: Sequence[int] = BATCHES,
) -> list[list[tuple[int, float]]]:
    """(descriptors, descriptors/s) of the extractor and of the bare network, turn by turn."""
    import torch

    from jobs.models import load_weights
    from mma.checkpoint import load_mma
    from mma.extractor import DescriptorExtractor

    data = load_weights(mma).data
    bare = load_mma(data).network.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    settings: Any = {"device": device, "micro_batch": micro_batch, "precision": "bfloat16"}
    extractor = DescriptorExtractor(load_mma(data).network, **settings)
    chunk = np.random.default_rng(0).integers(0, 256, (min(CHUNK_FRAMES, frames), 112, 112, 3), dtype=np.uint8)
    chunks = [chunk] * (frames // len(chunk))

    def through_extractor() -> int:
        return sum(len(each) for each in extractor.extract(chunks))

    def through_bare(pixels: Any) -> int:
        done = 0
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            while done < frames:
                done += len(bare.descriptors(bare.normalise(pixels[: frames - done])))
        return done

    on_device = {size: torch.from_numpy(np.resize(chunk, (size, *chunk.shape[1:]))).to(device) for size in batches}
    best = max(batches, key=lambda size: _speed(lambda: through_bare(on_device[size]), device)[1])
    _speed(through_extractor, device)
    pairs = []
    for _ in range(turns):
        theirs = _speed(lambda: through_bare(on_device[best]), device)
        pairs.append([_speed(through_extractor, device), theirs])
    return pairs


def _speed(work: Callable[[], int], device: str) -> tuple[int, float]:
    import torch

    started_s = time.perf_counter()
    count = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return count, count / (time.perf_counter() - started_s)


def training(bench: Bench) -> Sequence[Figure]:
    """Stage 2 in bfloat16, beside a bare loop over the same batches."""
    demand_gpu()
    request: dict[str, Any] = {"number": bench.sizes.train_batches, "turns": bench.turns}
    ran = run_side(
        "jobs.bench_gpu:training_speeds", bench.folder / "sides", sequences=sequence_files(bench)["uniform"], **request
    )
    return [ratio_figure(*_sides(ran.found, "sequences"), name="ratio", of="sequences/s", to_reach=0.95)]


def training_speeds(sequences: str, number: int, turns: int, device: str = "cuda") -> list[list[tuple[int, float]]]:
    """(sequences, sequences/s) of the product's loop and of a bare one, turn by turn; the first turn warms up."""
    from jobs.bench_bare import BareLoop
    from jobs.bench_baton import OurLoop, batches_of

    data = read_sequences(sequences)
    ours = OurLoop(data, device=device, bfloat16=True)
    bare = BareLoop(data, padded=False, device=device, bfloat16=True)
    pairs = []
    for turn in range(turns + 1):
        batches = batches_of(len(data), number, turn)

        pairs.append([_speed(functools.partial(_trained, loop, batches), device) for loop in (ours, bare)])
    return pairs[1:]


def _trained(loop: Any, batches: list[list[int]]) -> int:
    losses = loop.run(batches)
    if len(losses) != len(batches):
        raise CountsDifferError(f"counts differ: {len(losses)} updates of {len(batches)} batches")
    return sum(map(len, batches))


GPU_EXTRACT_ROWS = (
    Row(
        id="gpu-descriptors",
        measured="ResNet-50 at 112 px in bfloat16 through the extractor, crops in main memory",
        beside="the bare network at its best batch size, crops on the GPU",
        measure=descriptors,
    ),
)
GPU_TRAIN_ROWS = (
    Row(
        id="gpu-loop",
        measured="masked RNN in training on a GPU, bfloat16",
        beside="the same network in a bare PyTorch loop",
        measure=training,
    ),
)
