"""Drawn faces: from an identity, a scene and facial action values to an RGB frame; the inverse of stage 1 (CORPUS.md).

numpy and OpenCV alone; nothing here imports torch.
"""

from mma.drawing.frame import draw_empty_frame, draw_frame, landmarks
from mma.drawing.identity import Identity, sample_identity
from mma.drawing.motion import CONTROLS
from mma.drawing.scene import Scene, sample_scene

__all__ = [
    "CONTROLS",
    "Identity",
    "Scene",
    "draw_empty_frame",
    "draw_frame",
    "landmarks",
    "sample_identity",
    "sample_scene",
]
