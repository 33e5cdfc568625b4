"""A masked RNN with its MMA network as one MLflow model: code and checkpoints, no pickle, so that it can be served."""

from __future__ import annotations

import os
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mma.checkpoint_header import read_description
from rnn.reactions import REACTIONS

CODE = str(Path(__file__).with_name("pyfunc_model.py"))
"""Not imported here: MLflow runs it, also on the way into the saved model."""
REQUIRED = (
    "ray",
    "torch",
    "numpy",
    "pandas",
    "pyarrow",
    "av",
    "opencv-python-headless",
    "onnxruntime",
    "fsspec",
    "s3fs",
    "safetensors",
)
"""What the model's code needs of the packages installed here, pinned in the saved model."""
OPTIONAL = ("decord",)
PACKAGES = ("jobs", "mma", "rnn", "cluster")


def save_pyfunc(folder: Path, reactions: bytes, mma: bytes, detector: bytes | None) -> None:
    """Save the model at a local path that does not exist yet.

    Args:
        folder: where to.
        reactions: the file of the masked RNN.
        mma: the file of the MMA network whose descriptors it was trained on.
        detector: YuNet's file, where the store was made with it.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    parts = folder.with_name(f"{folder.name}-parts")
    parts.mkdir(parents=True)
    files = {"reactions": reactions, "mma": mma, **({} if detector is None else {"detector": detector})}
    names = {"reactions": "mrnnet.safetensors", "mma": "mma.safetensors", "detector": "detector.onnx"}
    for name, content in files.items():
        (parts / names[name]).write_bytes(content)
    root = Path(__file__).parent.parent
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example.*")  # it would have to be a real video
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        mlflow.pyfunc.save_model(
            str(folder),
            python_model=CODE,
            artifacts={name: str(parts / names[name]) for name in files},
            code_paths=[str(root / each) for each in PACKAGES],
            pip_requirements=requirements(read_description(mma, names["mma"]).config.trunk),
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.string, "uri")]),
                outputs=Schema([ColSpec(DataType.double, name) for name in REACTIONS]),
            ),
        )


def requirements(trunk: str) -> list[str]:
    """What pip must install for the model's code to run an MMA network of this trunk, each at the version here."""
    from importlib.metadata import PackageNotFoundError

    def installed(name: str) -> Any:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    of_trunk = ("transformers",) if trunk.startswith("hf:") else ()
    found = {name: installed(name) for name in (*REQUIRED, *OPTIONAL, *of_trunk, "mlflow")}
    return [f"{name}=={str(number).partition('+')[0]}" for name, number in found.items() if number is not None]
