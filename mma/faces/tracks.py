"""Which detection is which person: detections of one moment joined to the people seen before.

A person is known by position, motion and size. The cost of a join is the distance of the detection's centre from where
the person should be by now, in face sides, plus the absolute logarithm of the ratio of sides. The cheapest pairs join
first, so two crossing faces keep their people as long as they differ in motion or size, and a false positive wins
nobody who is still seen. Who looks alike, moves alike and is hidden meanwhile can be confused: appearance is not used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mma.faces.detectors import Detection

MOTION_S = 0.5
"""How long a person's last motion is believed, s: it bridges a crossing, and does not send a lost face off for ever."""

MOTION_GAIN = 0.4
"""Weight of the newest step in a person's motion; detectors jitter, so one step alone is not believed."""


@dataclass(kw_only=True)
class _Track:
    track_id: int
    detection: Detection  # the last one, smoothed
    time_s: float
    misses: int = 0
    motion: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))  # of the centre, px/s

    def cost(self, detection: Detection, time_s: float) -> float:
        """How unlike this person the detection is; 0 is the same place and size, infinite is out of reach."""
        elapsed_s = max(time_s - self.time_s, 0.0)
        expected = _centre(self.detection) + self.motion * min(elapsed_s, MOTION_S)
        own, other = _side(self.detection), _side(detection)
        offset = _centre(detection) - expected
        cost = math.hypot(*offset) / math.sqrt(own * other) + abs(math.log(other / own))
        # Half a side from one frame to the next; with the seconds passed the person may be anywhere near.
        return cost if cost <= min(0.5 + elapsed_s, 1.5) else math.inf


class Tracks:
    """All people of one video that are in view, or were a short while ago."""

    def __init__(self, *, lost_s: float, smooth_s: float) -> None:
        self._lost_s = lost_s
        self._smooth_s = smooth_s
        self._tracks: list[_Track] = []
        self._next_id = 0

    def __contains__(self, track_id: int | None) -> bool:
        return any(track.track_id == track_id for track in self._tracks)

    def update(self, time_s: float, detections: list[Detection]) -> dict[int, Detection]:
        """The people seen at this moment: their numbers and (smoothed) detections; the lost ones are forgotten."""
        costs = [
            (cost, track.track_id, index)
            for track in self._tracks
            for index, detection in enumerate(detections)
            if (cost := track.cost(detection, time_s)) < math.inf
        ]
        by_id = {track.track_id: track for track in self._tracks}
        joined: dict[int, int] = {}
        for _, track_id, index in sorted(costs):
            if track_id not in joined.values() and index not in joined:
                joined[index] = track_id
        for track in self._tracks:
            track.misses += 1
        seen = {}
        for index, detection in enumerate(detections):
            if index in joined:
                track = by_id[joined[index]]
                self._follow(track, detection, time_s)
            else:
                track = _Track(track_id=self._next_id, detection=detection, time_s=time_s)
                self._next_id += 1
                self._tracks.append(track)
            seen[track.track_id] = track.detection
        self._tracks = [track for track in self._tracks if track.misses < 2 or time_s - track.time_s <= self._lost_s]
        return seen

    def _follow(self, track: _Track, detection: Detection, time_s: float) -> None:
        elapsed_s = time_s - track.time_s
        if elapsed_s > 0:
            step = (_centre(detection) - _centre(track.detection)) / elapsed_s
            track.motion = track.motion + MOTION_GAIN * (step - track.motion)
            if self._smooth_s > 0:
                gain = 1 - math.exp(-elapsed_s / self._smooth_s)
                detection = Detection(
                    box=_towards(track.detection.box, detection.box, gain),
                    points=_towards(track.detection.points, detection.points, gain),
                    score=detection.score,
                )
        track.detection, track.time_s, track.misses = detection, time_s, 0


def _towards(start: NDArray[np.float32], end: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    return (start + np.float32(share) * (end - start)).astype(np.float32)


def between(start: Detection, end: Detection, share: float) -> Detection:
    """The face a share of the way, in [0, 1], from one detection of a person to the next, linearly."""
    return Detection(
        box=_towards(start.box, end.box, share),
        points=_towards(start.points, end.points, share),
        score=start.score + share * (end.score - start.score),
    )


def area(detection: Detection) -> float:
    """Of the box, px^2."""
    return float(detection.box[2]) * float(detection.box[3])


def _side(detection: Detection) -> float:
    return math.sqrt(max(area(detection), 1e-6))


def _centre(detection: Detection) -> NDArray[np.float64]:
    return (detection.box[:2] + detection.box[2:] / 2).astype(np.float64)
