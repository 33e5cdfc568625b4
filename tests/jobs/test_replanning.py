"""When a pipeline is left for a better one, and what a run does where nodes are lost: rounds and plans, without Ray."""

import threading

import pytest
import ray.exceptions
from test_extraction_flow import VIDEOS, Flow, batch, some

import jobs.extraction
from cluster.capacity import Node, plan_capacity
from jobs.intake import SILENT_S, Reachability
from jobs.outcome import JobFailedError
from jobs.replanning import GAPS, LOOK_S, PATIENCE_S, SETTLED_S, Watch


@pytest.fixture
def flow(tmp_path, monkeypatch) -> Flow:
    return Flow(tmp_path, monkeypatch)


def named(*cpus: float) -> list[Node]:
    """Nodes n0, n1, … of these CPUs."""
    return [Node(name=f"n{i}", id=f"n{i}", cpus=each) for i, each in enumerate(cpus)]


class Cluster:
    """What a `Watch` looks at, by a clock of its own."""

    def __init__(self, *nodes: Node) -> None:
        self.now_s, self.nodes = 0.0, nodes
        self.watch = Watch(plan_capacity(nodes), lambda: self.nodes, plan_capacity, clock=lambda: self.now_s)

    def asked(self, after_s: float, *nodes: Node, arrived: bool = True) -> str | None:
        self.now_s += after_s
        self.nodes = nodes or self.nodes
        return self.watch(arrived)


def test_a_cluster_that_has_grown_and_stays_so_is_worth_another_pipeline():
    cluster = Cluster(*named(8, 8, 8, 8))
    assert cluster.asked(60) is None
    assert cluster.asked(LOOK_S, *named(8, 8, 8, 8, 8)) is None, "more may be on their way"
    assert cluster.asked(SETTLED_S - LOOK_S) is None
    assert cluster.asked(LOOK_S, arrived=False) is None, "a pipeline is left while it flows"
    assert cluster.asked(0.1) == "the cluster has grown"


def test_each_node_that_joins_is_waited_for_unless_they_are_many():
    cluster = Cluster(*named(*[8] * 10))
    for count in (11, 12, 13, 14):
        assert cluster.asked(SETTLED_S - 1, *named(*[8] * count)) is None
    assert cluster.asked(SETTLED_S) == "the cluster has grown"
    assert Cluster(*named(8, 8)).asked(LOOK_S, *named(8, 8, 8)) == "the cluster has grown", "by half: at once"


def test_fewer_nodes_and_none_are_no_growth():
    cluster = Cluster(*named(8, 8))
    assert cluster.asked(LOOK_S, *named(8)) is None
    cluster.nodes = ()
    assert cluster.asked(LOOK_S) is None


def test_silence_after_a_loss_is_borne_for_some_of_the_longest_gaps_before():
    cluster = Cluster(*named(8, 8))
    for _ in range(5):
        assert cluster.asked(LOOK_S) is None
    assert cluster.asked(LOOK_S, *named(8)) is None
    assert cluster.asked(GAPS * LOOK_S - 0.1, arrived=False) is None
    assert f"nothing has come for {GAPS * LOOK_S:.0f} s" in str(cluster.asked(0.1, arrived=False))


def test_silence_alone_is_no_reason_and_a_loss_alone_neither():
    cluster = Cluster(*named(8, 8))
    assert cluster.asked(0.1) is None
    assert cluster.asked(3600.0, arrived=False) is None
    cluster = Cluster(*named(8, 8))
    for _ in range(100):
        assert cluster.asked(1.0, *named(8)) is None
    assert cluster.asked(PATIENCE_S[0] + 0.1, arrived=False) is not None


def test_a_node_of_the_same_name_is_another_node():
    """A host that comes back has lost its work all the same."""
    cluster = Cluster(*named(8, 8))
    assert cluster.asked(0.1) is None
    back = Node(name="n1", id="n1 again", cpus=8)
    assert cluster.asked(LOOK_S, named(8)[0], back, arrived=False) is None
    assert cluster.asked(PATIENCE_S[0], arrived=False) is not None


def test_while_workers_start_the_patience_is_longest():
    cluster = Cluster(*named(8, 8))
    assert cluster.asked(LOOK_S, *named(8), arrived=False) is None
    assert cluster.asked(PATIENCE_S[1] - 0.1, arrived=False) is None
    assert cluster.asked(0.1, arrived=False) is not None


class Cast:
    """A cluster for a `Flow`: its nodes, look by look; the last ones stay."""

    def __init__(self, flow: Flow, monkeypatch: pytest.MonkeyPatch, *looks: list[Node]) -> None:
        self.looks, self.plans = list(looks), []
        honest = jobs.extraction.build

        def build(todo, reading, descriptors, weights, extractor, capacity):
            self.plans.append(capacity)
            return honest(todo)

        monkeypatch.setattr(jobs.extraction, "build", build)
        monkeypatch.setattr(jobs.extraction, "live_nodes", self.look)
        monkeypatch.setattr(jobs.extraction, "POLL_S", 0.01)

    def look(self) -> list[Node]:
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]


def lost(*numbers: int, error: Exception | None = None):
    """Delivers these videos, then loses an MMA actor."""

    def deliver():
        yield from (batch(number) for number in numbers)
        raise error or ray.exceptions.ActorDiedError()

    return deliver


def node(cpus: float = 2.0) -> Node:
    return Node(name="n", cpus=cpus)


