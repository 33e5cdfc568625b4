"""`mma-mrnnet predict`: a model and videos, or a feature store of them -> 7 reaction intensities a video.

Videos pass through a feature store in OUT, so that a killed run goes on where it stopped. Every video asked for gets a
row, also one without a face or that cannot be read: `status` says so.
"""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import tyro

from jobs.outcome import DONE, InputError, Outcome, input_errors

if TYPE_CHECKING:
    from rnn.grid import GridVideos
    from rnn.model import ReactionModel

TABLE_FILE, SUBMISSION_FILE = "predictions.parquet", "predictions.csv"
STORE_FOLDER = "_store"


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
    import pyarrow.parquet as pq

    from cluster.storage import Folder
    from cluster.uri import StorageError
    from jobs.prediction import best_device, numbered, prediction_table, read_grid, read_model
    from jobs.progress import say
    from jobs.reaction_labels import read_subjects
    from rnn.submission import submission_csv

    started_s = time.monotonic()
    model = read_model(options.model)
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        out = Folder(options.out)
        if out.exists(TABLE_FILE) and not options.overwrite:
            raise InputError(f"--out {out.display} holds predictions already: give --overwrite, or name another folder")
        out.check_writable()
        stores = [Folder(uri) for uri in options.store] or [out.child(STORE_FOLDER)]
    extracted: dict[str, Any] = {}
    code = DONE
    if options.videos is not None:
        done = _extract(options, model)
        extracted, code = done.summary, done.exit_code
        if code not in (DONE, 3):
            return Outcome(summary={"job": "predict", "out": out.display, "extract": extracted}, exit_code=code)
    grid = read_grid(model, stores, options.scratch)
    if options.videos is not None:
        grid = planned_videos(grid, options)
    people = None
    if options.subjects is not None:
        subjects = read_subjects(options.subjects)
        people = numbered([subjects.get(video) for video in grid.video_ids], grid.video_ids)
    elif model.sequence.normalise == "subject":
        say("the model's sequences are normalised by subject: without --subjects each video counts as a person")
    with input_errors(ValueError, option="--store"):
        predicted = model.predict(grid, people, device=best_device())
    facts = grid.facts
    errors = dict(zip(facts["video_id"].to_pylist(), facts["error_type"].to_pylist()))
    table = prediction_table(predicted, errors).sort_by("video_id")
    about = {
        "model_sha256": model.sha256(),
        "seeds": list(model.seeds),
        "spec": dict(model.spec),
        "step_s": model.step_s,
    }
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"mma_mrnnet.predictions": json.dumps(about)}), buffer)
    csv = submission_csv(table["video_id"].to_pylist(), predicted_values(table), brackets=options.brackets)
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        out.write(SUBMISSION_FILE, csv)
        out.write(TABLE_FILE, buffer.getvalue())
    if options.videos is not None and not options.keep_store:
        stores[0].remove()
    counts = Counter(predicted.status)
    summary = {
        "job": "predict",
        "seconds": round(time.monotonic() - started_s, 3),
        "out": out.display,
        "videos": len(grid),
        **{status: counts[status] for status in ("ok", "partial", "resampled", "no_face", "failed")},
        "seeds": len(model.seeds),
        "outside_share": _mean_known(predicted.outside_share),
        **({"extract": extracted} if extracted else {}),
    }
    say(f"{len(grid):,} videos: " + ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items())))
    return Outcome(summary=summary, exit_code=code)


def planned_videos(grid: GridVideos, options: Options) -> GridVideos:
    """Those that this command asks for: a store that was kept may hold others."""
    import numpy as np

    from jobs.plan import find_videos
    from rnn.sequences import select

    asked = set(find_videos(options.videos or "", video_id=options.video_id).videos["video_id"].to_pylist())
    here = np.array([number for number, video_id in enumerate(grid.video_ids) if video_id in asked], np.int64)
    return select(grid, here, grid.names)


def predicted_values(table: Any) -> Any:
    """(N, 7) of a table with the reactions as columns, in their order."""
    import numpy as np

    from rnn.reactions import REACTIONS

    return np.stack([table[name].to_numpy() for name in REACTIONS], axis=1)


def _extract(options: Options, model: ReactionModel) -> Outcome:
    """Videos to a store in OUT, with the frames, faces and network of the store that the model was trained on."""
    from cluster.uri import display
    from jobs import extract
    from jobs.models import load_weights
    from mma.store.schema import spec_differences

    spec = model.spec
    if spec["detector"].get("detector") not in ("haar", "yunet", "none"):
        raise InputError(
            f"--videos: the model was trained on a store of {spec['detector'].get('detector')!r}, which this project "
            "cannot make from videos: give --store"
        )
    theirs = load_weights(options.mma).spec
    if differences := spec_differences(theirs, spec["weights"]):
        raise InputError(
            f"--mma {display(options.mma or '')} is not the network of the model's store (given / model's): "
            f"{'; '.join(differences)}"
        )
    detector = spec["detector"]
    with input_errors(ValueError):
        asked = extract.Options(
            videos=options.videos or "",
            store=f"{options.out.rstrip('/')}/{STORE_FOLDER}",
            mma=options.mma,
            fps=spec["sampling"]["fps"],
            detector=detector["detector"],
            detector_weights=options.detector_weights,
            detect_every=detector.get("detect_every", 1),
            detect_size_px=detector.get("detect_size_px"),
            precision=spec["precision"],
            video_id=options.video_id,
            max_failed_fraction=options.max_failed_fraction,
            address=options.address,
            num_cpus=options.num_cpus,
            scratch=options.scratch,
        )
    return extract.run(asked)


def _mean_known(values: Any) -> float | None:
    import numpy as np

    known = values[np.isfinite(values)]
    return round(float(known.mean()), 4) if len(known) else None
