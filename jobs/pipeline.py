"""Extraction as a Ray Data pipeline: plan -> fetch, decode, crop on CPUs -> MMA in actors -> rows, as they come.

Where there are no GPUs, the tasks that decode describe the faces too (`read_and_describe`): actors beside them would
share their cores, and crops would travel for nothing.

Nothing here writes: the driver reads `deliver` and counts (`mma.store.rows.VideoAssembler`), since Ray may
execute any task again. Failures travel as rows; only a defect of this code ends the pipeline with an exception.
"""

from __future__ import annotations

import functools
import socket
import traceback
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback

from cluster.capacity import Capacity
from cluster.metrics import timed, timed_each
from cluster.s3 import retry_count
from cluster.scratch import CAP_BYTES, Scratch
from cluster.storage import stat
from cluster.uri import StorageError, display
from mma.allocation import keep_memory
from mma.descriptors import DESCRIPTOR_SETS, DescriptorSet
from mma.store import schema as s
from mma.store.rows import chunk_row, with_descriptors
from mma.video.chunk import FaceChunk
from mma.video.errors import VideoError
from mma.video.options import DecodeOptions
from mma.video.slot import DecodeSlot

UNREACHABLE = "unreachable"
"""Status of a row that says storage failed, not the video: never stored, planned again."""

NODE_FAULTS = ("ChildStart", "ChildLost")
"""Errors of a decoder that say nothing of the video: no child process could be had."""

FACES = "faces"
"""Column of the crops on their way to the network: a row's (K, 112, 112, 3) uint8 as bytes."""

GATHER_BYTES, GATHER_ROWS = 8 * 2**20, 16
"""Crops, or rows, after which a decode task hands its rows on as one table: Ray's and Arrow's cost is one a table."""

BLOCK_BYTES = 32 * 2**20
"""Ray Data gathers a task's rows into blocks of this size: its default of 128 MiB costs each worker 300 MB."""

DESCRIBED_BYTES = 96 * 2**10
"""The same where the rows hold no crops any more: some 600 frames, so that what is done comes to the writer soon, and
not at the end of a task of 64 videos. A block costs the driver some milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a decode task needs to know; travels to every worker."""

    decode: DecodeOptions
    detector_weights: bytes | None = None
    """The detector's file, laid into each worker's scratch."""
    scratch_root: str | None = None
    scratch_bytes: int = CAP_BYTES


