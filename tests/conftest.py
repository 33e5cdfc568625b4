"""Shared fixtures: one Ray cluster a session, one S3 server, and tests/ itself on the path for the helper modules."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.capture import FDCapture, MultiCapture

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

import faults  # noqa: E402
import odd_videos  # noqa: E402
from ran_job import Ran  # noqa: E402
from s3_server import CREDENTIALS, moto_endpoint, s3_bucket  # noqa: E402, F401
from trained_mma import trained, training_corpus, training_mlflow  # noqa: E402, F401
from trained_reactions import reactions  # noqa: E402, F401

INJECTED = {"segfault": "segfault", "sleeper": "sleep", "hog": "memory", "worker-killer": "kill_parent", "*": "count"}
"""Videos of these stems do this to their decoder, in the session's cluster; every decoding is counted."""


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory) -> Path:
    """Where the session's cluster has its scratch and its record of decodings."""
    return tmp_path_factory.mktemp("session")


@pytest.fixture
def opened(session_folder) -> Callable[[str], int]:
    """How often a video of this file name was opened by a decoder of the session's cluster."""
    return lambda name: faults.opened_videos(session_folder).count(name)


@pytest.fixture(scope="session")
def session_environment(session_folder, moto_endpoint) -> dict[str, str]:  # noqa: F811
    """What the workers of the session's cluster inherit: the S3 server, decoders with faults, a scratch of its own."""
    folder = session_folder
    return {
        **CREDENTIALS,
        "AWS_ENDPOINT_URL": moto_endpoint,
        "MMA_MRNNET_SCRATCH": str(folder / "scratch"),
        **faults.fault_environment(folder, INJECTED),
    }


@pytest.fixture(scope="session")
def ray_cluster(session_environment) -> Iterator[None]:
    """A local Ray with 2 CPUs for all tests of the session; jobs run in this process use it as it stands."""
    import ray

    before = {name: os.environ.get(name) for name in session_environment}
    os.environ.update(session_environment)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def run_job(ray_cluster) -> Callable[..., Ran]:
    """Run a job in this process on the session's cluster: `run_job("extract", "--videos", ...)`."""
    from jobs.cli import main

    def run(*arguments: object) -> Ran:
        capture = MultiCapture(in_=None, out=FDCapture(1), err=FDCapture(2))
        capture.start_capturing()
        try:
            code = main([str(each) for each in arguments])
            out, err = capture.readouterr()
        finally:
            capture.stop_capturing()
        return Ran(code, json.loads(out) if out.strip() else {}, err)

    return run


@pytest.fixture
def job(run_job) -> Callable[..., Ran]:
    """`run_job`, by a shorter name."""
    return run_job


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> Path:
    """Eight small clips of 10 to 17 frames, numbered test cards: 00.mp4 to 07.mp4."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(8):
        odd_videos.write_clip(folder / f"{number:02d}.mp4", frames=10 + number)
    return folder