def test_a_lost_actor_is_planned_anew_on_the_nodes_that_are_left(flow, monkeypatch, capfd):
    cast = Cast(flow, monkeypatch, [node(4.0)])
    outcome = flow.run(lost(0, 1), lost(2), lost(3), lost(4), some(5), address="10.0.0.1:6379")
    assert (outcome.exit_code, outcome.summary["ok"], outcome.summary["pipelines"]) == (0, VIDEOS, 5)
    assert flow.planned[1] == ["v2", "v3", "v4", "v5"]
    assert [plan.decoders for plan in cast.plans] == [2, 4, 4, 4, 4]
    assert "workers were lost (ActorDiedError" in capfd.readouterr().err


def test_losses_without_a_video_between_them_end_the_run(flow, monkeypatch, capfd):
    Cast(flow, monkeypatch, [node()])
    outcome = flow.run(lost(0), lost(), lost(), lost(), address="10.0.0.1:6379")
    assert (outcome.exit_code, outcome.summary["ok"], outcome.summary["missing"]) == (1, 1, VIDEOS - 1)
    assert "the pipeline ended with ActorDiedError" in capfd.readouterr().err


def test_an_error_of_a_tasks_own_code_is_not_tried_again(flow, monkeypatch):
    Cast(flow, monkeypatch, [node()])
    defect = ray.exceptions.RayTaskError("read_faces", "a traceback", ValueError("a defect"))
    outcome = flow.run(lost(0, error=defect), some(*range(6)), address="10.0.0.1:6379")
    assert (outcome.exit_code, outcome.summary["pipelines"]) == (1, 1)


def test_a_run_waits_for_nodes_and_goes_on_when_they_come(flow, monkeypatch, capfd):
    Cast(flow, monkeypatch, [], [], [node()])
    outcome = flow.run(lost(0), some(*range(1, 6)), address="10.0.0.1:6379")
    assert (outcome.exit_code, outcome.summary["ok"]) == (0, VIDEOS)
    assert capfd.readouterr().err.count("waiting up to") == 1


def test_a_run_that_waited_for_nodes_in_vain_says_what_to_do(flow, monkeypatch, capfd):
    Cast(flow, monkeypatch, [])
    monkeypatch.setattr(jobs.extraction, "NODES_S", 0.05)
    outcome = flow.run(lost(0), address="10.0.0.1:6379")
    assert (outcome.exit_code, outcome.summary["ok"]) == (1, 1)
    assert "nodes were lost: the cluster has no live node" in capfd.readouterr().err


def test_rows_of_one_store_stay_of_one_kind_of_device(flow, monkeypatch):
    """Where the GPUs are lost, the run waits for others: CPUs would go on in another precision, at a hundredth."""
    gpu = Node(name="g", cpus=4.0, gpus=1.0)
    cast = Cast(flow, monkeypatch, [node(8.0), gpu], [node(8.0)], [node(8.0), gpu])

    def session(*_, **__):
        from contextlib import nullcontext

        return nullcontext([node(8.0), gpu])

    monkeypatch.setattr(jobs.extraction, "ray_session", session)
    assert flow.run(lost(0), some(*range(1, 6)), address="10.0.0.1:6379").exit_code == 0
    assert [(plan.extractors, plan.extractor_gpus) for plan in cast.plans] == [(1, 1.0), (1, 1.0)]


def test_a_grown_cluster_ends_the_pipeline_and_doubles_nothing(flow, monkeypatch):
    Cast(flow, monkeypatch, [node(8.0)])
    monkeypatch.setattr("jobs.replanning.LOOK_S", 0.0)
    outcome = flow.run(some(0, 1, 2), some(1, 2, 3, 4, 5), address="10.0.0.1:6379")
    assert (outcome.exit_code, outcome.summary["ok"], outcome.summary["pipelines"]) == (0, VIDEOS, 2)
    assert flow.planned[1] == ["v1", "v2", "v3", "v4", "v5"]
    assert len(flow.stored()) == VIDEOS


def test_a_pipeline_that_lost_a_node_and_is_silent_is_closed_and_planned_anew(flow, monkeypatch, capfd):
    """What Ray believes to be running on a host that fell silent, it would wait for."""
    closed = threading.Event()
    monkeypatch.setattr(jobs.extraction, "close_pipelines", closed.set)
    monkeypatch.setattr("jobs.replanning.LOOK_S", 0.0)
    monkeypatch.setattr("jobs.replanning.PATIENCE_S", (0.3, 0.3))
    a, b = Node(name="a", id="a", cpus=2.0), Node(name="b", id="b", cpus=0.0)
    Cast(flow, monkeypatch, [a, b], [a, b], [a])

    def silent():
        yield from some(0, 1, 2)()
        closed.wait(20)

    outcome = flow.run(silent, some(3, 4, 5), address="10.0.0.1:6379")
    assert closed.is_set()
    assert (outcome.exit_code, outcome.summary["ok"], outcome.summary["pipelines"]) == (0, VIDEOS, 2)
    assert flow.planned[1] == ["v3", "v4", "v5"]
    assert "a node was lost, and nothing has come for" in capfd.readouterr().err


def test_on_this_machine_alone_nobody_looks_for_nodes(flow, monkeypatch):
    monkeypatch.setattr(jobs.extraction, "live_nodes", None)
    outcome = flow.run(lost(0, 1, 2), some(3, 4, 5))
    assert (outcome.exit_code, outcome.summary["ok"]) == (0, VIDEOS)


def test_few_errors_in_a_row_end_a_run_that_has_had_no_video_for_minutes():
    now_s = 0.0
    seen = Reachability(clock=lambda: now_s)
    for _ in range(6):
        seen.saw("no answer")
    seen.saw(None)
    now_s = SILENT_S + 1
    for _ in range(4):
        seen.saw("no answer")
    with pytest.raises(JobFailedError, match="no answer"):
        seen.saw("no answer")
