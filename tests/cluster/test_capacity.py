"""What a run needs and what nodes have: checked by node, told with the option to change."""

import time

import pytest

from cluster.capacity import CapacityError, Node, Workers, plan_capacity, plan_workers
from cluster.session import local_node


def nodes(*each: tuple[float, float]) -> list[Node]:
    return [Node(name=f"n{i}", cpus=cpus, gpus=gpus) for i, (cpus, gpus) in enumerate(each)]


def test_two_cores_hold_two_slots_that_describe_too_or_an_actor_beside_them():
    capacity = plan_capacity(nodes((2, 0)))
    assert (capacity.extractors, capacity.decoders, capacity.decode_cpus, capacity.extractor_threads) == (0, 2, 1, 1)
    assert capacity.told() == "2 slots of 1 CPU that decode and describe"
    capacity = plan_capacity(nodes((2, 0)), extractors=1)
    assert (capacity.extractors, capacity.decoders) == (1, 2)
    assert capacity.extractors * capacity.extractor_cpus + capacity.decoders * capacity.decode_cpus <= 2


def test_one_core_is_enough():
    for extractors, found in ((None, 0), (1, 1)):
        capacity = plan_capacity(nodes((1, 0)), extractors=extractors)
        assert (capacity.extractors, capacity.decoders) == (found, 1)


def test_a_single_slot_has_all_threads_and_named_decode_nodes_leave_the_network_to_actors():
    assert plan_capacity(nodes((4, 0)), decoders=1).extractor_threads == 4
    assert plan_capacity(nodes((2, 0), (2, 0)), decoders=1).extractor_threads == 2  # it lies on one node
    named = [Node(name="d", cpus=4, resources=frozenset({"decode"})), Node(name="o", cpus=4)]
    assert plan_capacity(named, decode_resource="decode").extractors == 2


def test_an_actor_a_gpu_and_a_slot_for_each_cpu_left():
    capacity = plan_capacity(nodes((16, 2), (8, 0)))
    assert (capacity.extractors, capacity.extractor_gpus, capacity.decoders) == (2, 1.0, 14 + 8)


def test_half_a_gpu_each_doubles_the_actors():
    assert plan_capacity(nodes((16, 1)), extractor_gpus=0.5).extractors == 2


def test_a_place_is_sought_by_node_and_not_in_the_sum():
    # Two nodes of one CPU hold no slot of 1.5 CPU, though their sum would.
    with pytest.raises(CapacityError, match=r"find room for 0 .*n0: 1 CPU, n1: 1 CPU.*--decode-cpus"):
        plan_capacity(nodes((1, 0), (1, 0)), decode_cpus=1.5, decoders=1)


@pytest.mark.parametrize(
    ("wanted", "option"),
    [
        ({"extractor_gpus": 1.0}, "--extractor-gpus"),
        ({"extractors": 40}, "--extractors"),
        ({"decoders": 40}, "--decoders"),
    ],
)
def test_the_impossible_names_the_option_and_what_the_nodes_have(wanted, option):
    with pytest.raises(CapacityError, match="n0: 2 CPU") as error:
        plan_capacity(nodes((2, 0)), **wanted)
    assert option in str(error.value)


def test_nodes_of_one_name_are_told_apart():
    twins = [Node(name="host", cpus=2), Node(name="host", cpus=2)]
    assert plan_capacity(twins).decoders >= 3


def test_this_machine_is_counted_without_starting_ray():
    started = time.monotonic()
    assert local_node(3) == Node(name="this machine", cpus=3.0, gpus=local_node(None).gpus)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("cluster", "count", "expected"),
    [
        ([(2, 0)], 1, Workers(count=1, cpus=2)),
        ([(2, 0)], 2, Workers(count=2, cpus=1)),
        ([(8, 0)], 3, Workers(count=3, cpus=2)),
        # By node: three of 4 CPU have no place on two nodes of 6, whose sum would hold them.
        ([(6, 0), (6, 0)], 3, Workers(count=3, cpus=3)),
        ([(16, 0), (2, 0)], 3, Workers(count=3, cpus=5)),
        ([(16, 4)], 4, Workers(count=4, cpus=4, gpus=1)),
        # A node without a GPU holds no worker that needs one, however many CPUs it has.
        ([(8, 2), (64, 0)], 2, Workers(count=2, cpus=4, gpus=1)),
    ],
)
def test_training_workers_are_as_large_as_they_can_all_be(cluster, count, expected):
    assert plan_workers(nodes(*cluster), count=count) == expected


