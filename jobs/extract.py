"""`mma-mrnnet extract`: videos -> faces -> affect descriptors, into a feature store that is its own checkpoint.

The job: find the videos, subtract what the store has, run the pipeline over the rest, count what it delivers,
commit whole videos, and plan again what did not arrive. Kill it whenever you like and run it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.scratch import CAP_BYTES
from jobs.outcome import Outcome


@dataclass(frozen=True, kw_only=True)
class Options:
    """Turn videos of faces into affect descriptors, frame by frame, in a feature store of Parquet files.

    Run it again at any time: what the store has is done. Local paths, file:// and s3:// (AWS_* in the environment).
    """

    videos: str
    """Folder or prefix (searched through), glob, csv or Parquet table with video_id and uri, or one video."""
    store: str
    """Folder of the feature store; made if absent."""
    mma: str | None = None
    """URI of an MMA checkpoint (.safetensors), or random:SEED[:TRUNK] for a trial with untrained weights."""
    fps: float | None = None
    """Frames a second to take, by the container's time stamps; default: every frame."""
    detector: Literal["haar", "yunet", "none"] = "haar"
    """Face detector; none: each frame already is a face."""
    detector_weights: str | None = None
    """URI of YuNet's ONNX file; needed with --detector yunet."""
    detect_every: int = 1
    """Detect on every k-th taken frame and interpolate the box between."""
    detect_size_px: int | None = None
    """Longer side of the picture that the detector sees; default: the detector's own."""
    chunk_frames: int = 1024
    """Most frames in one row of the store; bounds memory, changes no number."""
    decoder: Literal["pyav", "decord", "auto"] = "pyav"
    """pyav and decord give the same pixels, PyAV sooner on one core (README, Speed); decord fails what it cannot read;
    auto: decord, and PyAV for what decord cannot open or refuses."""
    decode_memory: int = 2 * 2**30
    """Bytes that a decoder process may take; a video that needs more becomes a failed row."""
    decode_timeout_s: float = 60.0
    """Seconds without a frame after which a decoder is ended and its video a failed row."""
    video_id: Literal["stem", "path"] = "stem"
    """What names a video that no table names: its file name without ending, or its path below the folder."""
    limit: int | None = None
    """Take only the first N videos."""
    shard: str | None = None
    """i/n: take every n-th video from the i-th on, into a store of its own; readers take several stores."""
    dry_run: bool = False
    """Say what there is to do and write nothing."""
    retry_failed: bool = False
    """Try the store's failed videos again."""
    redo_changed: bool = False
    """Extract again the videos whose bytes have changed since."""
    max_failed_fraction: float = 0.05
    """More failed videos than this share of all end the run with exit code 3."""
    address: str | None = None
    """Ray cluster to run on, host:port or auto; default: a Ray of its own on this machine."""
    num_cpus: int | None = None
    """CPUs of the local Ray; default: all."""
    decoders: int | None = None
    """Videos decoded at the same time; default: what fits."""
    decode_cpus: float | None = None
    """CPUs that one decode slot claims; default: 1 beside GPUs, else an even share."""
    decode_resource: str | None = None
    """Decode only on nodes that offer this custom resource (ray start --resources '{"NAME": 1}'), such as a cluster's
    cheap CPU nodes; default: on every node."""
    extractors: int | None = None
    """Actors that hold the network, apart from decoding; default: one a GPU. Without GPUs each decode slot describes
    its own faces; beside --decode-resource, one for four CPUs."""
    extractor_gpus: float | None = None
    """GPUs of one MMA actor, fractions allowed; default: 1 where there are GPUs, else 0."""
    micro_batch: int | None = None
    """Faces that go through the network at once; default: 256 on GPUs, 16 on CPUs."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on GPUs, float32 on CPUs; part of the store's spec."""
    scratch: str | None = None
    """Node-local folder for remote videos in transit; default: MMA_MRNNET_SCRATCH or the temporary folder."""
    scratch_bytes: int = CAP_BYTES
    """Most bytes of remote videos on a node's disk at a time."""

    def __post_init__(self) -> None:
        for name in ("limit", "chunk_frames", "micro_batch", "num_cpus", "decoders", "extractors", "scratch_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}: give 1 or more")
        if self.decode_cpus is not None and not self.decode_cpus > 0:
            raise ValueError(f"--decode-cpus {self.decode_cpus}: give a number above 0")
        if self.extractor_gpus is not None and not self.extractor_gpus >= 0:
            raise ValueError(f"--extractor-gpus {self.extractor_gpus}: give 0 or more")
        if not 0 <= self.max_failed_fraction <= 1:
            raise ValueError(f"--max-failed-fraction {self.max_failed_fraction}: give a share from 0 to 1")


def run(options: Options) -> Outcome:
    """The job. See the module's first lines."""
    from jobs.extraction import Extraction  # Ray's import takes a while: wrong options are told before it

    return Extraction(options).run()
