"""A cluster that grows while `extract` runs on it."""

from pathlib import Path

import clips
import pytest
from clips import Run
from ray_hosts import ray_hosts


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_host_that_joins_in_mid_run_gets_work(can_make_hosts, tmp_path: Path, kinds, one_machine, monkeypatch):
    videos = 90
    with ray_hosts(tmp_path) as hosts:
        for key, value in hosts.environment.items():
            if key.startswith("AWS_"):
                monkeypatch.setenv(key, value)
        hosts.start("h1", "h2")
        run = Run(hosts, kinds, videos)
        job = run.start()
        job.wait_for(lambda: run.half_done("h1", "h2"), "both hosts work and something is committed")
        hosts.start("h3")
        summary = job.ended()
        assert (job.process.returncode, summary["ok"], summary["missing"]) == (0, videos, 0), job.told
        assert "the cluster has grown" in job.told
        assert summary["pipelines"] == 2
        assert run.opened("h3").total() >= 3
        clips.assert_copies_equal(clips.rows_of(run.store), one_machine, videos)
