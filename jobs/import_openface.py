"""`mma-mrnnet import-openface`: csv files of OpenFace 2 -> a feature store, for the same training and prediction.

No Ray: a csv is read in milliseconds. Kill it whenever you like and run it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jobs.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn csv files of OpenFace 2 (FeatureExtraction -pose -aus -gaze), one a video, into a feature store.

    Descriptors keep OpenFace's names and units: AU01_r ... from 0 to 5, AU01_c ... 0 or 1, gaze_angle_x and _y,
    pose_Rx, _Ry and _Rz in radians. Run it again at any time: what the store has is done.
    """

    csvs: str
    """Folder or prefix (searched through for *.csv), glob, or one csv; local, file:// or s3://."""
    store: str
    """Folder of the feature store; made if absent."""
    confidence: float = 0.8
    """A frame shows the face where OpenFace says success with at least this confidence, 0 to 1; part of the store's
    spec."""
    video_id: Literal["stem", "path"] = "stem"
    """What names a video: its csv's name without ending, or its path below the folder."""
    limit: int | None = None
    """Take only the first N files."""
    retry_failed: bool = False
    """Read the store's failed files again."""
    redo_changed: bool = False
    """Read the files again that have changed since."""
    max_failed_fraction: float = 0.05
    """More failed files than this share of all end the run with exit code 3."""

    def __post_init__(self) -> None:
        for name in ("confidence", "max_failed_fraction"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give a number from 0 to 1")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit {self.limit}: give 1 or more")


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    from jobs.openface_run import OpenFaceRun  # its imports take a while: wrong options are told before them

    return OpenFaceRun(options).run()
