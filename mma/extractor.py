"""From face crops to descriptors: the frames of many videos in micro-batches of one fixed size.

A video's numbers do not depend on the videos it travels with: each micro-batch has the same size, the last one padded,
so that the same kernels run whatever the company, and no step of the network looks across a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from mma.checkpoint import weights_sha256
from mma.network import MMANetwork

logger = logging.getLogger(__name__)


class DescriptorExtractor:
    """Runs an MMA network over face crops. Takes the network over: moves it to the device, in evaluation mode."""

    def __init__(
        self,
        network: MMANetwork,
        *,
        device: Literal["auto", "cpu", "cuda"] = "auto",
        micro_batch: int = 64,
        precision: Literal["auto", "float32", "bfloat16"] = "auto",
    ) -> None:
        """`device` and `precision` "auto": a GPU and bfloat16 where there are such; else the CPU, and float32.

        `micro_batch`: frames a pass of the network. Halved, and kept so, when a GPU's memory does not hold it.
        """
        if micro_batch < 1:
            raise ValueError(f"micro_batch={micro_batch} is under 1: give the frames of one pass, for example 64")
        self.device = _device(device)
        self.precision = _precision(precision, self.device)
        self.micro_batch = micro_batch
        self._weights_sha256 = weights_sha256(network)
        self._network = network.eval().to(self.device)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._config = network.config
        self._staging: _Staging | None = None

    def spec(self) -> dict[str, Any]:
        """What the descriptors depend on beside the crops, as plain JSON values; a feature store keeps it."""
        return {
            "weights_sha256": self._weights_sha256,
            "descriptor_names": list(self._config.descriptors.names),
            "precision": self.precision,
            "pixel_mean": list(self._config.pixel_mean),
            "pixel_std": list(self._config.pixel_std),
        }

    def extract(self, crops: Sequence[npt.NDArray[np.uint8]]) -> list[npt.NDArray[np.float32]]:
        """RGB crops of many videos, each uint8 (n_i, 112, 112, 3), to descriptors, each float32 (n_i, D).

        The side is the configuration's `crop_size_px`; n_i may be 0, and arrays may be read-only. Another shape or
        dtype raises ValueError. When a GPU's memory does not hold one frame, torch.OutOfMemoryError comes out.
        """
        size_px = self._config.crop_size_px
        for index, video in enumerate(crops):
            if video.dtype != np.uint8 or video.shape[1:] != (size_px, size_px, 3):
                raise ValueError(
                    f"crops[{index}] is {video.dtype} {video.shape}: "
                    f"give RGB faces as uint8 (n, {size_px}, {size_px}, 3)"
                )
        ends = np.cumsum([len(video) for video in crops], dtype=np.int64)
        num_frames = int(ends[-1]) if len(crops) else 0
        batches: list[torch.Tensor] = []  # they stay on the device until the end: reading one would wait for it
        first = 0
        with torch.inference_mode(), _kernels(self.device, self.precision):
            while first < num_frames:
                batch = self._descriptors(crops, ends, first)
                if batch is None:
                    self._halve()
                    continue
                batches.append(batch)
                first += len(batch)
        if not batches:
            return [np.empty((0, len(self._config.descriptors)), np.float32) for _ in crops]
        return np.split(torch.cat(batches).cpu().numpy(), ends[:-1])

    def _descriptors(
        self, crops: Sequence[npt.NDArray[np.uint8]], ends: npt.NDArray[np.int64], first: int
    ) -> torch.Tensor | None:
        """One micro-batch from frame `first` on, (at most micro_batch, D); None when the GPU's memory ran out."""
        try:
            if self._staging is None:
                self._staging = _Staging(self.micro_batch, self._config.crop_size_px, self.device)
            pixels, count = self._staging.load(crops, ends, first)
            return self._network.descriptors(self._network.normalise(pixels))[:count]
        except torch.OutOfMemoryError:
            if self.micro_batch == 1:
                raise
            return None

    def _halve(self) -> None:
        # Outside the except block: the traceback there still holds the tensors that filled the memory.
        self.micro_batch //= 2
        self._staging = None
        torch.cuda.empty_cache()
        logger.warning(
            "the GPU's memory ran out: going on with micro_batch=%d. To start with it, give that value, "
            "or leave the GPU to this process alone.",
            self.micro_batch,
        )


class _Staging:
    """Page-locked memory from which micro-batches go to a GPU while the CPU fills the next; plain memory on CPUs."""

    def __init__(self, micro_batch: int, size_px: int, device: torch.device) -> None:
        self._device = device
        pinned = device.type == "cuda"
        # Two on GPUs: one is filled while the other is copied.
        self._buffers = [
            torch.zeros((micro_batch, size_px, size_px, 3), dtype=torch.uint8, pin_memory=pinned)
            for _ in range(2 if pinned else 1)
        ]
        self._copied = [torch.cuda.Event() for _ in self._buffers] if pinned else []
        self._turn = 0

    def load(
        self, crops: Sequence[npt.NDArray[np.uint8]], ends: npt.NDArray[np.int64], first: int
    ) -> tuple[torch.Tensor, int]:
        """The frames from `first` on, uint8 (micro_batch, H, W, 3) on the device, and how many of them are real.

        `ends[i]` counts the frames of videos 0 to i. What is not filled is zero.
        """
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer = self._buffers[self._turn]
        if self._copied:
            self._copied[self._turn].synchronize()
        pixels = buffer.numpy()
        count = 0
        index = int(np.searchsorted(ends, first, side="right"))
        while count < len(pixels) and index < len(crops):
            start = first + count - (int(ends[index]) - len(crops[index]))
            part = crops[index][start : start + len(pixels) - count]
            pixels[count : count + len(part)] = part
            count += len(part)
            index += 1
        pixels[count:] = 0
        on_device = buffer.to(self._device, non_blocking=True)
        if self._copied:
            self._copied[self._turn].record()
        return on_device, count


@contextmanager
def _kernels(device: torch.device, precision: str) -> Iterator[None]:
    """The arithmetic of one extraction: bfloat16 in the trunk, or float32 that means it; repeatable kernels."""
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
    # cuDNN by default rounds float32 convolutions to TF32's 10 bits, and may choose kernels whose sums vary by run.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False), autocast:
        yield


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={name!r} is not known: choose auto, cpu or cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("device='cuda', but torch sees no GPU here: choose auto or cpu, or give the worker a GPU")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _precision(name: str, device: torch.device) -> str:
    if name not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision={name!r} is not known: choose auto, float32 or bfloat16")
    if name != "auto":
        return name
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if native else "float32"
