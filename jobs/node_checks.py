"""What `doctor` asks of a node itself: that its decoders decode and its GPU computes. Runs there, as a Ray task."""

from __future__ import annotations

import importlib.util
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.health import look
from cluster.uri import one_line

CLIP_FRAMES = 12
CLIP_PX = 112


def examine(needed: Sequence[str], clip: bytes) -> dict[str, Any]:
    """What `cluster.health.look` tells, and by decoder whether it reads a clip (None, or why not)."""
    return {**look(needed, (), ()), "decoders": decoders(clip)}


def decoders(clip: bytes) -> dict[str, str | None]:
    """Whether each decoder reads an mp4 clip of `CLIP_FRAMES` frames, in a killable child as `extract` has it."""
    from mma.faces import FaceOptions
    from mma.video.errors import VideoError
    from mma.video.options import DecodeOptions
    from mma.video.slot import DecodeSlot

    found: dict[str, str | None] = {}
    with tempfile.TemporaryDirectory(prefix="mma-mrnnet-doctor-") as local:
        path = Path(local) / "clip.mp4"
        path.write_bytes(clip)
        for name in ("decord", "pyav"):
            if importlib.util.find_spec("av" if name == "pyav" else name) is None:
                found[name] = f"not installed ({platform.machine()})"
                continue
            options = DecodeOptions(decoder=name, timeout_s=20, faces=FaceOptions(detector="none"))
            try:
                with DecodeSlot(options) as slot:
                    frames = sum(len(chunk.frame_index) for chunk in slot.chunks(path))
                found[name] = None if frames == CLIP_FRAMES else f"{frames} frames of {CLIP_FRAMES} came"
            except VideoError as error:
                found[name] = one_line(error)
    return found


def multiply() -> dict[str, str | None]:
    """On a node with a GPU: whether torch multiplies two matrices there, and gets what the CPU gets."""
    import torch

    if not torch.cuda.is_available():
        return {"error": f"Ray counts a GPU, torch {torch.__version__} sees none (built for CUDA {torch.version.cuda})"}
    numbers = torch.arange(256 * 256, dtype=torch.float64).reshape(256, 256) / 256**2
    try:
        there = (numbers.float().cuda() @ numbers.float().cuda()).double().cpu()
    except RuntimeError as error:
        return {"error": one_line(error)}
    off = float((there - numbers @ numbers).abs().max() / (numbers @ numbers).max())
    if off > 1e-2:  # TF32 keeps 10 bits
        return {"error": f"a product of matrices is off by {off:.1e} of its largest number: this GPU computes wrongly"}
    device = torch.cuda.get_device_properties(0)
    bfloat16 = "bfloat16" if torch.cuda.is_bf16_supported() else "no bfloat16: use --precision float32"
    told = f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, {bfloat16}"
    return {"error": None, "told": told}


def made_clip() -> bytes:
    """A moving gradient, as an mp4."""
    import numpy as np

    from mma.drawing.clip import write_clip

    ramp = np.arange(CLIP_PX, dtype=np.uint8)
    frames = (np.broadcast_to((ramp + 5 * n)[None, :, None], (CLIP_PX, CLIP_PX, 3)).copy() for n in range(CLIP_FRAMES))
    with tempfile.TemporaryDirectory(prefix="mma-mrnnet-doctor-") as local:
        path = Path(local) / "clip.mp4"
        write_clip(path, frames, fps=12)
        return path.read_bytes()
