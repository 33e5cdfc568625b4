"""What a stage-2 training learns from and is scored on: the videos of each split, as one prepared flat file a node."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mma.store.flatfile import built_once, digest
from rnn.bootstrap import age_bands
from rnn.flat import end_flat, read_flat
from rnn.grid import GridVideos
from rnn.network import NetworkConfig
from rnn.reactions import REACTIONS
from rnn.sequences import (
    Normaliser,
    SequenceOptions,
    Sequences,
    chosen_names,
    fit_normaliser,
    select_seen,
    to_sequences,
)
from rnn.training.loop import LabelledSequences

SPLITS = ("train", "val", "test")
SAMPLE_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("split", pa.string()),
        ("subject", pa.string()),
        ("country", pa.string()),
        ("age", pa.float32()),
        *((name, pa.float32()) for name in REACTIONS),
    ]
)
"""A row a labelled video of the store; reactions are NaN where unknown. The list that a run learns from."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledVideos:
    """n labelled videos of a split, with or without a face."""

    samples: pa.Table
    """n rows of `SAMPLE_SCHEMA`."""
    videos: npt.NDArray[np.int64]
    """(n,) their numbers in the grid."""

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """(n, 7), NaN where unknown."""
        return labels_of(self.samples)

    def groups(self) -> npt.NDArray[np.int64] | None:
        """(n,) numbers of the subjects, of `person_numbers`."""
        return person_numbers(self.samples)

    def kinds(self) -> dict[str, list[str | None]]:
        """Whom a score is told of by itself: each video's country and band of age, None where unknown."""
        return kinds_of(self.samples)


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitVideos(LabelledVideos):
    """The same with the sequences of those that show a face."""

    seen: npt.NDArray[np.int64]
    """(m,) which of the n have a sequence: some frame shows the face."""
    sequences: Sequences
    """Of those m, in that order."""

    def labelled(self) -> LabelledSequences:
        """The m with a sequence."""
        return LabelledSequences(sequences=self.sequences, labels=self.labels[self.seen])


def placed_videos(grid: GridVideos, samples: pa.Table) -> LabelledVideos:
    """Rows of `SAMPLE_SCHEMA` with their places in the grid, which holds all of them."""
    numbers = {video_id: number for number, video_id in enumerate(grid.video_ids)}
    videos = np.array([numbers[video_id] for video_id in samples["video_id"].to_pylist()], np.int64)
    return LabelledVideos(samples=samples, videos=videos)


def labelled_videos(grid: GridVideos, samples: pa.Table) -> dict[str, LabelledVideos]:
    """The same by split."""
    videos = placed_videos(grid, samples).videos
    split = np.array(samples["split"].to_pylist(), object)
    chosen = {each: np.flatnonzero(split == each) for each in SPLITS}
    return {each: LabelledVideos(samples=samples.take(own), videos=videos[own]) for each, own in chosen.items()}


def labels_of(samples: pa.Table) -> npt.NDArray[np.float32]:
    """(n, 7) of rows that have the reactions as columns."""
    columns = [samples[name].to_numpy(zero_copy_only=False) for name in REACTIONS]
    return np.stack(columns, axis=1).astype(np.float32).reshape(-1, len(REACTIONS))


def person_numbers(samples: pa.Table) -> npt.NDArray[np.int64] | None:
    """(n,) a number for each row's subject, of `numbered`; None where no row has one."""
    if samples["subject"].null_count == samples.num_rows:
        return None
    return numbered(samples["subject"].to_pylist(), samples["video_id"].to_pylist())


