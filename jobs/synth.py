"""`mma-mrnnet synth`: a made corpus with known truth, as mp4 clips of drawn faces or as true descriptors alone.

It stands in for real affect data in tests, demos and benchmarks (CORPUS.md). Timelines come from `rnn.made`, faces
from `mma.drawing`; clips are drawn in parallel by Ray, each written whole or not at all, so a rerun draws the rest.
"""

from __future__ import annotations

import io
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.lock import LockHeld, StoreLock
from cluster.storage import Folder
from cluster.uri import StorageError
from jobs.outcome import InputError, JobFailedError, Outcome, input_errors
from jobs.progress import RunProgress, say
from mma.descriptors import MMA26
from mma.store import schema as s
from mma.store.rows import chunk_row, settle_video, with_descriptors
from mma.store.writer import StoreWriter, settle_spec
from rnn import made

CORPUS_FILE = "_corpus.json"
CLIPS_PER_TASK = 16


@dataclass(frozen=True, kw_only=True)
class Options:
    """Draw a made corpus: clips of faces with known action units and reactions, and the labels people would give."""

    out: str
    """Folder to write to; a rerun with the same options draws what is missing."""
    videos: int = 60
    """Number of clips over the three splits."""
    seed: int = 0
    """Root of all random draws; equal options give equal corpora."""
    seconds: str = "3,8"
    """Shortest and longest clip in seconds, A,B."""
    fps: float = 12.0
    """Frames a second of the clips."""
    damaged: int = 0
    """Further files in damaged/: empty, truncated, garbage, audio alone, wrongly named, rotated, without a face, ..."""
    no_video: bool = False
    """No clips: the true descriptors at 10 Hz, as a feature store in store/."""
    timing: Literal["free", "locked"] = "free"
    """free: reactions anywhere in a clip; locked: at the stimulus's times plus a latency."""
    stimuli: int = 1
    """Stimuli with a clock of their own under locked timing."""
    label_noise: float = 1.0
    """Scale of the annotators' noise in the frame labels; 0 gives the truth."""
    gap: tuple[Literal["country", "tone"], ...] = ()
    """Planted differences between groups: country (noisier labels), tone (less contrast)."""
    address: str | None = None
    """Ray cluster to draw on; default: a Ray of its own on this machine."""
    num_cpus: int | None = None
    """CPUs of the local Ray; default: all."""

    def __post_init__(self) -> None:
        self.corpus()
        if self.damaged < 0:
            raise ValueError(f"--damaged {self.damaged}: give 0 or more")
        if self.damaged and self.no_video:
            raise ValueError("--damaged needs clips to damage: leave --no-video out")

    def corpus(self) -> made.CorpusOptions:
        """The settings that decide the timelines."""
        try:
            shortest, longest = (float(each) for each in self.seconds.split(","))
        except ValueError:
            raise ValueError(f"--seconds {self.seconds}: give the shortest and the longest, such as 3,8") from None
        return made.CorpusOptions(
            videos=self.videos,
            seed=self.seed,
            seconds=(shortest, longest),
            fps=self.fps,
            timing=self.timing,
            stimuli=self.stimuli,
            label_noise=self.label_noise,
            gaps=tuple(self.gap),
        )


def run(options: Options) -> Outcome:
    """The job: tables first, then clips (or true descriptors), damaged files last."""
    started_s = time.monotonic()
    with input_errors(ValueError, StorageError, option="--out"):
        folder = Folder(options.out)
        folder.check_writable()
    _settle_options(folder, options)
    clips = made.plan_corpus(options.corpus())
    say(f"{len(clips)} clips of {len({clip.subject.subject for clip in clips})} subjects -> {folder.display}")
    _write_tables(folder, clips)
    frames = _write_true_store(folder, clips) if options.no_video else _draw(folder, clips, options)
    damaged = _write_damaged(folder, clips, options) if options.damaged else []
    seconds = time.monotonic() - started_s
    return Outcome(
        summary={
            "job": "synth",
            "seconds": round(seconds, 3),
            "out": folder.display,
            "videos": len(clips),
            "damaged": len(damaged),
            "frames": frames,
            "frames_per_s": round(frames / seconds, 2),
        }
    )


