"""One run of `predict`: videos to a store where they are asked for, the store to predictions, a row a video."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cluster.storage import Folder
from cluster.uri import StorageError
from jobs import extract
from jobs.models import weights_of_store
from jobs.outcome import DONE, TOO_MANY_FAILURES, InputError, Outcome, input_errors, no_empty_folder
from jobs.predict import Options
from jobs.prediction import best_device, prediction_table, read_grid, read_model
from jobs.progress import say
from jobs.reaction_labels import read_subjects
from mma.store.writer import parquet_bytes
from rnn.model import ReactionModel
from rnn.sequences import select
from rnn.submission import submission_csv
from rnn.training.data import labels_of, numbered

if TYPE_CHECKING:
    from jobs.extraction import Extraction

TABLE_FILE, SUBMISSION_FILE = "predictions.parquet", "predictions.csv"
STORE_FOLDER = "_store"


def predict_videos(options: Options) -> Outcome:
    """The job."""
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        out = Folder(options.out)
    with no_empty_folder(out):
        return _predict(options, out)


def _predict(options: Options, out: Folder) -> Outcome:
    started_s = time.monotonic()
    model = read_model(options.model)
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        if out.exists(TABLE_FILE) and not options.overwrite:
            raise InputError(f"--out {out.display} holds predictions already: give --overwrite, or name another folder")
        stores = [Folder(uri) for uri in options.store] or [out.child(STORE_FOLDER)]
        if options.videos is None:
            out.check_writable()
    extracted: dict[str, Any] = {}
    asked: set[str] = set()
    code = DONE
    if options.videos is not None:
        extraction = _extraction(options, model, out)
        done = extraction.run()
        extracted, code, asked = done.summary, done.exit_code, extraction.asked
        if code not in (DONE, TOO_MANY_FAILURES):
            return Outcome(summary={"job": "predict", "out": out.display, "extract": extracted}, exit_code=code)
    grid = read_grid(model, stores, options.scratch)
    if options.videos is not None:
        # A store that was kept may hold others.
        here = np.array([number for number, video_id in enumerate(grid.video_ids) if video_id in asked], np.int64)
        grid = select(grid, here, grid.names)
    people = None
    if options.subjects is not None:
        subjects = read_subjects(options.subjects)
        people = numbered([subjects.get(video) for video in grid.video_ids], grid.video_ids)
    elif model.sequence.normalise == "subject":
        say("the model's sequences are normalised by subject: without --subjects each video counts as a person")
    with input_errors(ValueError, option="--store"):
        predicted = model.predict(grid, people, device=best_device())
    errors = dict(zip(grid.video_ids, grid.facts["error_type"].to_pylist()))
    table = prediction_table(predicted, errors).sort_by("video_id")
    about = {
        "model_sha256": model.sha256(),
        "seeds": list(model.seeds),
        "spec": dict(model.spec),
        "step_s": model.step_s,
    }
    described = table.replace_schema_metadata({"mma_mrnnet.predictions": json.dumps(about)})
    csv = submission_csv(table["video_id"].to_pylist(), labels_of(table), brackets=options.brackets)
    with input_errors(ValueError, OSError, StorageError, option="--out"):
        out.write(SUBMISSION_FILE, csv)
        out.write(TABLE_FILE, parquet_bytes(described))
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


def _extraction(options: Options, model: ReactionModel, out: Folder) -> Extraction:
    """Videos to a store in OUT, with the frames, faces and network of the store that the model was trained on."""
    from jobs.extraction import Extraction  # Ray's import takes a while, and --store needs none

    spec = model.spec
    if spec["detector"].get("detector") not in ("haar", "yunet", "none"):
        raise InputError(
            f"--videos: the model was trained on a store of {spec['detector'].get('detector')!r}, which this project "
            "cannot make from videos: give --store"
        )
    weights_of_store(options.mma, spec, whose="the model's store")
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
            redo_changed=True,  # what is left of a run before may be of other bytes than are there now
            max_failed_fraction=options.max_failed_fraction,
            address=options.address,
            num_cpus=options.num_cpus,
            scratch=options.scratch,
        )
    return Extraction(asked, outputs=(out,))


def _mean_known(values: npt.NDArray[np.float64]) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(known.mean()), 4) if len(known) else None
