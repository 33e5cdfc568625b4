"""How a job ends: its summary, its exit code, and the errors that stand for wrong input or a failed run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.storage import Folder

DONE, FAILED, WRONG_INPUT, TOO_MANY_FAILURES = 0, 1, 2, 3
"""Exit codes (DESIGN.md, "The command line"); 128 + the signal's number where a signal ended the run."""


class InputError(Exception):
    """Wrong arguments or input, said in one line that names the option and the mend: exit code 2."""


class JobFailedError(Exception):
    """The job could not do its work, for a reason outside its arguments: exit code 1."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a job hands back to the command line."""

    summary: dict[str, Any]
    """Printed as the one JSON object on stdout."""
    exit_code: int = DONE
    """Printed to nobody; the process ends with it."""


@contextmanager
def input_errors(*kinds: type[Exception], option: str = "") -> Iterator[None]:
    """Turn these errors (by default ValueError and OSError) into `InputError`, with the option named in front.

    To be put around the reading of what a person gave, never around a whole job: a ValueError elsewhere is a bug.
    """
    caught = kinds or (ValueError, OSError)
    try:
        yield
    except caught as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise InputError(text if not option or option in text else f"{option}: {text}") from error


@contextmanager
def no_empty_folder(out: Folder) -> Iterator[None]:
    """Where the block ends in an `InputError`, take back the folders that were made for `out` and are empty."""
    made = []
    if out.is_local:
        path = Path(out.uri)
        made = [each for each in (path, *path.parents) if not each.exists()]
    try:
        yield
    except InputError:
        for folder in made:  # the innermost first
            with suppress(OSError):  # something lies in it, or it was not made
                folder.rmdir()
        raise
