"""Cutting faces on Ray: sources (images, or videos with the frames wanted of them) -> rows of the crop store.

Videos go through the very worker of `extract`, so their crops are its crops; images through the same detector and
geometry. Nothing here writes. Rows depend on the source and the options alone, so rows of two attempts may be mixed.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import DataContext, Dataset, TaskPoolStrategy

from cluster.capacity import Capacity
from cluster.s3 import retry_count
from cluster.storage import read, stat
from cluster.uri import StorageError, parse_uri
from jobs.pipeline import Cause, Reading, Worker, blocks_of, cause_of, data_context, worker_of
from mma.crops import rows as r
from mma.faces import Detector, FaceOptions, make_detector
from mma.faces.still import ImageError, StillFace, crop_still, decode_image
from mma.labels.table import GIVEN

SOURCE_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("version", pa.string()),  # etag or mtime; null where no listing has it
        ("bytes", pa.int64()),
        ("crop", pa.string()),
        ("frames", pa.list_(pa.int32())),  # ascending, no frame twice; WHOLE_IMAGE alone for an image
        ("keys", pa.list_(pa.int64())),  # the number of each frame's row
        ("box", pa.list_(pa.float32(), 4)),
        ("points", pa.list_(pa.float32(), 10)),
    ]
)
"""A row a source: what the tasks are given."""

READ_SIDE_BY_SIDE = 8
"""Images that a task reads at the same time; an object store answers in the time of cutting one or two."""

GIVE_UP = 3
"""Images in a row that storage does not give, after which a task leaves the rest of its block to the next round."""

IMAGES_PER_TASK = 256
IMAGE_BYTES = 200 * 2**20
"""Larger files are refused as images."""


def build_crops(sources: pa.Table, reading: Reading, capacity: Capacity) -> Dataset:
    """The pipeline over sources (rows of `SOURCE_SCHEMA`), a task a block of videos or of images.

    Videos come first, since the longest of them decides when the last slot is free. A task a video would cost Ray more
    than a clip of three frames costs the decoder: 13 clips a second of 14,000, where blocks of 64 give the figure in
    the README.
    """
    image = pc.equal(pc.list_element(sources["frames"], 0), r.WHOLE_IMAGE)
    videos = sources.filter(pc.invert(image)).sort_by("crop")
    blocks = blocks_of(videos, capacity.decoders)
    blocks += blocks_of(sources.filter(image), capacity.decoders, most=IMAGES_PER_TASK)
    with DataContext.current(data_context()):
        return ray.data.from_blocks(blocks).map_batches(
            cut_crops,
            fn_kwargs={"reading": reading},
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=capacity.decode_cpus,
            compute=TaskPoolStrategy(size=min(capacity.decoders, len(blocks))),
        )


def cut_crops(sources: pa.Table, *, reading: Reading) -> Iterator[pa.Table]:
    """The task: tables of `mma.crops.rows.ROW_SCHEMA` and `retries`, some rows each.

    Every wanted frame ends with a row, but where storage or this node fails: there is one row `UNREACHABLE` a source.
    """
    cv2.setNumThreads(1)  # tasks run side by side already, and a detector's boxes depend on it
    retries = retry_count()
    for rows in _rows(sources.to_pylist(), reading):
        now = retry_count()
        counted = np.zeros(rows.num_rows, np.int64)
        counted[0], retries = now - retries, now
        yield rows.append_column("retries", pa.array(counted))


def _rows(sources: list[dict[str, Any]], reading: Reading) -> Iterator[pa.Table]:
    images = []
    for source in sources:
        if source["frames"] == [r.WHOLE_IMAGE]:
            images.append(source)
        else:
            yield from _of_video(source, reading)
    yield from _of_images(images, reading)


def _of_images(images: list[dict[str, Any]], reading: Reading) -> Iterator[pa.Table]:
    failed_in_a_row = 0
    with ThreadPoolExecutor(READ_SIDE_BY_SIDE) as pool:
        for start in range(0, len(images), READ_SIDE_BY_SIDE):
            group = images[start : start + READ_SIDE_BY_SIDE]
            stills = [_cut_image(image, data, reading) for image, data in zip(group, pool.map(_read_image, group))]
            yield _image_rows(group, stills)
            for still in stills:
                failed_in_a_row = failed_in_a_row + 1 if isinstance(still, Cause) and still.fault_of_node else 0
                if failed_in_a_row == GIVE_UP:
                    return


def _read_image(image: dict[str, Any]) -> bytes | Exception:
    try:
        if (image["bytes"] or 0) > IMAGE_BYTES:
            raise ImageError("TooLarge", f"{image['bytes']:,} bytes, more than {IMAGE_BYTES:,}")
        return read(_place(image["source"]))
    except Exception as error:
        return error


def _place(uri: str) -> str:
    """The URI, if it is one that this project reads; labels are strangers' tables. Raises StorageError."""
    try:
        parse_uri(uri)
    except ValueError as error:
        raise StorageError(str(error)) from error
    return uri


