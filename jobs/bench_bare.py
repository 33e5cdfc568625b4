"""The plain alternatives that the bench sets beside this project: what a person would otherwise write, kept short.

Each function is a side that `jobs.bench_process.run_side` calls in a process of its own. Video sides return frames by
video id and when they came (seconds of the monotonic clock, frames).
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

FRAME_PX = 112
MICRO_BATCH = 16
"""Faces that go through the network at once, as in `extract` on CPUs."""

_state: dict[str, Any] = {}
"""What a process of `two_processes` keeps from clip to clip."""


def network(mma: str) -> Any:
    """The network, in evaluation mode, behind the project's own extractor: uint8 crops in, descriptors out."""
    from jobs.models import load_weights
    from mma.checkpoint import load_mma
    from mma.extractor import DescriptorExtractor

    return DescriptorExtractor(
        load_mma(load_weights(mma, check=False).data).network, device="cpu", micro_batch=MICRO_BATCH
    )


def told(came: list[tuple[str, float, int]]) -> dict[str, Any]:
    """(video id, seconds, frames) as a video side returns them."""
    videos: Counter[str] = Counter()
    for video, _, frames in came:
        videos[video] += frames
    return {"videos": dict(videos), "arrivals": [(time_s, frames) for _, time_s, frames in came]}


# --- the same decoding, cropping and network in bare processes ---


def bare_processes(paths: list[str], faces: dict[str, Any], mma: str, processes: int) -> dict[str, Any]:
    """Clip by clip, each process decoding, cropping and describing one at a time, without Ray."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, initializer=_start_process, initargs=(faces, mma)) as pool:
        return told([each for one in pool.imap_unordered(_describe, paths) for each in one])


def _start_process(faces: dict[str, Any], mma: str) -> None:
    import torch

    from mma.faces.options import FaceOptions
    from mma.video.options import DecodeOptions
    from mma.video.slot import DecodeSlot

    torch.set_num_threads(1)
    _state["slot"] = DecodeSlot(DecodeOptions(faces=FaceOptions(**faces)))
    _state["network"] = network(mma)


def _describe(path: str) -> list[tuple[str, float, int]]:
    came = []
    for chunk in _state["slot"].chunks(path):
        _state["network"].extract([chunk.faces])
        came.append((Path(path).stem, time.monotonic(), len(chunk.frame_index)))
    return came


# --- Ray Data's own template ---


def template(paths: list[str], mma: str, cpus: int, resize: bool) -> dict[str, Any]:
    """`ray.data.read_videos` and `map_batches`, a row a frame; `resize`: scaled by the reader, not in the batch."""
    import ray

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    size = (FRAME_PX, FRAME_PX) if resize else None
    frames = ray.data.read_videos(paths, include_paths=True, resize=size).map_batches(
        _Describer,
        fn_constructor_kwargs={"mma": mma, "threads": cpus},
        batch_size=64,
        num_cpus=0,  # an actor that claims a CPU would leave one reader of two
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    came = []
    for batch in frames.iter_batches(batch_size=None):
        now_s = time.monotonic()
        came += [(video, now_s, count) for video, count in Counter(batch["video"].tolist()).items()]
    ray.shutdown()
    return told(came)


class _Describer:
    """Frames to descriptors, as the template's `map_batches` takes it."""

    def __init__(self, mma: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.network = network(mma)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        (descriptors,) = self.network.extract([_small(batch["frame"])])
        videos = np.array([Path(path).stem for path in batch["path"]])
        return {"video": videos, "frame_index": batch["frame_index"], "descriptors": descriptors}


def _small(frames: np.ndarray) -> np.ndarray:
    import cv2

    if frames.shape[1:3] == (FRAME_PX, FRAME_PX):
        return frames
    return np.stack([cv2.resize(frame, (FRAME_PX, FRAME_PX), interpolation=cv2.INTER_AREA) for frame in frames])


# --- a PyTorch script ---


def data_loader(paths: list[str], mma: str, workers: int) -> dict[str, Any]:
    """decord in the workers of a PyTorch DataLoader, which scale to the network's size; the network in this process."""
    import torch

    model = network(mma)
    dataset: Any = _Clips(paths)
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
    came = []
    for video, frames in loader:
        model.extract([frames.numpy()])
        came.append((video, time.monotonic(), len(frames)))
    return told(came)


class _Clips:
    """A clip's frames by number, uint8 (T, 112, 112, 3)."""

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Any]:
        import decord
        import torch

        reader = decord.VideoReader(self.paths[index], width=FRAME_PX, height=FRAME_PX, num_threads=1)
        return Path(self.paths[index]).stem, torch.from_numpy(reader.get_batch(range(len(reader))).asnumpy())


# --- decoding alone ---


def full_frames(paths: list[str]) -> dict[str, Any]:
    """decord reading every frame in full size, on one core."""
    import decord

    _on_one_core()
    came = []
    for path in paths:
        reader = decord.VideoReader(path, num_threads=1)
        frames = sum(1 for frame in reader if frame.asnumpy().size)
        came.append((Path(path).stem, time.monotonic(), frames))
    return told(came)


def _on_one_core() -> None:
    """Hold this process and all that it starts to one core: decord's own second thread would take another."""
    import os

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


# --- training loops ---


def bare_loop(folders: dict[str, str], baton: str, padded: bool) -> None:
    """The same network trained by a loop of plain PyTorch, in turns that `baton` gives.

    padded: batches padded to their longest video and run through as they are, where the network's own way of running a
    batch in groups of like length is taken otherwise.
    """
    from jobs.bench_baton import serve_turns
    from jobs.bench_inputs import read_sequences
    from mma.training.world import World

    serve_turns(Path(baton), lambda data, _: BareLoop(read_sequences(folders[data]), padded=padded), World())


class BareLoop:
    """Forward, loss, backward, clip, step, over batches of sequences."""

    def __init__(self, data: Any, *, padded: bool, device: str = "cpu", bfloat16: bool = False):
        import torch

        from jobs.bench_baton import recommended

        self.data, self.padded, self.device, self.bfloat16 = data, padded, device, bfloat16
        self.network, fit = recommended(data)
        self.network.to(device).train()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=fit.learning_rate, weight_decay=fit.weight_decay
        )
        self.dropout = torch.Generator().manual_seed(0)

    def run(self, batches: list[list[int]]) -> list[float]:
        """An update a batch; the loss of each."""
        import torch

        from rnn.losses import reaction_loss

        losses = []
        sequences, labels = self.data.sequences, torch.from_numpy(self.data.labels)
        for batch in batches:
            own = [torch.tensor(each).to(self.device) for each in sequences.take(np.array(batch))]
            self.optimiser.zero_grad()
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
                features = self._padded(own) if self.padded else self.network.features(own)
            outputs = self.network.head(features.float(), dropout=self.dropout)
            loss, _ = reaction_loss(outputs, labels[batch].to(self.device), "pearson")
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
            self.optimiser.step()
            losses.append(float(loss.detach()))
        return losses

    def _padded(self, own: list[Any]) -> Any:
        import torch

        padded = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
        states, _ = self.network.recurrent.layers(padded)
        return self.network.readout(states, torch.tensor([len(each) for each in own]))
