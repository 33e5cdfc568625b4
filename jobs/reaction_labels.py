"""From the URI of reaction labels to a table of them: which layout it is, what was left aside, told to people."""

from __future__ import annotations

from cluster.storage import Folder, read
from cluster.uri import StorageError, display
from jobs.outcome import InputError, input_errors
from jobs.progress import say
from rnn import labels as reaction_labels
from rnn.labels import ReactionLabels

TABLES = (".csv", ".parquet", ".pq")
MUSE_FOLDER = "c2_muse_reaction"


def read_reaction_labels(uri: str, *, subjects_uri: str | None = None, option: str = "--labels") -> ReactionLabels:
    """The labels at a URI: a table, or a folder of ABAW5, MuSe-2022 or a made corpus.

    Raises InputError where there is none, or it cannot be understood.
    """
    with input_errors(ValueError, OSError, StorageError, option=f"{option} {display(uri)}"):
        labels = _read(uri)
    say(labels.told())
    if subjects_uri is None:
        return labels
    subjects = read_subjects(subjects_uri)
    with input_errors(ValueError, option="--subjects"):
        labels = reaction_labels.with_subjects(labels, subjects)
    lacking = sum(who is None for who in labels.subjects)
    if lacking:
        say(f"{lacking:,} of {len(labels.subjects):,} videos have no subject: intervals are by video")
    return labels


def read_subjects(uri: str) -> dict[str, str]:
    """`--subjects`: video id -> subject. Raises InputError."""
    with input_errors(ValueError, OSError, StorageError, option=f"--subjects {display(uri)}"):
        return reaction_labels.read_subjects(display(uri), read(uri))


def _read(uri: str) -> ReactionLabels:
    if uri.endswith(TABLES):
        return reaction_labels.read_labels(display(uri), read(uri))
    folder = Folder(uri)
    for place in (folder, folder.child(MUSE_FOLDER)):
        if place.exists("labels.csv") and place.exists("partition.csv"):
            return reaction_labels.read_muse(place.display, place.read)
    if folder.exists("data_info.csv"):
        labels = reaction_labels.read_labels(f"{folder.display}/data_info.csv", folder.read("data_info.csv"))
        if folder.exists("_corpus.json") and folder.exists("subjects.csv"):  # a made corpus knows its people
            name = f"{folder.display}/subjects.csv"
            people = reaction_labels.read_subjects(name, folder.read("subjects.csv"))
            labels = reaction_labels.with_subjects(labels, people)
        return labels
    raise InputError(
        f"{folder.display} holds no labels: data_info.csv (ABAW5), {MUSE_FOLDER}/labels.csv and partition.csv "
        "(MuSe-2022); or give a csv or Parquet table with video_id and the 7 reactions"
    )
