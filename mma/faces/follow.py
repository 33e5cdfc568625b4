"""One person followed through a video: frames in, the person's crops out, in order, in bounded memory.

Faces are detected on every k-th frame and interpolated in between, so up to k frames are held. Who is followed is
decided over a window: until then the crops of the four largest faces of each frame are held instead of the frames
(37 KB each). A person who goes missing makes the results wait: back within `lost_s`, the gap has no face and nothing
else happened; else a new window, begun at the loss, chooses again. So neither a crossing nor a false positive in the
background takes the person's place. What comes out depends on the frames and their times alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mma.faces.alignment import crop_face
from mma.faces.detectors import Detection, Detector, make_detector, no_points
from mma.faces.options import FaceOptions
from mma.faces.tracks import Tracks, area, between

MAX_CANDIDATES = 4
"""Faces of a frame whose crops are kept while nobody is chosen."""

MAX_WINDOWS_HELD = 4
"""Results wait for a missing person for no more than so many windows, whatever `lost_s`: the bound of memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameFace:
    """What one frame shows of the person followed."""

    frame_index: int
    """As pushed: the frame's number in its source."""
    time_s: float
    """As pushed."""
    found: bool
    """Whether the person is in the frame; if not, score, box and points are NaN and crop is None."""
    score: float
    """The detector's; interpolated between detections, NaN where the detector has none."""
    box: NDArray[np.float32]
    """(4,) x, y, w, h, px of the frame."""
    points: NDArray[np.float32]
    """(10,) x, y of five points, px of the frame; NaN where the detector gives none."""
    num_faces: int
    """Faces detected in the frame, or in the nearer detected frame (the earlier of two equally near)."""
    crop: NDArray[np.uint8] | None
    """(112, 112, 3) RGB."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Moment:
    """A frame on which faces were detected."""

    time_s: float
    people: dict[int, Detection]
    num_faces: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
    """A frame whose person is not decided: the candidates' faces and crops."""

    frame_index: int
    time_s: float
    num_faces: int
    candidates: dict[int, tuple[Detection, NDArray[np.uint8]]]


