"""The code of a registered model: a table with `uri` in, a table with the 7 reactions out, by MLflow's pyfunc.

MLflow saves this file itself beside the two checkpoints ("models from code"): nothing is pickled, and loading runs no
code but this project's. Videos are read by the code of `extract`, in a decoder that may die, on this machine alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import torch
from mlflow.pyfunc import PythonModel

from jobs.pipeline import UNREACHABLE, MMAActor, Reading, read_faces
from mma.descriptors import DESCRIPTOR_SETS
from mma.faces.options import FaceOptions
from mma.store.rows import settle_video
from mma.video.options import DecodeOptions
from rnn.grid import to_grid
from rnn.model import load_model
from rnn.reactions import REACTIONS

MODEL, MMA, DETECTOR = "reactions", "mma", "detector"
"""Names of the artifacts; the detector's weights are there for YuNet alone."""


class ReactionPyfunc(PythonModel):
    """Predicts videos one after the other; a video that cannot be read has the model's fall-back row."""

    def load_context(self, context: Any) -> None:
        """Read the two networks, and settle how videos were read for the store that the model was trained on."""
        paths = context.artifacts
        self.model = load_model(Path(paths[MODEL]).read_bytes(), name=paths[MODEL])
        spec = self.model.spec
        self.descriptors = DESCRIPTOR_SETS[spec["descriptor_set"]]
        threads = torch.get_num_threads()
        self.mma = MMAActor(Path(paths[MMA]).read_bytes(), threads, {"precision": spec["precision"]})
        detector = spec["detector"]
        weights = Path(paths[DETECTOR]).read_bytes() if DETECTOR in paths else None
        faces = FaceOptions(
            detector=detector["detector"],
            detector_weights=paths.get(DETECTOR),
            detect_every=detector["detect_every"],
            detect_size_px=detector["detect_size_px"],
        )
        decode = DecodeOptions(fps=spec["sampling"]["fps"], faces=faces)
        self.reading = Reading(decode=decode, detector_weights=weights)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """`uri`: local paths, file:// or s3://, a row each -> the 7 reactions, in the same order."""
        uris = [str(uri) for uri in model_input["uri"]]
        plan = pa.table(
            {
                "video_id": [f"{number:09d}" for number in range(len(uris))],
                "uri": uris,
                "version": pa.nulls(len(uris), pa.string()),
                "bytes": pa.nulls(len(uris), pa.int64()),
            }
        )
        videos = [self._rows(plan.slice(number, 1)) for number in range(len(uris))]
        if not videos:
            return pd.DataFrame({name: pd.Series(dtype=float) for name in REACTIONS})
        grid = to_grid(pa.concat_tables(videos), self.descriptors.names, self.model.step_s)
        return pd.DataFrame(self.model.predict(grid).values, columns=list(REACTIONS))

    def _rows(self, video: pa.Table) -> pa.Table:
        """A video's rows as a store would have them. Raises RuntimeError where storage fails: that is not the video's
        doing, and a made-up row would hide it."""
        chunks = read_faces(video, reading=self.reading, descriptor_set=self.descriptors.name)
        rows = pa.concat_tables([self.mma(chunk).drop_columns(["retries"]) for chunk in chunks])
        if UNREACHABLE in rows["status"].to_pylist():
            raise RuntimeError(f"{video['uri'][0].as_py()}: {rows['error_message'][-1].as_py()}")
        return settle_video(rows, "pyfunc")


mlflow.models.set_model(ReactionPyfunc())
