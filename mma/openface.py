"""OpenFace 2's csv files as rows of a feature store: the field's common coin, and the fairest baseline.

One file a video, a row a frame and face, as FeatureExtraction and FaceLandmarkVidMulti write it: columns by name
(headers carry leading blanks), `frame` from 1, `timestamp` in seconds, and zeros where no face was found. Values stay
in OpenFace's units (`mma.descriptors.OPENFACE`).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mma.descriptors import OPENFACE
from mma.labels.registry import LayoutError
from mma.labels.sheet import Sheet, column_name, parse_csv
from mma.store import schema as s
from mma.store.rows import chunk_row, with_descriptors

FRAME, TIME, CONFIDENCE, SUCCESS, FACE = "frame", "timestamp", "confidence", "success", "face_id"
NEEDED = (FRAME, TIME, CONFIDENCE, SUCCESS, *OPENFACE.names)
"""Columns without which a file is refused; `face_id` came with OpenFace 2.1."""
_WANTED = frozenset(column_name(each) for each in (*NEEDED, FACE))


class OpenFaceError(ValueError):
    """A file that gives no video; `error_type` and the message are those of the failed row."""

    def __init__(self, error_type: str, message: str):
        super().__init__(message)
        self.error_type = error_type


def video_row(content: bytes, video: Mapping[str, Any], *, min_confidence: float) -> pa.Table:
    """A video's only row, before `mma.store.rows.settle_video`.

    Args:
        content: the csv.
        video: `video_id` and what else of `mma.store.schema.VIDEO_COLUMNS` is known of the file.
        min_confidence: a frame shows the face where `success` is 1 and `confidence` at least this.

    Of several faces the one that shows in most frames is taken (of equals, the lower number); frames that have rows
    of other faces alone show none.

    Raises:
        OpenFaceError: the file is empty, is no such csv, lacks columns, or its frames or times make no sense.
    """
    sheet = _sheet(content)
    columns = {name: _numbers(sheet, name) for name in NEEDED}
    face = _numbers(sheet, FACE) if FACE in sheet.columns else np.zeros(sheet.num_rows)
    frame = columns[FRAME]
    _demand_frames(frame, face)
    order = np.lexsort((face, frame))
    columns, face = {name: values[order] for name, values in columns.items()}, face[order]

    numbers, first_row, place = np.unique(columns[FRAME], return_index=True, return_inverse=True)
    times_s = columns[TIME][first_row]
    _demand_seconds(times_s, numbers)
    shown = (columns[SUCCESS] == 1) & (columns[CONFIDENCE] >= min_confidence)
    faces, which = np.unique(face, return_inverse=True)
    own = which == np.bincount(which, shown, len(faces)).argmax()

    count = len(numbers)
    found, score = np.zeros(count, bool), np.full(count, np.nan, np.float32)
    found[place[own]], score[place[own]] = shown[own], columns[CONFIDENCE][own]
    # Counted from 0 as every store does; a file that starts later has its gap.
    index = (numbers - min(1, numbers[0])).astype(np.int32)
    frames = {
        "frame_index": index,
        "time_s": times_s,
        "face_found": found,
        "face_score": score,
        "face_box": np.full((count, 4), np.nan, np.float32),
        "face_points": np.full((count, 10), np.nan, np.float32),
        "num_faces": np.bincount(place[shown], minlength=count).astype(np.int16),
    }
    seconds, steps = float(times_s[-1] - times_s[0]), int(index[-1] - index[0])
    told = {
        "work_id": f"{video['video_id']}#0",
        "decoder": OPENFACE.name,
        "chunk_index": 0,
        "num_chunks": 1,
        "status": s.OK,
        "first_frame": int(index[0]),
        "num_frames": count,
        "source_fps": steps / seconds if seconds else None,
        "duration_s": seconds * (steps + 1) / steps if seconds else None,
    }
    rows = own & shown
    values = np.stack([columns[name][rows] for name in OPENFACE.names], axis=1).astype(np.float32)
    return with_descriptors(chunk_row(OPENFACE, {**video, **told}, frames), OPENFACE, [values])


def _sheet(content: bytes) -> Sheet:
    if not content.strip():
        raise OpenFaceError("Empty", "the file is empty: run OpenFace again on this video")
    try:
        sheet = parse_csv(content, "the csv", wanted=_WANTED)
    except (LayoutError, csv.Error) as error:
        raise OpenFaceError("NotACsv", str(error)) from error
    lacking = [name for name in NEEDED if column_name(name) not in sheet.columns]
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise OpenFaceError(
            "MissingColumns",
            f"no column {', '.join(lacking[:3])}{more}: give csv files of OpenFace 2's FeatureExtraction, run with "
            "-pose -aus -gaze",
        )
    if not sheet.num_rows:
        raise OpenFaceError("Empty", "the csv has a header and no row: run OpenFace again on this video")
    return sheet


def _numbers(sheet: Sheet, name: str) -> npt.NDArray[np.float64]:
    try:
        return sheet.numbers(column_name(name))
    except LayoutError as error:
        raise OpenFaceError("NotANumber", str(error)) from error


def _demand_frames(frame: npt.NDArray[np.float64], face: npt.NDArray[np.float64]) -> None:
    if not ((frame >= 0) & (frame < 2**31) & (frame % 1 == 0)).all() or not np.isfinite(face).all():
        raise OpenFaceError("WrongFrames", "frame and face_id must be whole numbers from 0 in every row")
    pairs, counts = np.unique(np.stack([frame, face], axis=1), axis=0, return_counts=True)
    if (counts > 1).any():
        number, who = pairs[counts.argmax()]
        raise OpenFaceError(
            "WrongFrames", f"frame {number:.0f} stands there {counts.max()} times for face {who:.0f}: one video a file"
        )


def _demand_seconds(times_s: npt.NDArray[np.float64], numbers: npt.NDArray[np.float64]) -> None:
    """`times_s` (F,) of the frames `numbers` (F,), which ascend."""
    steps_s = np.diff(times_s)
    if not np.isfinite(times_s).all() or (steps_s < 0).any():
        raise OpenFaceError("WrongTimes", "timestamp must be a number in every row, and not fall from frame to frame")
    if not len(steps_s):
        return
    if times_s[0] == times_s[-1]:
        raise OpenFaceError(
            "WrongTimes", f"timestamp is {times_s[0]:g} in every frame: fill it in, in seconds, from the frame rate"
        )
    if np.median(steps_s) > 1 and np.median(np.diff(numbers)) == 1:
        raise OpenFaceError(
            "Milliseconds",
            f"timestamp grows by {np.median(steps_s):g} from frame to frame, as milliseconds do: divide it by 1000",
        )