def clip_name(clip: made.Clip) -> str:
    """Where a clip lies below the corpus's folder, as in the ABAW5 layout: `train/mp4/00000.mp4`."""
    return f"{clip.split.lower()}/mp4/{clip.video_id}.mp4"


def _settle_options(folder: Folder, options: Options) -> None:
    """Refuse to mix two corpora in one folder."""
    ours = {key: value for key, value in vars(options).items() if key not in ("out", "damaged", "address", "num_cpus")}
    ours = json.loads(json.dumps(ours))
    if folder.exists(CORPUS_FILE):
        theirs = json.loads(folder.read(CORPUS_FILE))
        if differences := s.spec_differences(ours, theirs):
            raise InputError(
                f"--out {folder.display} holds a corpus made with other options (now / then): "
                f"{'; '.join(differences)}; name another folder"
            )
    folder.write(CORPUS_FILE, json.dumps(ours, indent=1).encode())


def _write_tables(folder: Folder, clips: list[made.Clip]) -> None:
    for name, table in (("data_info.csv", made.data_info(clips)), ("subjects.csv", made.subjects_table(clips))):
        folder.write(name, _csv(table))
    folder.write("truth.parquet", _parquet([made.truth_table(clips)]))
    folder.write(
        "frames.parquet", _parquet(made.frame_table(clip, made.play(clip, made.frame_times(clip))) for clip in clips)
    )
    folder.write("ceiling.json", json.dumps(made.ceiling(clips), indent=1).encode())


def _csv(table: pa.Table) -> bytes:
    # Arrow's own writer would quote every string, which labels as they are handed out are not.
    return table.to_pandas().to_csv(index=False).encode()


def _parquet(tables: Any) -> bytes:
    buffer, writer = io.BytesIO(), None
    for table in tables:
        writer = writer or pq.ParquetWriter(buffer, table.schema, compression="zstd")
        writer.write_table(table)
    if writer:
        writer.close()
    return buffer.getvalue()


def _draw(folder: Folder, clips: list[made.Clip], options: Options) -> int:
    """Draw the clips that are not there yet; returns the frames drawn."""
    import ray

    from cluster.session import SessionError, ray_session, stop_signals

    there = set()
    for split in ("train", "val", "test"):
        there |= {f"{split}/mp4/{file.name}" for file in folder.child(f"{split}/mp4").list(suffix=".mp4")}
    todo = [clip for clip in clips if clip_name(clip) not in there]
    frames = 0
    if not todo:
        return frames
    with (
        input_errors(SessionError),
        stop_signals() as stop,
        ray_session(options.address, num_cpus=options.num_cpus, stop=stop) as nodes,
        _progress(todo) as bar,
    ):
        slots = max(1, int(sum(node.cpus for node in nodes)))
        draw = ray.remote(num_cpus=1)(draw_clips)
        waiting = iter(_by_subject(todo, slots))
        running = {draw.remote(folder, some) for _, some in zip(range(2 * slots), waiting)}
        while running:
            ready, rest = ray.wait(list(running), num_returns=1, timeout=1.0)
            running = set(rest)
            for done in ready:
                try:
                    drawn = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise JobFailedError(f"a clip could not be drawn or written: {error.cause}") from error
                frames += sum(drawn)
                for each in drawn:
                    bar.advance(frames=each)
                running.update(draw.remote(folder, some) for _, some in zip(range(1), waiting))
            bar.tick()
    return frames


