"""What a job run inside the test process gave."""

from typing import NamedTuple


class Ran(NamedTuple):
    """What a job run in this process gave."""

    code: int
    summary: dict
    told: str
