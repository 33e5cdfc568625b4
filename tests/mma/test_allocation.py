"""Memory that a process keeps, measured by the pages that the system gives it."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from mma.allocation import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [np.ones(BYTES, np.uint8) for _ in range(COUNT)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

BYTES, COUNT = 1_000_000, 40
if sys.argv[1] == "keep":
    keep_memory()
print(faults(), faults(), faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone is told to keep memory")
def test_what_is_freed_is_there_for_the_next_frame_without_a_page_fault():
    pages = 40 * 1_000_000 // 4096

    def faults(how: str) -> list[int]:
        run = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        return [int(each) for each in run.stdout.split()]

    first, *others = faults("keep")
    assert first > 0.9 * pages
    assert max(others) < 0.01 * pages
    assert min(faults("plain")) > 0.2 * pages