def _by_subject(clips: list[made.Clip], slots: int) -> Iterator[list[made.Clip]]:
    """Clips in groups of one subject each, so small that all slots have some: a face's still layers, a third to two
    thirds of a short clip's cost, are then drawn once for the group."""
    most = max(1, min(CLIPS_PER_TASK, len(clips) // (4 * slots)))
    for _, one in itertools.groupby(sorted(clips, key=_subject), key=_subject):
        of_subject = list(one)
        yield from (of_subject[start : start + most] for start in range(0, len(of_subject), most))


def _subject(clip: made.Clip) -> str:
    return clip.subject.subject


def draw_clips(folder: Folder, clips: list[made.Clip]) -> list[int]:
    """Draw clips one after the other; the frames of each."""
    return [draw_clip(folder, clip) for clip in clips]


def draw_clip(folder: Folder, clip: made.Clip) -> int:
    """Draw one clip, encode it, and put it below the corpus's folder whole or not at all; returns its frames."""
    import cv2

    from mma.drawing import draw_frame, sample_identity, sample_scene
    from mma.drawing.clip import write_clip

    cv2.setNumThreads(1)  # clips are drawn side by side already
    identity = sample_identity(np.random.default_rng(clip.subject.seed), skin_tone=clip.subject.tone)
    scene = sample_scene(np.random.default_rng([clip.seed, 7]), contrast=clip.subject.contrast)
    timeline = made.play(clip, made.frame_times(clip))

    def frames() -> Iterator[np.ndarray]:
        for position, time_s in enumerate(timeline.times_s):
            state = {name: float(values[position]) for name, values in timeline.controls.items()}
            noise = int(np.random.SeedSequence([clip.seed, position]).generate_state(1)[0])
            yield draw_frame(identity, scene, state, time_s=float(time_s), seed=noise)

    with tempfile.TemporaryDirectory(prefix="mma-mrnnet-synth-") as local:
        path = Path(local) / "clip.mp4"
        write_clip(path, frames(), fps=clip.fps)
        name = clip_name(clip)
        above, _, last = name.rpartition("/")
        folder.child(above).write(last, path.read_bytes())
    return len(timeline.times_s)


def _write_damaged(folder: Folder, clips: list[made.Clip], options: Options) -> list[dict[str, Any]]:
    """Files that a decoder has trouble with, in damaged/, and a table of what each is and should give."""
    from mma.video.damage import write_damaged

    with tempfile.TemporaryDirectory(prefix="mma-mrnnet-synth-") as local:
        good = []
        for clip in clips[:4]:
            good.append(Path(local) / f"{clip.video_id}.mp4")
            above, _, last = clip_name(clip).rpartition("/")
            good[-1].write_bytes(folder.child(above).read(last))
        out = Path(local) / "damaged"
        made_files = write_damaged(out, good, options.damaged, options.seed)
        for entry in made_files:
            folder.child("damaged").write(entry["name"], (out / entry["name"]).read_bytes())
    folder.write("damaged.csv", _csv(pa.Table.from_pylist(made_files)))
    return made_files


def _write_true_store(folder: Folder, clips: list[made.Clip]) -> int:
    """The true descriptors at 10 Hz as a feature store in store/; returns the frames."""
    store = folder.child("store")
    spec = s.make_spec(
        descriptors=MMA26,
        weights={"truth": "made corpus"},
        crop={},
        detector={"detector": "truth"},
        sampling={"fps": 10.0},
        precision="float32",
    )
    writer = StoreWriter(store, MMA26, spec, "truth")
    with input_errors(ValueError, LockHeld, option="--out"), StoreLock(store, "synth"), _progress(clips) as bar:
        settle_spec(store, spec)
        store.delete([file.name for file in store.list(suffix=".parquet")])
        for clip in clips:
            video = true_rows(clip)
            writer.add(video)
            if writer.due:
                writer.commit()
            bar.advance(frames=video["num_frames"][0].as_py())
            bar.tick()
        writer.commit()
    return writer.frames


def _progress(clips: list[made.Clip]) -> RunProgress:
    return RunProgress(len(clips), unit="clips")


def true_rows(clip: made.Clip) -> pa.Table:
    """One clip's row of a store of true descriptors: every frame has a face, and no box."""
    descriptors = made.true_descriptors(clip)
    times_s = descriptors["time_s"]
    count = len(times_s)
    frames = {
        "frame_index": np.arange(count),
        "time_s": times_s,
        "face_found": np.ones(count, bool),
        "face_score": np.full(count, np.nan, np.float32),
        "face_box": np.full((count, 4), np.nan, np.float32),
        "face_points": np.full((count, 10), np.nan, np.float32),
        "num_faces": np.ones(count, np.int16),
    }
    video = {
        "work_id": f"{clip.video_id}#0",
        "video_id": clip.video_id,
        "uri": "",
        "decoder": "truth",
        "chunk_index": 0,
        "num_chunks": 1,
        "status": s.OK,
        "first_frame": 0,
        "num_frames": count,
        "source_fps": 10.0,
        "duration_s": count / 10.0,
    }
    values = np.stack([descriptors[name] for name in MMA26.names], axis=1).astype(np.float32)
    return settle_video(with_descriptors(chunk_row(MMA26, video, frames), MMA26, [values]), "truth")