def test_what_is_asked_of_a_training_worker_is_kept():
    assert plan_workers(nodes((8, 2)), count=2, cpus=1.5, gpus=0) == Workers(count=2, cpus=1.5, gpus=0)
    assert plan_workers(nodes((8, 1)), count=2, gpus=0.5) == Workers(count=2, cpus=4, gpus=0.5)


@pytest.mark.parametrize(
    ("cluster", "wanted", "told"),
    [
        ([(2, 0)], {"count": 3}, "3 training workers of 1 CPU each find room for 2 .*n0: 2 CPU.*--num-workers"),
        ([(2, 0), (2, 0)], {"count": 1, "cpus": 3}, "of 3 CPU each find room for 0 .*n1: 2 CPU.*--worker-cpus"),
        ([(8, 1)], {"count": 2}, "of 1 CPU and 1 GPU each find room for 1 .*1 GPU.*--worker-gpus"),
        ([(8, 0)], {"count": 1, "gpus": 1}, "find room for 0 .*--worker-gpus"),
        ([(0.5, 0)], {"count": 1}, "find room for 0 .*0.5 CPU"),
        ([], {"count": 1}, "no live node"),
    ],
)
def test_training_workers_without_a_place_are_refused_before_the_start(cluster, wanted, told):
    with pytest.raises(CapacityError, match=told):
        plan_workers(nodes(*cluster), **wanted)


def test_decode_slots_are_on_the_nodes_that_offer_the_resource():
    named = [
        Node(name="head", cpus=0),
        Node(name="gpu", cpus=16, gpus=2),
        Node(name="c1", cpus=8, resources=frozenset({"CPU", "decode"})),
        Node(name="c2", cpus=8, resources=frozenset({"CPU", "decode"})),
    ]
    capacity = plan_capacity(named, decode_resource="decode")
    assert (capacity.extractors, capacity.extractor_gpus, capacity.decoders) == (2, 1.0, 16)
    assert "16 decode slots of 1 CPU on nodes with 'decode'" in capacity.told()
    with pytest.raises(CapacityError, match=r"find room for 16 on the 2 nodes with 'decode'"):
        plan_capacity(named, decode_resource="decode", decoders=17)
    with pytest.raises(CapacityError, match=r"--decode-resource other: no node offers it .*ray start --resources"):
        plan_capacity(named, decode_resource="other")


def test_an_actor_beside_a_gpu_waits_for_no_cpu():
    assert plan_capacity(nodes((16, 2))).extractor_claim == 0
    assert plan_capacity(nodes((2, 0))).extractor_claim == plan_capacity(nodes((2, 0))).extractor_cpus > 0


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ([(2, 0), (2, 0), (2, 0)], Workers(count=3, cpus=2, span=(1, 3))),
        ([(2, 0), (2, 0)], Workers(count=3, cpus=1, span=(1, 3))),
        ([(1, 0), (1, 0)], Workers(count=2, cpus=1, span=(1, 3))),
        ([(8, 1)], Workers(count=1, cpus=8, gpus=1, span=(1, 3))),
    ],
)
def test_elastic_workers_are_as_many_as_there_is_room_for(cluster, expected):
    assert plan_workers(nodes(*cluster), count=3, least=1) == expected


def test_elastic_workers_are_refused_where_the_least_have_no_place():
    with pytest.raises(CapacityError, match="2 training workers of 1 CPU each find room for 1"):
        plan_workers(nodes((1, 0)), count=3, least=2)
    assert "(1 to 3 as nodes come and go)" in plan_workers(nodes((2, 0)), count=3, least=1).told()