def _cut_image(image: dict[str, Any], data: bytes | Exception, reading: Reading) -> StillFace | Cause:
    given = image["crop"] == GIVEN
    own = {name: None if image[name] is None else np.asarray(image[name], np.float32) for name in ("box", "points")}
    try:
        if isinstance(data, Exception):
            raise data
        picture = decode_image(data)
        faces = reading.decode.faces
        return crop_still(picture, _no_detector if given else _detector(reading), faces, given=given, **own)
    except ImageError as error:
        return Cause(stage="open", error_type=error.error_type, message=error.message, fault_of_node=False)
    except Exception as error:
        return cause_of(error, listed=image["version"] is not None)


def _no_detector(_: np.ndarray) -> list:
    raise AssertionError("unreachable: a crop that is given is not searched for faces")


_made: tuple[Worker, Detector] | None = None


def _detector(reading: Reading) -> Detector:
    """The process's detector for images, made of the same settings and weights as its decoder's."""
    global _made
    worker = worker_of(reading)
    if _made is None or _made[0] is not worker:
        _made = worker, make_detector(worker.slot.options.faces)
    return _made[1]


def _image_rows(images: list[dict[str, Any]], stills: list[StillFace | Cause]) -> pa.Table:
    faces = [None if isinstance(still, Cause) else still for still in stills]
    return r.crop_rows(
        sources=[image["source"] for image in images],
        versions=[image["version"] for image in images],
        crops=[image["crop"] for image in images],
        frames=[r.WHOLE_IMAGE] * len(images),
        keys=[image["keys"][0] for image in images],
        how=[face.how if face else None for face in faces],
        faces=[face.crop for face in faces if face is not None and face.crop is not None],
        causes=[_told(still) if isinstance(still, Cause) else None for still in stills],
    )


def _told(cause: Cause) -> r.Cause:
    return r.UNREACHABLE if cause.fault_of_node else r.FAILED, cause.error_type, cause.message


def _of_video(video: dict[str, Any], reading: Reading) -> Iterator[pa.Table]:
    frames, keys = np.asarray(video["frames"], np.int32), np.asarray(video["keys"], np.int64)
    how, version = r.DETECTED, video["version"]
    if video["crop"] == GIVEN:
        how, reading = r.AS_GIVEN, of_given(reading)
    arrived = np.zeros(len(frames), bool)

    def common(at: np.ndarray) -> dict[str, Any]:
        alike = {"sources": video["source"], "versions": version, "crops": video["crop"]}
        return {"frames": frames[at], "keys": keys[at]} | {name: [each] * len(at) for name, each in alike.items()}

    cause = None
    try:
        worker = worker_of(reading)
        size = video["bytes"]
        if version is None:
            found = stat(_place(video["source"]))
            version, size = found.version, found.bytes
        with worker.scratch.fetched(video["source"], size, version) as path:
            for chunk in worker.slot.chunks(path):
                at, shown, crops = r.chunk_crops(chunk, frames)
                arrived[at] = True
                if len(at):
                    yield r.crop_rows(**common(at), how=[how if each else None for each in shown], faces=crops)
        message = chunk.damage or f"the video has {chunk.info.num_frames} frames, counted from 0"
        cause = Cause("decode", "DamagedStream" if chunk.damage else "NoSuchFrame", message, fault_of_node=False)
    except Exception as error:
        cause = cause_of(error, listed=video["version"] is not None)
    rest = np.flatnonzero(~arrived)
    if len(rest):
        rest = rest[:1] if cause.fault_of_node else rest
        yield r.crop_rows(**common(rest), how=[None] * len(rest), causes=[_told(cause)] * len(rest))


def of_given(reading: Reading) -> Reading:
    """The settings for videos whose frames are crops already."""
    decode = replace(reading.decode, faces=FaceOptions(detector="none"))
    return replace(reading, decode=decode, detector_weights=None)
