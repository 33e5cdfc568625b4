"""`mma-mrnnet predict`: a model and videos, or a feature store of them -> 7 reaction intensities a video.

Videos pass through a feature store in OUT, so that a killed run goes on where it stopped. Every video asked for gets a
row, also one without a face or that cannot be read: `status` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tyro

from jobs.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Options:
    """Predict the 7 reaction intensities of videos, or of the videos of a feature store.

    Local paths, file:// and s3:// (AWS_* in the environment). Writes to OUT predictions.parquet (with status, spread
    over seeds, share of frames with a face) and predictions.csv (File_ID and the 7 reactions).
    """

    model: str
    """URI of a masked RNN, or of the folder that train made."""
    out: str
    """Folder of the predictions."""
    videos: str | None = None
    """Folder or prefix (searched through), glob, csv or Parquet table with video_id and uri, or one video."""
    store: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """URI of a feature store instead of videos, made under the model's own spec; as often as there are stores."""
    mma: str | None = None
    """With --videos: URI of the MMA checkpoint that the model's store was made with."""
    detector_weights: str | None = None
    """With --videos: URI of YuNet's ONNX file, where the model's store was made with that detector."""
    subjects: str | None = None
    """URI of a table (video_id, subject), for a model whose sequences are normalised by subject."""
    video_id: Literal["stem", "path"] = "stem"
    """What names a video that no table names: its file name without ending, or its path below the folder."""
    brackets: bool = False
    """Write File_ID as [00000], as some submission sites want it."""
    keep_store: bool = False
    """Keep the feature store that --videos passes through, OUT/_store."""
    overwrite: bool = False
    """Replace the predictions that OUT holds."""
    max_failed_fraction: float = 0.05
    """With --videos: more failed videos than this share of all end the run with exit code 3."""
    address: str | None = None
    """Ray cluster to extract on, host:port or auto; default: a Ray of its own on this machine."""
    num_cpus: int | None = None
    """CPUs of the local Ray; default: all."""
    scratch: str | None = None
    """Node-local folder; default: as of extract."""

    def __post_init__(self) -> None:
        if (self.videos is None) == (not self.store):
            raise ValueError("give --videos, or --store, and not both")
        if self.videos is not None and self.mma is None:
            raise ValueError("--mma is missing: --videos needs the checkpoint that the model's store was made with")


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    from jobs.predict_run import predict_videos  # torch and Ray take a while: wrong options are told before them

    return predict_videos(options)