def blocks_of(plan: pa.Table, decoders: int, *, most: int = 64) -> list[pa.Table]:
    """The plan cut into one block a task: of what is left, by number and by bytes where these are known, a share of
    1 / (2 x slots) each at most; 1 to `most` videos.

    So the first tasks spread Ray's cost (a millisecond or so, and a tenth of a second until a slot has its next task,
    since the executor polls) over many videos, and the last ones are single videos, so that no slot idles at the end.
    """
    known = "bytes" in plan.column_names and not plan["bytes"].null_count
    upto = np.append(0.0, np.cumsum(plan["bytes"].to_numpy())) if known else None
    blocks, start = [], 0
    while start < plan.num_rows:
        size = min(most, max(1, (plan.num_rows - start) // (2 * decoders)))
        if upto is not None:
            share = upto[start] + (upto[-1] - upto[start]) / (2 * decoders)
            size = max(1, min(size, int(np.searchsorted(upto, share, side="right")) - 1 - start))
        blocks.append(plan.slice(start, size).combine_chunks())
        start += size
    return blocks


class _Running(ExecutionCallback):
    """Keeps the executors of this process's pipelines at hand, while they run."""

    executors: ClassVar[set[Any]] = set()

    def before_execution_starts(self, executor: Any) -> None:
        self.executors.add(executor)

    def after_execution_succeeds(self, executor: Any) -> None:
        self.executors.discard(executor)

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        self.executors.discard(executor)


def close_pipelines() -> None:
    """End the pipelines that run in this process, whatever they wait for: whoever iterates them sees their end.

    Their tasks are cancelled and not waited for: those of a host that is gone would not answer.
    """
    for executor in list(_Running.executors):
        executor.shutdown(force=False)


def data_context(block_bytes: int = BLOCK_BYTES) -> DataContext:
    """Ray Data's settings for the pipelines of this project; captured by a Dataset when it is made."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = block_bytes
    context.execution_options.preserve_order = False
    context.custom_execution_callback_classes = [_Running]
    return context


def build(
    plan: pa.Table,
    reading: Reading,
    descriptor_set: str,
    weights: bytes,
    extractor: dict[str, Any],
    capacity: Capacity,
) -> Dataset:
    """The pipeline over a plan (rows of `jobs.plan.PLAN_SCHEMA`); nothing runs before it is iterated.

    Args:
        plan: what is to be done.
        reading: settings of the decode tasks.
        descriptor_set: name of the network's descriptor set.
        weights: an MMA checkpoint's bytes, put into the object store once and loaded by every process that describes.
        extractor: keyword arguments of `mma.extractor.DescriptorExtractor`.
        capacity: how many workers of each kind.
    """
    blocks = blocks_of(plan, capacity.decoders)
    decode: dict[str, Any] = {"reading": reading, "descriptor_set": descriptor_set}
    network = {"threads": capacity.extractor_threads, "extractor": extractor}
    task: Any = read_faces
    if not capacity.extractors:
        task, decode["network"] = read_and_describe, Network(weights=ray.put(weights), settings=network)
    with DataContext.current(data_context(BLOCK_BYTES if capacity.extractors else DESCRIBED_BYTES)):
        # `from_arrow` has a remote task look at each block before the first of ours can start.
        read = ray.data.from_blocks(blocks).map_batches(
            task,
            fn_kwargs=decode,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=capacity.decode_cpus,
            # A node that offers it at all has enough for all its slots: it says where, and the CPUs how many.
            resources={capacity.decode_resource: 0.001} if capacity.decode_resource else None,
            compute=TaskPoolStrategy(size=min(capacity.decoders, len(blocks))),
        )
        if not capacity.extractors:
            return read
        # `map_batches` itself refuses a batch that is the block as it comes (batch_size=None) beside GPUs.
        return read.map_batches_internal(
            MMAActor,
            fn_constructor_kwargs={**network, "weights": weights},
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            num_cpus=capacity.extractor_claim,
            num_gpus=capacity.extractor_gpus or None,
            # The loss of one ends the pipeline, and the driver plans anew: Ray would let the faces on their way to
            # it wait for a place on a cluster that may have no such GPU any more.
            max_restarts=0,
            compute=ActorPoolStrategy(size=capacity.extractors),
        )


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network on its way to the tasks that describe."""

    weights: Any
    """`ray.ObjectRef` of the checkpoint's bytes (a task's own arguments travel with every task); which one it is says
    which network this is."""
    settings: dict[str, Any] = field(compare=False)
    """`MMAActor`'s arguments but for the weights."""


@functools.lru_cache(maxsize=1)
def _loaded(network: Network) -> MMAActor:
    return MMAActor(ray.get(network.weights), **network.settings)


def read_and_describe(plan: pa.Table, *, network: Network, **decode: Any) -> Iterator[pa.Table]:
    """`read_faces` and `MMAActor` in one task; the process keeps the network from task to task."""
    yield from map(_loaded(network), read_faces(plan, **decode))


def read_faces(plan: pa.Table, *, reading: Reading, descriptor_set: str) -> Iterator[pa.Table]:
    """The decode task: videos of the plan in, rows with face crops out, chunk by chunk, in order.

    Yields tables of rows that `chunk_row` made, with `retries` and `faces` (large binary), about `GATHER_BYTES` of
    crops in each. Every video ends with a row that tells its number of chunks, whatever became of it.
    """
    descriptors = DESCRIPTOR_SETS[descriptor_set]
    waiting: list[pa.Table] = []
    size = 0
    for video in plan.to_pylist():
        retries = retry_count()
        for row, faces in _rows(video, reading, descriptors):
            now = retry_count()
            row = row.append_column("retries", pa.array([now - retries], pa.int64()))
            retries = now
            waiting.append(row.append_column(FACES, _binary(faces)))
            size += 0 if faces is None else faces.nbytes
            if size >= GATHER_BYTES or len(waiting) >= GATHER_ROWS:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, size = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _binary(faces: np.ndarray | None) -> pa.Array:
    """One large binary value over the array's own memory, without a copy."""
    data = b"" if faces is None else np.ascontiguousarray(faces).reshape(-1).data
    offsets = pa.array([0, len(data)], pa.int64())
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets.buffers()[1], pa.py_buffer(data)])


def _rows(
    video: dict[str, Any], reading: Reading, descriptors: DescriptorSet
) -> Iterator[tuple[pa.Table, np.ndarray | None]]:
    """Rows of one video with their crops. A fault of this node or of storage is `UNREACHABLE`, not the video's."""
    common = {
        "video_id": video["video_id"],
        "uri": shown_uri(video["uri"]),
        "attempt": uuid.uuid4().hex,
        "source_version": video["version"],
        "source_bytes": video["bytes"],
        "num_frames": 0,
    }
    index = 0

    def ended(cause: Cause) -> tuple[pa.Table, None]:
        status = UNREACHABLE if cause.fault_of_node else s.FAILED
        told = {"error_stage": cause.stage, "error_type": cause.error_type, "error_message": cause.message}
        return chunk_row(descriptors, {**common, **_place(common, index, index + 1), "status": status, **told}), None

    try:
        worker = worker_of(reading)
        if video["version"] is None:  # named by a table; a listing would have told
            source = stat(video["uri"])
            common.update(source_version=source.version, source_bytes=source.bytes)
        with ExitStack() as held:
            with timed("fetch"):
                fetched = worker.scratch.fetched(video["uri"], common["source_bytes"], common["source_version"])
                path = held.enter_context(fetched)
            for chunk in timed_each("decode", worker.slot.chunks(path)):
                told = {**_place(common, index, index + 1 if chunk.is_last else None), **_told(chunk)}
                yield chunk_row(descriptors, {**common, **told}, vars(chunk)), chunk.faces
                index += 1
    except Exception as error:
        yield ended(cause_of(error, listed=video["version"] is not None))