def numbered(names: Sequence[str | None], video_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """A number for each video's person; a video of nobody known is a person of its own."""
    people = [f"p{name}" if name is not None else f"v{video}" for name, video in zip(names, video_ids)]
    return pa.array(people, pa.string()).dictionary_encode().indices.to_numpy().astype(np.int64)


def kinds_of(samples: pa.Table) -> dict[str, list[str | None]]:
    """`country` and `age`, in bands, of rows of `SAMPLE_SCHEMA`."""
    ages = samples["age"].to_numpy(zero_copy_only=False)
    return {"country": samples["country"].to_pylist(), "age": age_bands(ages)}


def prepared_splits(
    grid: GridVideos, samples: pa.Table, options: SequenceOptions, scratch: Path, *, keep_s: float = 0.0
) -> tuple[dict[str, SplitVideos], Normaliser]:
    """The splits' sequences, prepared by the first process of the node that asks and mapped by all; the normaliser.

    Args:
        grid: the store's videos.
        samples: rows of `SAMPLE_SCHEMA`, each of a video of the grid.
        options: how they become sequences. Under `subject`, all rows need one.
        scratch: a folder of this node.
        keep_s: how long other sequences stay there that nobody maps, seconds.

    Raises ValueError for unknown descriptors and where no training video shows a face.
    """
    names = chosen_names(options.descriptors, grid.names)
    by_split = labelled_videos(grid, samples)
    people = person_numbers(samples)
    if options.normalise == "subject" and people is None:
        raise ValueError("--sequence.normalise subject needs the subject of every video: give --subjects")
    split = np.array(samples["split"].to_pylist(), object)
    key = digest(
        grid.key or digest(grid.values.tobytes(), grid.offsets.tolist(), grid.video_ids, grid.step_s),
        *(samples[name].to_pylist() for name in ("video_id", "split", "subject")),
        vars(options),
    )

    def build(path: Path) -> None:
        with open(path, "xb") as target:
            normaliser, rows, lengths, outside, total = None, [], [], [], 0
            for each in SPLITS:
                own = np.flatnonzero(split == each)
                there, chosen = select_seen(grid, by_split[each].videos, names)
                whose = None if people is None else people[own[there]]
                if normaliser is None:
                    normaliser = fit_normaliser(chosen, options, whose)
                sequences = to_sequences(chosen, options, normaliser, whose)
                target.write(np.ascontiguousarray(sequences.values).tobytes())
                total += len(sequences.values)
                rows.append(own[there])
                lengths.append(sequences.lengths)
                outside.append(sequences.outside)
            table = pa.table(
                {"row": np.concatenate(rows), "steps": np.concatenate(lengths), "outside": np.concatenate(outside)}
            )
            told = json.dumps(normaliser.to_dict() if normaliser else {})
            end_flat(target, total, table.replace_schema_metadata({"normaliser": told}))

    values, table = built_once(
        scratch, "sequences", key, build, lambda path: read_flat(path, len(names)), keep_s=keep_s
    )
    normaliser = Normaliser.from_dict(json.loads(table.schema.metadata[b"normaliser"]))
    rows, steps = table["row"].to_numpy(), table["steps"].to_numpy()
    ends = np.cumsum(steps)
    splits = {}
    for each in SPLITS:
        own, here = np.flatnonzero(split == each), np.flatnonzero(split[rows] == each)
        first = int(ends[here[0]] - steps[here[0]]) if len(here) else 0
        last = int(ends[here[-1]]) if len(here) else 0
        splits[each] = SplitVideos(
            **vars(by_split[each]),
            seen=np.searchsorted(own, rows[here]),
            sequences=Sequences(
                names=names,
                values=values[first:last],
                offsets=np.concatenate([[0], np.cumsum(steps[here])]).astype(np.int64),
                outside=table["outside"].to_numpy()[here],
            ),
        )
    return splits, normaliser


def steps_reached(splits: Mapping[str, SplitVideos], most: int | None, network: NetworkConfig) -> int:
    """T of a network: the longest training video, or `most`, where it has weights a step.

    Raises ValueError where the longest is then an outlier, so that most weights would be of next to no video.
    """
    lengths = splits["train"].sequences.lengths
    longest = int(lengths.max(initial=1))
    if most is not None:
        return min(most, longest)
    usual = float(np.quantile(lengths, 0.99)) if len(lengths) else longest
    if network.limits_steps() and longest > 1.5 * usual + 1:
        raise ValueError(
            f"the longest training video has {longest} steps, 99 % have {usual:.0f} or fewer: give --steps {usual:.0f} "
            f"(longer videos are then sampled evenly), or --steps {longest}"
        )
    return longest


def told_reach(lengths: npt.NDArray[np.int64], steps: int) -> str:
    """How many training videos reach each tenth of T, as a line for people."""
    tenths = [int((lengths >= steps * tenth / 10).sum()) for tenth in range(1, 11)]
    return f"{steps} steps; training videos that reach each tenth of them: {' '.join(f'{each:,}' for each in tenths)}"
