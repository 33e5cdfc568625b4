"""From the URI of reaction labels to a table of them: which layout it is, what was left aside, told to people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cluster.storage import Folder, read, stat
from cluster.uri import StorageError, display
from jobs.outcome import InputError, input_errors
from jobs.progress import say
from rnn import labels as reaction_labels
from rnn.labels import ReactionLabels

TABLES = (".csv", ".parquet", ".pq")
MUSE_FOLDER = "c2_muse_reaction"
MUSE_FILES = ("labels.csv", "partition.csv")

_READ_ERRORS = (ValueError, OSError, StorageError)


def read_reaction_labels(uri: str, *, subjects_uri: str | None = None, option: str = "--labels") -> ReactionLabels:
    """The labels at a URI: a table, or a folder of ABAW5, MuSe-2022 or a made corpus.

    `subjects_uri`: a table of people, over those that the labels name. Raises InputError where there are no labels, or
    they cannot be understood.
    """
    # The readers put this name first in their errors, so that the option and the file are said once.
    asked = f"{option} {display(uri)}"
    with input_errors(*_READ_ERRORS, option=asked):
        labels = _read(uri, option)
    if subjects_uri is not None:
        subjects = read_subjects(subjects_uri)
        with input_errors(ValueError, option=f"--subjects {display(subjects_uri)}"):
            labels = reaction_labels.with_subjects(labels, subjects)
    say(labels.told())
    return labels


def read_subjects(uri: str) -> dict[str, str]:
    """`--subjects`: video id -> subject. Raises InputError."""
    name = f"--subjects {display(uri)}"
    with input_errors(*_READ_ERRORS, option=name):
        return reaction_labels.read_subjects(name, read(uri))


def _read(uri: str, option: str) -> ReactionLabels:
    above, _, file = uri.rpartition("/")
    if file in MUSE_FILES and all(Folder(above or ".").exists(each) for each in MUSE_FILES):
        return _read_muse(Folder(above or "."), option)
    if uri.lower().endswith(TABLES) or _is_file(uri):
        return reaction_labels.read_labels(f"{option} {display(uri)}", read(uri))
    folder = Folder(uri)
    for place in (folder, folder.child(MUSE_FOLDER)):
        if all(place.exists(each) for each in MUSE_FILES):
            return _read_muse(place, option)
    name = f"{option} {folder.display}"
    if folder.exists("data_info.csv"):
        labels = reaction_labels.read_labels(f"{name}/data_info.csv", folder.read("data_info.csv"))
        if folder.exists("_corpus.json") and folder.exists("subjects.csv"):  # a made corpus knows its people
            people = reaction_labels.read_subjects(f"{name}/subjects.csv", folder.read("subjects.csv"))
            labels = reaction_labels.with_subjects(labels, people)
        return labels
    raise InputError(
        f"{name} holds no labels: data_info.csv (ABAW5), {MUSE_FOLDER}/labels.csv and partition.csv (MuSe-2022); or "
        "give a csv or Parquet table with video_id and the 7 reactions"
    )


def _read_muse(folder: Folder, option: str) -> ReactionLabels:
    return reaction_labels.read_muse(f"{option} {folder.display}", folder.read)


def _is_file(uri: str) -> bool:
    """A table may have any name; what cannot be looked at is a folder to be complained of below."""
    try:
        stat(uri)
    except (StorageError, ValueError):
        return False
    return True


def made_corpus_ceilings(labels: str) -> Mapping[str, Any] | None:
    """`ceiling.json` of the made corpus that labels at this URI lie in, empty where it lacks one; None for others.

    Raises StorageError, OSError or ValueError where that cannot be seen.
    """
    place = labels.rstrip("/")
    corpus = Folder((place.rpartition("/")[0] or ".") if place.endswith(TABLES) else place)
    if not corpus.exists("_corpus.json"):
        return None
    return dict(json.loads(corpus.read("ceiling.json"))) if corpus.exists("ceiling.json") else {}
