"""From `--detector` and its companions to face settings: the same for every job that looks for faces."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cluster.storage import read
from cluster.uri import StorageError
from jobs.outcome import input_errors
from mma.faces.options import FaceOptions


class DetectorOptions(Protocol):
    """The options of a job that decide how faces are found."""

    @property
    def detector(self) -> Any:
        """`haar`, `yunet` or `none`."""

    @property
    def detector_weights(self) -> str | None:
        """URI of YuNet's file."""

    @property
    def detect_every(self) -> int:
        """Detect on every k-th frame."""

    @property
    def detect_size_px(self) -> int | None:
        """Longer side of the picture that the detector sees."""


class FaceSettings(NamedTuple):
    """How faces are found, as workers, specs and people need it."""

    options: FaceOptions
    spec: dict[str, Any]
    weights: bytes | None
    """Content of the detector's file, for the workers."""


def face_settings(options: DetectorOptions) -> FaceSettings:
    """The detector's settings, its part of the spec, and the bytes of its weights.

    Raises:
        InputError: settings that make no sense, or weights that are not there, or not the detector's.
    """
    with input_errors(ValueError, OSError, StorageError, option="--detector"), tempfile.TemporaryDirectory() as local:
        faces = FaceOptions(
            detector=options.detector,
            detector_weights=options.detector_weights,
            detect_every=options.detect_every,
            detect_size_px=options.detect_size_px,
        )
        if faces.detector_weights is None:
            return FaceSettings(faces, faces.spec(), None)
        data = read(faces.detector_weights)
        path = Path(local) / "detector"
        path.write_bytes(data)
        at_hand = replace(faces, detector_weights=str(path))
        _demand_sound(at_hand, faces.detector_weights)
        return FaceSettings(faces, at_hand.spec(), data)


def _demand_sound(faces: FaceOptions, given: str) -> None:
    """Raises ValueError where the detector cannot read its weights, given as this URI: each video would fail by it."""
    from mma.faces.detectors import make_detector

    try:
        make_detector(faces)
    except ValueError as error:
        raise ValueError(str(error).replace(str(faces.detector_weights), given)) from None
