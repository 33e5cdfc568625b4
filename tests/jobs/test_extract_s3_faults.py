"""`extract` from and to an S3 server that fails: at random, for good from some time on, or from the start."""

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pyarrow.parquet as pq
import pytest
from s3_server import CREDENTIALS, Proxy, faulty_proxy, make_bucket

from cluster.storage import Folder

OPTIONS = ("--mma", "random:0:tiny", "--detector", "none")
WORDS = {"500": "Injected InternalError", "503": "Injected SlowDown", "reset": "Could not connect", "stall": "imeout"}


class Run:
    """`extract` as a process with a Ray of its own, whose workers too reach the S3 server through the proxy alone."""

    def __init__(self, proxy: Proxy, bucket: str, folder, *more: object) -> None:
        self.err = folder / "err"
        command = [
            sys.executable, "-m", "jobs", "extract", "--videos", f"s3://{bucket}/corpus/", "--store",
            f"s3://{bucket}/store", *OPTIONS, "--num-cpus", "2", *map(str, more),
        ]  # fmt: skip
        environment = {
            **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")},
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": proxy.endpoint,
            "MMA_MRNNET_SCRATCH": str(folder / "scratch"),
        }
        with open(self.err, "w") as err:
            self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=err, text=True)

    @property
    def told(self) -> str:
        return self.err.read_text()

    def ended(self, limit_s: float) -> dict:
        try:
            out, _ = self.process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not ended within {limit_s:.0f} s: {self.told[-3000:]}") from None
        finally:
            self.process.kill()
        return json.loads(out) if out.strip() else {}


@contextmanager
def corpus(moto_endpoint: str, clips, copies: int, **faults):
    """A bucket with copies of the clips, and the proxy in front of its server."""
    with ExitStack() as held:
        patch = held.enter_context(pytest.MonkeyPatch.context())
        for key, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": moto_endpoint}.items():
            patch.setenv(key, value)
        bucket = make_bucket(moto_endpoint)
        folder = Folder(f"s3://{bucket}/corpus")
        for path in clips.glob("*.mp4"):
            for copy in range(copies):
                folder.write(f"{path.stem}-{copy}.mp4", path.read_bytes())
        yield bucket, held.enter_context(faulty_proxy(moto_endpoint, **faults))


def stored(bucket: str, folder) -> list[str]:
    """Ids of the store's rows, read behind the proxy's back."""
    store, local = Folder(f"s3://{bucket}/store"), folder / "copy"
    local.mkdir()
    ids: list[str] = []
    for file in store.list(suffix=".parquet"):
        (local / file.name).write_bytes(store.read(file.name))
        ids += pq.read_table(local / file.name)["video_id"].to_pylist()
    return sorted(ids)


def all_of(clips, copies: int) -> list[str]:
    return sorted(f"{path.stem}-{copy}" for path in clips.glob("*.mp4") for copy in range(copies))


def test_a_fifth_of_the_requests_fails_and_nothing_is_lost(moto_endpoint, clips, tmp_path):
    kinds = ("500", "503", "reset", "lost")
    with corpus(moto_endpoint, clips, 5, kinds=kinds, probability=0.2, seed=1) as (bucket, proxy):
        run = Run(proxy, bucket, tmp_path)
        summary = run.ended(120)
        assert run.process.returncode == 0, run.told
        assert (summary["ok"], summary["failed"], summary["missing"]) == (40, 0, 0)
        assert stored(bucket, tmp_path) == all_of(clips, 5)
        assert set(proxy.faults) == set(kinds)
        assert proxy.all_counted(summary["retries"])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [9, 34])  # which draw each kind among their first 30 requests
def test_stalls_of_30_s_among_the_faults_cost_time_alone(moto_endpoint, clips, tmp_path, seed):
    kinds = ("500", "503", "reset", "stall")
    with corpus(moto_endpoint, clips, 12, kinds=kinds, probability=0.1, seed=seed, stall_s=30) as (bucket, proxy):
        run = Run(proxy, bucket, tmp_path)
        summary = run.ended(500)
        assert (run.process.returncode, summary["ok"], summary["missing"]) == (0, 96, 0), run.told
        assert stored(bucket, tmp_path) == all_of(clips, 12)
        assert set(proxy.faults) == set(kinds)
        assert proxy.all_counted(summary["retries"])


@pytest.mark.parametrize("kind", ["503", *(pytest.param(each, marks=pytest.mark.slow) for each in ("500", "stall"))])
def test_a_server_that_fails_from_the_start_ends_the_job_in_its_own_words(moto_endpoint, clips, tmp_path, kind):
    """Within 3 minutes, which is the bound of one request; errors take 15 s."""
    with corpus(moto_endpoint, clips, 1, kinds=(kind,)) as (bucket, proxy):
        started_s = time.monotonic()
        run = Run(proxy, bucket, tmp_path)
        assert run.ended(200) == {}
        assert run.process.returncode == 2
        assert WORDS[kind] in run.told
        assert time.monotonic() - started_s < (200 if kind == "stall" else 40)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["500", "stall"])
def test_a_server_that_fails_for_good_in_mid_run_ends_it_in_its_own_words(moto_endpoint, clips, tmp_path, kind):
    """Within 4 minutes: the lock is lost a minute after its last heartbeat, or a commit fails, or 20 videos in a row."""
    with corpus(moto_endpoint, clips, 60, kinds=(kind,), probability=0.0, stall_s=300) as (bucket, proxy):
        run = Run(proxy, bucket, tmp_path)
        until = time.monotonic() + 120
        while not Folder(f"s3://{bucket}/store").list(suffix=".parquet"):
            assert run.process.poll() is None, run.told
            assert time.monotonic() < until, run.told
            time.sleep(0.05)
        proxy.probability = 1.0
        summary = run.ended(240)
        proxy.probability = 0.0
        assert run.process.returncode == 1, run.told
        assert WORDS[kind] in run.told
        assert 0 < summary["ok"] < 480
        assert summary["missing"] == 480 - summary["ok"]
        again = Run(proxy, bucket, tmp_path)
        rest = again.ended(240)
        assert (again.process.returncode, rest["ok"]) == (0, 480 - summary["ok"]), again.told
        assert stored(bucket, tmp_path) == all_of(clips, 60)
