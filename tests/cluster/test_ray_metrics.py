"""Metrics: what a run counts arrives at Ray's Prometheus endpoint under the names that the dashboard asks for."""

import collections
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "manifests" / "grafana-dashboard.json").read_text())
OWN = {f"ray_{name}_total" for name in metrics.COUNTERS} | {
    f"ray_{metrics.STAGE_SECONDS}_{part}" for part in ("bucket", "sum", "count")
}
"""As Prometheus sees them."""


def expressions() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def asked() -> set[str]:
    """Names of metrics in the dashboard's queries."""
    return {name for each in expressions() for name in re.findall(r"\bray_\w+", each)}


def test_the_dashboard_shows_every_metric_and_no_other():
    assert {name for name in asked() if name.startswith("ray_mma_mrnnet_")} == OWN


def test_the_rest_of_the_dashboard_are_metrics_of_rays_own():
    agent = pytest.importorskip("ray.dashboard.modules.reporter.reporter_agent")
    assert {name.removeprefix("ray_") for name in asked() - OWN} <= set(agent.METRICS_GAUGES)


def test_the_dashboard_asks_for_labels_that_the_metrics_have():
    labels = {f"ray_{name}_total": set(keys) for name, (_, keys) in metrics.COUNTERS.items()}
    labels |= {name: {"stage", "le"} for name in OWN if metrics.STAGE_SECONDS in name}
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            names = set(re.findall(r"\bray_mma_mrnnet_\w+", target["expr"]))
            grouped = {each for group in re.findall(r"by \(([\w, ]+)\)", target["expr"]) for each in group.split(", ")}
            shown = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            for name in names:
                assert grouped <= labels[name], target["expr"]
            assert not names or shown <= grouped - {"le"}, target["expr"]
            assert not re.findall(r'\bray_\w+(?!\w|{SessionName=~"\$session"[,}])', target["expr"])


def test_the_dashboards_panels_do_not_lie_over_each_other():
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_without_ray_nothing_is_told_and_nothing_fails():
    script = """if True:
        import ray
        from cluster import metrics
        metrics.count(metrics.FRAMES, 3)
        totals = metrics.Totals()
        totals.tell(metrics.VIDEOS, 1, status="ok")
        with metrics.timed("fetch"):
            pass
        assert list(metrics.timed_each("decode", [1, 2])) == [1, 2]
        assert not ray.is_initialized()
        assert not metrics._metric.cache_info().currsize
    """
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_totals_are_told_by_their_growth(monkeypatch):
    told = []
    monkeypatch.setattr(metrics, "count", lambda name, added, **labels: told.append((name, added, labels)))
    totals = metrics.Totals()
    for ok, failed in ((2, 0), (2, 1), (5, 1)):
        totals.tell(metrics.VIDEOS, ok, status="ok")
        totals.tell(metrics.VIDEOS, failed, status="failed")
    assert [(added, labels["status"]) for _, added, labels in told if added] == [(2, "ok"), (1, "failed"), (3, "ok")]


def test_the_time_of_an_item_is_that_of_its_coming_and_not_of_its_use(monkeypatch):
    clock, told = [0.0], []
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(metrics, "observe", lambda stage, seconds: told.append((stage, seconds)))

    def coming():
        for each in (3.0, 4.0):
            clock[0] += each
            yield each

    for _ in metrics.timed_each("decode", coming()):
        clock[0] += 100

    def failing():
        with metrics.timed("fetch"):
            clock[0] += 5
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert told == [("decode", 3.0), ("decode", 4.0), ("fetch", 5.0)]


EXTRACTION = """if True:
    import json, re, sys, time, urllib.request
    import ray
    from cluster import metrics
    from jobs.cli import main

    @ray.remote
    def work():
        with metrics.timed("probe"):
            time.sleep(0.2)

    clips, store = sys.argv[1:]
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    code = main(["extract", "--videos", clips, "--store", store, "--mma", "random:0", "--detector", "none"])
    assert code == 3, code  # one of four failed
    ray.get(work.remote())
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
    awaited = ["ray_mma_mrnnet_videos_total{", "ray_node_cpu_utilization{", 'stage="mma"', 'stage="probe"']
    until_s = time.monotonic() + 60
    while time.monotonic() < until_s:
        text = urllib.request.urlopen(url).read().decode()
        if all(each in text for each in awaited):
            break
        time.sleep(0.5)
    rows = re.findall(r"^(ray_(?:mma_mrnnet|node)_\\w+){(.*?)} (\\S+)$", text, re.M)
    print(json.dumps([[name, dict(re.findall(r'(\\w+)="(.*?)"', labels)), float(value)] for name, labels, value in rows]))
"""


@pytest.mark.slow
def test_what_an_extraction_counts_stands_at_rays_prometheus_endpoint(tmp_path, clips):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for clip in sorted(clips.iterdir())[:3]:  # 10, 11 and 12 frames
        (corpus / clip.name).write_bytes(clip.read_bytes())
    (corpus / "text.mp4").write_text("no video")
    run = subprocess.run(
        [sys.executable, "-c", EXTRACTION, str(corpus), str(tmp_path / "store")],
        cwd=ROOT,
        env={**os.environ, "RAY_metrics_report_interval_ms": "1000"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = json.loads(next(line for line in run.stdout.splitlines() if line.startswith('[["ray_')))
    seen: dict = collections.defaultdict(float)
    for name, labels, value in rows:  # each process has its own
        seen[name, labels.get("status") or labels.get("stage")] += value
    assert seen["ray_mma_mrnnet_videos_total", "ok"] == 3
    assert seen["ray_mma_mrnnet_videos_total", "failed"] == 1
    assert seen["ray_mma_mrnnet_frames_total", None] == 33
    assert seen["ray_mma_mrnnet_failures_total", "sniff"] == 1
    took = {stage: value for (name, stage), value in seen.items() if name == "ray_mma_mrnnet_stage_seconds_count"}
    assert took.pop("mma") >= 1
    assert took == {"fetch": 4, "decode": 3, "probe": 1}
    assert 0.2 <= seen["ray_mma_mrnnet_stage_seconds_sum", "probe"] < 5
    assert {name for name, _ in seen if name.startswith("ray_mma_mrnnet_")} <= OWN
    labels = {name: set(keys) for name, keys, _ in rows}
    assert all("SessionName" in keys for keys in labels.values())
    assert all("ip" in labels[name] for name in asked() if name.startswith("ray_node_") and "gpus" not in name)
