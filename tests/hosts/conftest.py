"""The hosts of a test module: made once, whole again before each test."""

from collections.abc import Iterator
from pathlib import Path

import clips
import pyarrow as pa
import pytest
from host_network import why_not
from ray_hosts import NAMES, RayHosts, ray_hosts
from s3_server import CREDENTIALS

from cluster.storage import Folder


@pytest.fixture(scope="session")
def can_make_hosts() -> None:
    """Skips where this machine makes none."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def made_hosts(can_make_hosts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHosts]:
    """Three hosts of one CPU with Ray, and an S3 server on a fourth."""
    with ray_hosts(tmp_path_factory.mktemp("hosts")) as cluster:
        cluster.start(*NAMES)
        yield cluster


@pytest.fixture
def hosts(made_hosts: RayHosts, monkeypatch: pytest.MonkeyPatch) -> RayHosts:
    """All of them alive; `Folder("s3://...")` in the test itself asks their S3 server."""
    made_hosts.restore()
    made_hosts.proxy.probability = 0.0
    for key, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": made_hosts.s3}.items():
        monkeypatch.setenv(key, value)
    return made_hosts


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds") / "videos"
    clips.write_kinds(folder)
    return folder


@pytest.fixture(scope="session")
def one_machine(run_job, kinds: Path) -> dict[str, pa.Table]:
    """The rows of each kind, made on this machine alone."""
    store = kinds.parent / "store"
    ran = run_job("extract", "--videos", kinds, "--store", store, *clips.OPTIONS)
    assert ran.code == 0, ran.told
    return clips.by_kind(Folder(str(store)))
