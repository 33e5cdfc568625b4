"""The plan of a made corpus: which person, felt reactions, labels, length and seed each clip has.

Cheap (no frame is computed) and decided by the options alone, so that the driver plans and any worker plays a clip.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnn.made.felt import sample_felt, sample_shown, self_report
from rnn.made.options import CorpusOptions
from rnn.made.subjects import Subject, sample_subject
from rnn.reactions import REACTIONS

SPLITS = ("Train", "Val", "Test")
_SHARES = (0.63, 0.185, 0.185)
"""As Hume-Reaction's 15,806, 4,657 and 4,604 (PAPER.md)."""
_MIN_SUBJECTS = (30, 15, 15)
_CLIPS_PER_SUBJECT = 11.3


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip before anything of it is drawn; `play` makes its timeline from this alone."""

    video_id: str
    """Number in the corpus, `00000`; drawn in random order, so that it tells neither split nor subject."""
    split: str
    """`Train`, `Val` or `Test`."""
    subject: Subject
    """The person in it."""
    seed: int
    """Seed of everything random in this clip's timeline and frame labels."""
    num_frames: int
    """Frames of the drawn clip, at least 1."""
    fps: float
    """Frames a second of the drawn clip."""
    felt: tuple[float, ...]
    """Felt intensities in [0, 1], in the order of REACTIONS."""
    shown: tuple[float, ...]
    """Peaks of the displays in [0, 1], in the same order; 0 where nothing is felt or it is hidden."""
    labels: tuple[float, ...]
    """Self-reported intensities in [0, 1] with a largest of 1, in the same order."""
    cues_s: tuple[float, ...]
    """When the stimulus calls for each reaction, in the same order, inside the clip; empty under free timing."""
    label_noise: float
    """Scale of the annotators' noise in the frame labels."""

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.fps


def split_sizes(videos: int) -> dict[str, tuple[int, int]]:
    """Clips and subjects of each split: {split: (clips, subjects)}.

    From 60 clips on, train has at least 30 subjects and val and test 15 each, with fewer clips a subject where 11 do
    not fit; below 60 every clip is its own subject, and val and test have a clip each as soon as there are three.
    """
    val = max(round(_SHARES[1] * videos), min(_MIN_SUBJECTS[1], videos // 4), int(videos >= 3))
    clips = (videos - 2 * val, val, val)
    return {
        split: (count, min(count, max(round(count / _CLIPS_PER_SUBJECT), least)))
        for split, count, least in zip(SPLITS, clips, _MIN_SUBJECTS, strict=True)
    }


def plan_corpus(options: CorpusOptions) -> list[Clip]:
    """All clips in the order of their ids. Planted gaps and frame-label noise change nothing but themselves."""
    rng = np.random.default_rng([options.seed, 0])
    splits: list[str] = []
    people: list[Subject] = []
    first = 0
    for split, (count, num_subjects) in split_sizes(options.videos).items():
        if count == 0:
            continue
        shares = rng.dirichlet(np.full(num_subjects, 8.0))
        clips_each = 1 + rng.multinomial(count - num_subjects, shares)
        for number, num_clips in enumerate(clips_each, start=first):
            people += [sample_subject(number, options.seed, options.gaps)] * int(num_clips)
        splits += [split] * count
        first += num_subjects

    size = options.videos
    order = rng.permutation(size)
    people, splits = [people[i] for i in order], [splits[i] for i in order]
    felt = sample_felt(rng, size)
    shown = sample_shown(rng, felt, np.array([person.expressivity for person in people]))
    frames = np.maximum(np.rint(rng.uniform(*options.seconds, size) * options.fps), 1).astype(int)
    seeds = rng.integers(2**31, size=size)
    cues_s = _stimulus_cues(options)
    stimulus = rng.integers(options.stimuli, size=size)
    labels = self_report(
        # A generator of its own: redrawn rows, more of them under a planted gap, must not shift the other draws.
        np.random.default_rng([options.seed, 2]),
        felt,
        np.array([person.style.exponent for person in people]),
        np.array([person.style.baseline for person in people]),
        np.array([person.style.noise for person in people]),
    )
    return [
        Clip(
            video_id=f"{i:05d}",
            split=splits[i],
            subject=people[i],
            seed=int(seeds[i]),
            num_frames=int(frames[i]),
            fps=options.fps,
            felt=tuple(map(float, felt[i])),
            shown=tuple(map(float, shown[i])),
            labels=tuple(map(float, labels[i])),
            cues_s=_inside(cues_s[stimulus[i]], frames[i] / options.fps) if options.timing == "locked" else (),
            label_noise=options.label_noise,
        )
        for i in range(size)
    ]


def _stimulus_cues(options: CorpusOptions) -> np.ndarray:
    """When each stimulus calls for each reaction, seconds, float64 (stimuli, 7): at one of its three events.

    The first event lies inside the shortest clip.
    """
    rng = np.random.default_rng([options.seed, 3])
    shortest, longest = options.seconds
    first = rng.uniform(0.1, 0.6, options.stimuli) * shortest
    later = first[:, None] + np.cumsum(rng.uniform(0.2, 0.35, (options.stimuli, 2)), axis=1) * longest
    events_s = np.column_stack([first, later])
    event = rng.permuted(np.tile(np.arange(len(REACTIONS)) % 3, (options.stimuli, 1)), axis=1)
    return np.take_along_axis(events_s, event, axis=1)


def _inside(cues_s: np.ndarray, seconds: float) -> tuple[float, ...]:
    """The cues, those too late for an apex in this clip moved to the first event."""
    return tuple(float(cue) for cue in np.where(cues_s < seconds - 0.8, cues_s, cues_s.min()))
