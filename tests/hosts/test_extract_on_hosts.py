"""`extract` on three hosts, from and to an S3 server on a fourth: whatever is lost, the store is that of one machine."""

from pathlib import Path

import clips
import pytest
from clips import Run
from ray_hosts import NAMES, RayHosts

VIDEOS = 32


@pytest.mark.timeout(180)
def test_a_host_cut_off_in_mid_run_costs_nothing(hosts: RayHosts, kinds: Path, one_machine):
    run = Run(hosts, kinds, VIDEOS)
    job = run.start()
    job.wait_for(lambda: run.half_done("h3"), "h3 works and something is committed")
    hosts.cut("h3")
    done = run.stored()
    opened = {name: run.opened(name) for name in NAMES}
    assert 0 < len(done) < VIDEOS, "cut too late to show anything"
    summary = job.ended()
    assert job.process.returncode == 0, job.told
    assert (summary["ok"], summary["missing"], summary["videos"]) == (VIDEOS, 0, VIDEOS), job.told
    clips.assert_copies_equal(clips.rows_of(run.store), one_machine, VIDEOS)
    for name in ("h1", "h2"):
        again = {video for video in done if run.opened(name)[video] > opened[name][video]}
        assert not again, f"videos that were committed when h3 was cut off were decoded again on {name}"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lost", [("h2",), ("h2", "h3")])
def test_one_host_after_the_other_is_cut_off(hosts: RayHosts, kinds: Path, one_machine, lost):
    run = Run(hosts, kinds, 64)
    job = run.start()
    for name in lost:
        stored = len(run.stored())
        job.wait_for(lambda stored=stored: len(run.stored()) > stored, "more is committed")
        hosts.cut(name)
    summary = job.ended()
    assert (job.process.returncode, summary["missing"]) == (0, 0), job.told
    clips.assert_copies_equal(clips.rows_of(run.store), one_machine, 64)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_driver_killed_on_the_head_and_the_same_command_finishes_the_work(hosts, kinds, one_machine):
    run = Run(hosts, kinds, VIDEOS)
    job = run.start(log="first")
    job.wait_for(lambda: run.half_done(*NAMES), "all hosts work and something is committed")
    job.process.kill()
    job.ended()
    done = run.stored()
    opened = {name: run.opened(name) for name in NAMES}
    assert 0 < len(done) < VIDEOS
    job = run.start(log="second")
    summary = job.ended()
    assert job.process.returncode == 0, job.told
    assert (summary["skipped"], summary["ok"]) == (len(done), VIDEOS - len(done))
    clips.assert_copies_equal(clips.rows_of(run.store), one_machine, VIDEOS)
    assert not {video for name in NAMES for video in done if run.opened(name)[video] > opened[name][video]}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_tenth_of_the_requests_fails_and_nothing_is_lost(hosts: RayHosts, kinds: Path, one_machine):
    """500, SlowDown, resets, and 30 s without an answer, between the hosts and the S3 server."""
    run = Run(hosts, kinds, VIDEOS)
    proxy = hosts.proxy
    proxy.fail(("500", "503", "reset", "stall"), 0.1, seed=34, stall_s=30)
    job = run.start()
    summary = job.ended(360)
    proxy.probability = 0.0
    assert (job.process.returncode, summary["ok"], summary["missing"]) == (0, VIDEOS, 0), job.told
    assert set(proxy.kinds) == set(proxy.faults), "some kind of fault was never drawn"
    assert proxy.all_counted(summary["retries"])
    clips.assert_copies_equal(clips.rows_of(run.store), one_machine, VIDEOS)
