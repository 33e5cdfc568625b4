"""Faces in frames: find them, follow one person, and cut the crops that the MMA network sees.

Needs numpy and OpenCV alone: the decode child imports this package and must never import torch.
"""

from mma.faces.alignment import GEOMETRY, CropGeometry, align, similarity_transform, square_crop
from mma.faces.detectors import Detection, Detector, make_detector
from mma.faces.follow import FaceFollower, FrameFace
from mma.faces.options import FaceOptions

__all__ = [
    "GEOMETRY",
    "CropGeometry",
    "Detection",
    "Detector",
    "FaceFollower",
    "FaceOptions",
    "FrameFace",
    "align",
    "make_detector",
    "similarity_transform",
    "square_crop",
]
