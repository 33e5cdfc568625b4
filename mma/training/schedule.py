"""How the learning rate goes over a training."""

from __future__ import annotations

import math


def warmed_cosine(step: int, total_steps: int, warmup: float) -> float:
    """The share of the full rate at a step: it rises linearly over the share `warmup` of all steps, then falls as half
    a cosine, towards 0 after the last one."""
    warm = max(1, round(warmup * total_steps))
    rising = min(1.0, (step + 1) / warm)
    falling = 0.5 * (1 + math.cos(math.pi * max(0, step - warm) / max(1, total_steps - warm)))
    return min(rising, falling)
