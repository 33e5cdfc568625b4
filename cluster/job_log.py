"""The log of a submitted job: what is shown of it, and the one line in it that carries the job's result.

Ray merges a job's stdout and stderr into one log, and prints into it itself. So a job says its summary and its exit
code once more, in one write, behind a mark with a random word that only this job has: text that strangers bring into a
log cannot pass for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

RESULT_MARK = "@@mma-mrnnet-result"


class JobLog:
    """The log of a job as it comes in, line by line; what the job says of its end is kept and not shown."""

    def __init__(self, mark: str, show: Callable[[str], None], note: Callable[[str], None] | None = None):
        """`mark`: the job's own (see `JobState`); `show` gets each line; `note` what is said of the job meanwhile."""
        self._sign = f"{RESULT_MARK} {mark} " if mark else None
        self._show, self.note = show, note or show
        self._rest, self._seen, self._skip = "", 0, 0
        self.result: dict[str, Any] | None = None
        """`exit_code` and `summary`, once they have come."""

    def rewind(self) -> None:
        """The text starts from its beginning again: what was taken before is passed over."""
        self._skip = self._seen

    def take(self, text: str) -> None:
        """More of the log."""
        new = text[self._skip :]
        self._skip -= len(text) - len(new)
        self._seen += len(new)
        *lines, self._rest = (self._rest + new).split("\n")
        for line in lines:
            self._line(line)

    def end(self) -> None:
        """No more comes."""
        if self._rest:
            self._line(self._rest)
        self._rest = ""

    def _line(self, line: str) -> None:
        before, sign, result = line.partition(self._sign) if self._sign else (line, "", "")
        if sign:
            with suppress(ValueError):  # cut off: its process was killed while it wrote
                self.result = json.loads(result)
        if before or not sign:
            self._show(before)


def result_line(mark: str, exit_code: int, summary: Mapping[str, Any] | None) -> str:
    """What a submitted job writes last, in one piece: Ray merges its two streams, and others write between."""
    return f"{RESULT_MARK} {mark} {json.dumps({'exit_code': exit_code, 'summary': summary})}\n"
