"""The 7 reactions of stage 2: their names and their order, which is part of the label and submission formats."""

from __future__ import annotations

REACTIONS = ("Adoration", "Amusement", "Anxiety", "Disgust", "Empathic-Pain", "Fear", "Surprise")
"""Intensities in [0, 1], one vector a video (PAPER.md, "The task"). Look columns up by these names."""
