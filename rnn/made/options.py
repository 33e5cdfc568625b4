"""The settings of a made corpus (CORPUS.md): what `mma-mrnnet synth` asks of the timeline half."""

from __future__ import annotations

import math
from dataclasses import dataclass

TIMINGS = ("free", "locked")
GAPS = ("country", "tone")


@dataclass(frozen=True, kw_only=True)
class CorpusOptions:
    """What decides a made corpus's plan; equal options give equal corpora."""

    videos: int
    """Number of clips over all three splits. From 60 on, train has at least 30 subjects and val and test 15 each;
    below that every clip is its own subject."""
    seed: int = 0
    """Root of all random draws."""
    seconds: tuple[float, float] = (3.0, 8.0)
    """Shortest and longest clip in seconds; lengths are uniform between them and say nothing about the reactions."""
    fps: float = 12.0
    """Frames a second of the drawn clips."""
    timing: str = "free"
    """`free`: apexes anywhere in the clip. `locked`: at the stimulus's times plus a latency."""
    stimuli: int = 1
    """Number of stimuli, each with a clock of its own, under `locked` timing. One clock favours weights per step."""
    label_noise: float = 1.0
    """Scale of the annotators' noise in the frame labels; 0 gives the truth. Reaction labels do not depend on it."""
    gaps: tuple[str, ...] = ()
    """Planted subgroup gaps: `country` (one reports with more noise), `tone` (dark faces have less contrast)."""

    def __post_init__(self) -> None:
        if self.videos < 1:
            raise ValueError(f"--videos {self.videos}: a corpus needs at least 1 clip")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: give a number of 0 or more")
        if len(self.seconds) != 2 or not 0 < self.seconds[0] <= self.seconds[1] or not math.isfinite(self.seconds[1]):
            raise ValueError(f"--seconds {self.seconds}: give the shortest and the longest length, above 0, as in 3,8")
        if not 0 < self.fps <= 240:
            raise ValueError(f"--fps {self.fps}: give frames a second above 0 and up to 240")
        if self.timing not in TIMINGS:
            raise ValueError(f"--timing {self.timing}: choose one of {', '.join(TIMINGS)}")
        if self.stimuli < 1:
            raise ValueError(f"--stimuli {self.stimuli}: locked timing needs at least 1 stimulus")
        if not 0 <= self.label_noise <= 10:
            raise ValueError(f"--label-noise {self.label_noise}: give a factor from 0 (the truth) to 10")
        unknown = [gap for gap in self.gaps if gap not in GAPS]
        if unknown:
            raise ValueError(f"--gap {unknown[0]}: choose from {', '.join(GAPS)}")