class FaceFollower:
    """Follows one person through one video. `push` the sampled frames in order, then `finish`.

    detector: None makes the one that the options name; giving one spares its making for each of many videos.
    Raises as `make_detector` does.
    """

    def __init__(self, options: FaceOptions, detector: Detector | None = None) -> None:
        self._options = options.resolved()
        self._detect = detector or make_detector(options)
        self._tracks = Tracks(lost_s=self._options.lost_s, smooth_s=self._options.smooth_s or 0.0)
        self._held: list[tuple[int, float, NDArray[np.uint8]]] = []  # frames since the last detection
        self._last: _Moment | None = None
        self._subject: int | None = None
        self._waiting: list[_Waiting] = []
        self._num_pushed = 0
        self._finished = False

    def push(self, frame_index: int, time_s: float, frame: NDArray[np.uint8]) -> list[FrameFace]:
        """Takes a frame uint8 (H, W, 3) RGB, not to be overwritten later; returns the frames decided by now, in order.

        Raises ValueError for an array that is no such frame, and for a frame after `finish`.
        """
        if self._finished:
            raise ValueError("finish was called: a FaceFollower is for one video, make another")
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
            raise ValueError(f"a frame is uint8 (height, width, 3) RGB, not {frame.dtype} {frame.shape}")
        self._held.append((frame_index, time_s, frame))
        if self._num_pushed % self._options.detect_every == 0:
            self._detect_newest()
        self._num_pushed += 1
        return self._decided(at_end=False)

    def finish(self) -> list[FrameFace]:
        """Detects on the last frame, if that was not done, and returns all frames that are left."""
        if self._held:
            self._detect_newest()
        self._finished = True
        return self._decided(at_end=True)

    def _detect_newest(self) -> None:
        """Detects on the newest frame held and turns all frames held into waiting ones."""
        _, time_s, frame = self._held[-1]
        detections = self._detect(frame)
        moment = _Moment(time_s=time_s, people=self._tracks.update(time_s, detections), num_faces=len(detections))
        before = self._last or moment
        for number, (frame_index, frame_time_s, held_frame) in enumerate(self._held, start=1):
            if moment.time_s > before.time_s:
                share = min(max((frame_time_s - before.time_s) / (moment.time_s - before.time_s), 0.0), 1.0)
            else:  # time stamps that stand still
                share = number / len(self._held)
            # Rounded, so that time stamps equally near to both detections count as that.
            share = 1.0 if number == len(self._held) else round(share, 6)
            people = self._candidates(before.people, moment.people, share)
            self._waiting.append(
                _Waiting(
                    frame_index=frame_index,
                    time_s=frame_time_s,
                    num_faces=before.num_faces if share <= 0.5 else moment.num_faces,
                    candidates={person: (face, self._crop(held_frame, face)) for person, face in people.items()},
                )
            )
        self._held.clear()
        self._last = moment

    def _candidates(
        self, before: dict[int, Detection], after: dict[int, Detection], share: float
    ) -> dict[int, Detection]:
        """The faces of a frame that may turn out to be wanted, a share of the way between two detections."""
        people = {}
        for person in sorted(before.keys() | after.keys()):
            if person in before and person in after:
                people[person] = between(before[person], after[person], share) if share < 1 else after[person]
            elif person in before and share <= 0.5:
                people[person] = before[person]
            elif person in after and share > 0.5:
                people[person] = after[person]
        if self._subject in after:
            return {person: face for person, face in people.items() if person == self._subject}
        ranked = sorted(people, key=lambda person: (person != self._subject, -area(people[person]), person))
        return {person: people[person] for person in ranked[:MAX_CANDIDATES]}

    def _crop(self, frame: NDArray[np.uint8], face: Detection) -> NDArray[np.uint8]:
        return crop_face(frame, face.box, face.points, box_scale=1.0 if self._options.detector == "none" else None)

    def _decided(self, *, at_end: bool) -> list[FrameFace]:
        """Takes the frames whose face is certain off the waiting ones, choosing a person where it is time to."""
        decided: list[FrameFace] = []
        window = self._options.window_frames
        while self._waiting:
            if self._subject is None:
                if len(self._waiting) < window and not at_end:
                    break
                self._subject = self._choose()
                if self._subject is None:
                    decided += self._take(len(self._waiting))
                    break
            decided += self._take(self._num_up_to_last_sight())
            missing = len(self._waiting)
            if self._subject not in self._tracks or missing >= MAX_WINDOWS_HELD * window:
                self._subject = None
            elif at_end:
                decided += self._take(missing)
            else:
                break
        return decided

    def _choose(self) -> int | None:
        """The largest and steadiest of the waiting frames' people: sum of areas x share of frames present."""
        areas: dict[int, list[float]] = {}
        for frame in self._waiting:
            for person, (face, _) in frame.candidates.items():
                areas.setdefault(person, []).append(area(face))
        return max(areas, key=lambda person: (sum(areas[person]) * len(areas[person]), -person), default=None)

    def _num_up_to_last_sight(self) -> int:
        """How many waiting frames there are up to the last that shows the person, that one counted."""
        for index in range(len(self._waiting) - 1, -1, -1):
            if self._subject in self._waiting[index].candidates:
                return index + 1
        return 0

    def _take(self, count: int) -> list[FrameFace]:
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return [_frame_face(frame, self._subject) for frame in taken]


def _frame_face(frame: _Waiting, person: int | None) -> FrameFace:
    face, crop = None, None
    if person is not None and person in frame.candidates:
        face, crop = frame.candidates[person]
    return FrameFace(
        frame_index=frame.frame_index,
        time_s=frame.time_s,
        found=face is not None,
        score=face.score if face else float("nan"),
        box=face.box if face else np.full(4, np.nan, dtype=np.float32),
        points=face.points if face else no_points(),
        num_faces=frame.num_faces,
        crop=crop,
    )
