"""A run that is killed, however and whenever, loses nothing, doubles nothing and does nothing again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path

import faults
import odd_videos
import psutil
import pyarrow.parquet as pq
import pytest

from mma.video.damage import write_damaged

GOOD, DAMAGED = 60, 12
FEW = (28, 4)
"""Of the short case."""
DRIVER_AND_WORKERS = ("-m jobs", "ray::", "default_worker.py")
"""What their command lines say; a worker that has just been started has no name of Ray's yet."""


class Runs:
    """`extract` as a process of its own, started again and again over the same corpus and store."""

    def __init__(self, folder: Path, good: int = GOOD, damaged: int = DAMAGED):
        self.folder, self.store, self.corpus = folder, folder / "store", folder / "corpus"
        self.corpus.mkdir()
        self.good = [self.corpus / f"good{number:02d}.mp4" for number in range(good)]
        for number, path in enumerate(self.good):
            if number < 4:
                odd_videos.write_clip(path, frames=70 + number, size_px=(320, 240))
            else:
                shutil.copy(self.good[number % 4], path)
        self.damaged = write_damaged(self.corpus, self.good[:4], damaged, seed=1)
        self.scratch = folder / "scratch"

    def start(self) -> tuple[subprocess.Popen, str]:
        """The process, and the mark that it and all it starts carry in their environment."""
        mark = uuid.uuid4().hex
        environment = {
            **os.environ,
            **faults.fault_environment(self.folder, {"*": "count"}),
            "MMA_MRNNET_SCRATCH": str(self.scratch),
            "MMA_TEST_RUN": mark,
        }
        command = [
            sys.executable, "-m", "jobs", "extract", "--videos", str(self.corpus / "*"), "--store", str(self.store),
            "--mma", "random:0:tiny", "--num-cpus", "2", "--max-failed-fraction", "1",
        ]  # fmt: skip
        # A file and not a pipe for what it says: processes that outlive it would keep a pipe open.
        with open(self.folder / f"{mark}.err", "w") as err:
            return subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=err, text=True, start_new_session=True
            ), mark

    def told(self, mark: str) -> str:
        return (self.folder / f"{mark}.err").read_text()

    def wait_for_progress(self, process: subprocess.Popen, opened: int, files: int, limit_s: float = 120) -> None:
        """Until so many more videos were opened by a decoder, and so many more files committed."""
        opened += len(faults.opened_videos(self.folder))
        files += len(list(self.store.glob("*.parquet")))
        until = time.monotonic() + limit_s
        while len(faults.opened_videos(self.folder)) < opened or len(list(self.store.glob("*.parquet"))) < files:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < until, "the run made no progress"
            time.sleep(0.01)

    def committed(self) -> Counter:
        """Chunks by video id; every file of the store must be readable."""
        rows: Counter = Counter()
        for path in self.store.glob("*.parquet"):
            rows.update(pq.read_table(path)["video_id"].to_pylist())
        return rows

    def opened(self) -> Counter:
        return Counter(Path(name).stem for name in faults.opened_videos(self.folder))


def processes_of(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MMA_TEST_RUN") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def kill_all(mark: str, chosen: tuple[str, ...]) -> None:
    """SIGKILL to the run's processes of these kinds, all stopped first so that none sees the others go."""
    doomed = [process for process in processes_of(mark) if any(kind in " ".join(process.cmdline()) for kind in chosen)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in doomed:
            process.send_signal(number)


def newly(summary: dict) -> int:
    """Videos that this run committed."""
    return sum(summary[status] for status in ("ok", "partial", "no_face", "failed"))


KILLS = [
    (signal.SIGKILL, DRIVER_AND_WORKERS),
    (signal.SIGKILL, DRIVER_AND_WORKERS),
    (signal.SIGKILL, (*DRIVER_AND_WORKERS, "raylet")),
]


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_killed_and_stopped_once_then_finished_every_video_stands_once(tmp_path):
    end_again_and_again(Runs(tmp_path, *FEW), random.Random(7), [KILLS[-1], (signal.SIGTERM, ())], first=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_other_instants_and_by_ctrl_c_too(tmp_path, seed):
    end_again_and_again(Runs(tmp_path), random.Random(seed), [*KILLS, (signal.SIGINT, ()), (signal.SIGTERM, ())])


def end_again_and_again(
    runs: Runs, draw: random.Random, ends: list[tuple[signal.Signals, tuple[str, ...]]], first: int = 0
) -> None:
    """`first`: files that are committed before the first end; before each later one, one."""
    done_before: Counter = Counter()
    done_opened: Counter = Counter()
    last_scratch: list[Path] = []
    committed_at_end: list[int] = []
    for turn, (number, kinds) in enumerate(ends):
        process, mark = runs.start()
        runs.wait_for_progress(process, draw.randint(2, 7), files=1 if turn else first)
        assert not [path for path in last_scratch if path.exists()], "scratch of a killed run outlived the next start"
        time.sleep(draw.uniform(0, 1.0))
        assert process.poll() is None, runs.told(mark)
        if kinds:
            kill_all(mark, kinds)
            process.wait()
            if "raylet" in kinds:
                until = time.monotonic() + 5
                while (left := processes_of(mark)) and time.monotonic() < until:
                    time.sleep(0.05)
                assert not left, f"left after 5 s: {[each.cmdline() for each in left]}"
            last_scratch = [path for path in runs.scratch.rglob("*") if path.is_dir() and path.name[:1].isdigit()]
        else:
            # As a terminal does: Ctrl-C comes to the whole group.
            os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 128 + number, runs.told(mark)
            summary = json.loads(out)
            rows = runs.committed()
            assert sum(summary["store_videos"].values()) == len(rows) == len(done_before) + newly(summary)
        now = runs.committed()
        assert all(now[video_id] == chunks for video_id, chunks in done_before.items())
        opened = runs.opened()
        again = {video_id for video_id in done_before if opened[video_id] > done_opened[video_id]}
        assert not again, "videos whose rows were committed at a kill were decoded again"
        done_before, done_opened = now, opened
        committed_at_end.append(len(now))
    kills = sum(bool(kinds) for _, kinds in ends)
    assert committed_at_end[kills - 1] > 0, "nothing was ever committed before a kill: the test shows nothing"
    process, mark = runs.start()
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, runs.told(mark)
    summary = json.loads(out)
    assert summary["videos"] == sum(summary["store_videos"].values()) == len(runs.good) + len(runs.damaged)
    rows = runs.committed()
    assert set(rows.values()) == {1}
    assert len(rows) == len(runs.good) + len(runs.damaged)
    statuses = {row["video_id"]: row["status"] for row in pq.read_table(runs.store).to_pylist()}
    assert {statuses[path.stem] for path in runs.good} <= {"ok", "no_face"}
    for entry in runs.damaged:
        status = statuses[Path(entry["name"]).stem]
        # Test cards show no face; a file that can be read is `no_face` here.
        assert status == ("no_face" if entry["expected"] == "ok" else entry["expected"]), entry
    opened = runs.opened()
    assert all(opened[video_id] == done_opened[video_id] for video_id in done_before)