class Cause(NamedTuple):
    """Why a source gave nothing, or not all."""

    stage: str
    error_type: str
    message: str
    fault_of_node: bool
    """It is the doing of this node or of storage, and says nothing of the source."""


def cause_of(error: Exception, *, listed: bool) -> Cause:
    """What an error says of the video or image that it came from; `listed`: a listing has shown that it is there."""
    if isinstance(error, VideoError):
        stage, kind, message, fault = error.stage, error.error_type, error.message, error.error_type in NODE_FAULTS
    elif isinstance(error, StorageError):
        # What a listing has shown and this node does not see is no missing video.
        kind, fault = "Missing" if error.missing else "Refused", error.retryable or (error.missing and listed)
        stage, message = "fetch", str(error)
    elif isinstance(error, (MemoryError, OSError)):
        stage, kind, message, fault = "fetch", type(error).__name__, str(error), True
    else:  # a defect that this one source brings out: it must cost its own rows alone
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        stage, kind, message, fault = "defect", type(error).__name__, f"{error} ({where}; please report this)", False
    where = f" (on {socket.gethostname()})" if fault else ""
    return Cause(stage=stage, error_type=kind, message=f"{message}{where}", fault_of_node=fault)


def shown_uri(uri: str) -> str:
    """A video's URI as the store has it: whole, so that it can be opened again, unless a secret stands in it."""
    shown = display(uri)
    return shown if "***" in shown else uri


def _place(common: dict[str, Any], index: int, total: int | None) -> dict[str, Any]:
    return {"work_id": f"{common['video_id']}#{index}", "chunk_index": index, "num_chunks": total}


def _told(chunk: FaceChunk) -> dict[str, Any]:
    info = chunk.info
    told: dict[str, Any] = {
        "status": s.PARTIAL if chunk.damage else s.OK,
        "decoder": chunk.decoder,
        "first_frame": int(chunk.frame_index[0]) if len(chunk.frame_index) else 0,
        "num_frames": len(chunk.frame_index),
        "width_px": info.width_px,
        "height_px": info.height_px,
        "source_fps": info.source_fps,
        "duration_s": info.duration_s,
    }
    if chunk.damage:
        told |= {"error_stage": "decode", "error_type": "DamagedStream", "error_message": chunk.damage}
    return told


class Worker:
    """What a worker process keeps from task to task: its decoder child and its scratch."""

    def __init__(self, reading: Reading):
        self.reading = reading
        keep_memory()
        self.scratch = Scratch(reading.scratch_root, cap_bytes=reading.scratch_bytes)
        decode = reading.decode
        if reading.detector_weights is not None:
            path = self.scratch.folder / "detector.onnx"
            path.write_bytes(reading.detector_weights)
            decode = replace(decode, faces=replace(decode.faces, detector_weights=str(path)))
        self.slot = DecodeSlot(decode)

    def close(self) -> None:
        """End the decoder and remove the scratch."""
        self.slot.close()
        self.scratch.close()


_kept: Worker | None = None


def worker_of(reading: Reading) -> Worker:
    """The process's own worker, made on first use and again where another run's settings come."""
    global _kept
    if _kept is None or _kept.reading != reading:
        if _kept is not None:
            _kept.close()
        _kept = Worker(reading)
    return _kept


class MMAActor:
    """Holds the MMA network and turns rows with crops into rows with descriptors, micro-batched across videos."""

    def __init__(self, weights: bytes, threads: int, extractor: dict[str, Any]):
        import torch

        from mma.checkpoint import load_mma
        from mma.extractor import DescriptorExtractor

        torch.set_num_threads(threads)
        keep_memory()
        loaded = load_mma(weights)
        self.descriptors = loaded.config.descriptors
        self.crop_px = loaded.config.crop_size_px
        self.extractor = DescriptorExtractor(loaded.network, **extractor)

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Rows of `read_faces`, any number of them, to rows of the store (with `attempt` and `retries`)."""
        side = self.crop_px
        crops = [
            np.frombuffer(each.as_buffer(), np.uint8).reshape(-1, side, side, 3)
            for each in rows[FACES].combine_chunks()
        ]
        with timed("mma"):
            descriptors = self.extractor.extract(crops)
        return with_descriptors(rows.drop_columns([FACES]), self.descriptors, descriptors)
