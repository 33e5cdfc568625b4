"""What a run needs and what nodes have: checked by node, told with the option to change."""

import time

import pytest

from cluster.capacity import CapacityError, Node, plan_capacity
from cluster.session import local_node


def nodes(*each: tuple[float, float]) -> list[Node]:
    return [Node(name=f"n{i}", cpus=cpus, gpus=gpus) for i, (cpus, gpus) in enumerate(each)]


def test_two_cores_hold_an_actor_and_two_decode_slots():
    capacity = plan_capacity(nodes((2, 0)))
    assert (capacity.extractors, capacity.decoders) == (1, 2)
    assert capacity.extractors * capacity.extractor_cpus + capacity.decoders * capacity.decode_cpus <= 2


def test_one_core_is_enough():
    capacity = plan_capacity(nodes((1, 0)))
    assert (capacity.extractors, capacity.decoders) == (1, 1)


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
