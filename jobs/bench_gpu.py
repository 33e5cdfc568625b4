"""Rows of the bench that need a GPU: skipped, with the reason, where there is none."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from jobs.bench_inputs import Bench, clip_paths, read_sequences, sequence_files
from jobs.bench_process import run_side
from jobs.bench_table import (
    CountsDifferError,
    Figure,
    Row,
    SkippedError,
    Turn,
    demand_equal,
    ratio_figure,
    steady_rate,
)

TRUNK = "random:0:resnet50"
CHUNK_FRAMES = 1024
BATCHES = (128, 256, 512, 1024)
"""Of which the bare network gets its best."""
VIDEO_FPS = 30


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
    ratio = ratio_figure(*_sides(speeds.found, "descriptors"), name="ratio", of="descriptors/s", to_reach=0.9)
    faces = bench.faces("yunet", 5) if bench.detector_weights else bench.faces("haar", 10)
    request: dict[str, Any] = {"paths": clip_paths(bench, bench.sizes.decode_clips), "faces": asdict(faces)}
    decoded = run_side("jobs.bench_ours:decoding", bench.folder / "sides", **request).found["arrivals"]
    return [ratio, *feeding(ratio.ours or 0.0, steady_rate(decoded, share=0.05))]


def feeding(descriptors_per_s: float, decoded_per_s: float) -> list[Figure]:
    """What a GPU of this speed takes: decode slots of one core, and video, each frame of it described."""
    cores = Figure(name="decode cores that feed one GPU", value=descriptors_per_s / decoded_per_s, unit="")
    hours = descriptors_per_s / VIDEO_FPS * 24
    return [cores, Figure(name=f"video-hours a day and GPU, {VIDEO_FPS} frames a second", value=hours, unit="h")]


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


def frame_training(bench: Bench) -> Sequence[Figure]:
    """An epoch of stage 1 in bfloat16, beside a bare loop."""
    demand_gpu()
    faces = 2_048 if bench.small else 32_768
    ran = run_side("jobs.bench_gpu:frame_training_speeds", bench.folder / "sides", faces=faces, turns=bench.turns)
    return [ratio_figure(*_sides(ran.found, "faces"), name="ratio", of="faces/s", to_reach=0.95)]


def frame_training_speeds(
    faces: int, turns: int, mma: str = TRUNK, device: str = "cuda", batch_size: int = 256
) -> list[list[tuple[int, float]]]:
    """(faces, faces/s) of an epoch of the product's loop and of a bare one over the same crops and labels, without
    augmentation, turn by turn; the first turn warms up."""
    import torch

    from jobs.models import load_weights
    from mma.checkpoint import load_mma
    from mma.labels.table import LabelArrays
    from mma.losses import LossOptions, stage1_loss
    from mma.training.augment import NO_AUGMENTATION
    from mma.training.data import TrainingData
    from mma.training.draw import batch_count
    from mma.training.loop import Training, _frame_labels
    from mma.training.options import TrainingOptions

    random, data = np.random.default_rng(0), load_weights(mma).data
    network = load_mma(data).network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    names = network.config.descriptors
    units = faces, len(names.action_units)
    labels = LabelArrays(
        random.uniform(-1, 1, (faces, 2)).astype(np.float32),
        np.ones((faces, 2), bool),
        random.integers(0, len(names.expressions), faces),
        (random.random(units) < 0.3).astype(np.float32),
        np.ones(units, bool),
    )
    pixels = random.integers(0, 256, (faces, 112, 112, 3), np.uint8)
    members = {"train": {"made": np.arange(faces)}, "val": {}, "test": {}}
    made = TrainingData(faces=pixels, labels=labels, members=members, people=np.arange(faces))
    options = TrainingOptions(batch_size=batch_size, augment=NO_AUGMENTATION, epochs=turns + 1)
    ours = Training(load_mma(data).network, made, options, device=device, bfloat16=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.learning_rate)

    def bare_epoch() -> int:
        done = 0
        for rows in np.array_split(random.permutation(faces), -(-faces // batch_size)):
            optimiser.zero_grad(set_to_none=True)
            batch = torch.from_numpy(pixels[rows]).to(device, non_blocking=True)
            with torch.autocast(device, torch.bfloat16):
                outputs = network.train()(network.normalise(batch))
            known = _frame_labels(made, rows, torch.device(device))
            stage1_loss(outputs, known, LossOptions(), names)[0].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), options.clip_norm)
            optimiser.step()
            done += len(rows)
        return done

    def our_epoch() -> int:
        before, steps = ours.progress.steps_done, batch_count(faces, batch_size)
        ours.train_epoch()
        if ours.progress.steps_done - before != steps:
            raise CountsDifferError(f"counts differ: {ours.progress.steps_done - before} steps of {steps}")
        return faces  # an epoch shows each once

    return [[_speed(work, device) for work in (our_epoch, bare_epoch)] for _ in range(turns + 1)][1:]


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
        id="gpu-faces",
        measured="MMA network (ResNet-50) in training on a GPU, bfloat16, an epoch",
        beside="the same network in a bare PyTorch loop",
        measure=frame_training,
    ),
    Row(
        id="gpu-loop",
        measured="masked RNN in training on a GPU, bfloat16",
        beside="the same network in a bare PyTorch loop",
        measure=training,
    ),
)
