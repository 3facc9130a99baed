from __future__ import annotations

from typing import Any

import pytest

from tuner.driver.resources import Node, least_share, nodes_of, plan_resources
from tuner.errors import ResourceError
from tuner.spec.settings import ResourceSettings

GIB = 2**30


def node(cpu: float, gpu: float = 0, memory: float = 64 * GIB) -> Node:
    return Node(f"10.0.0.{cpu:g}", cpu, gpu, memory)


def settings(**values: Any) -> ResourceSettings:
    return ResourceSettings(**values)


@pytest.mark.parametrize(
    ("nodes", "given", "trials", "expected"),
    [
        # a laptop without a GPU: one trial a core
        ([node(2)], {}, 8, (1, 0, 2)),
        ([node(8)], {}, 8, (1, 0, 8)),
        # fewer trials than cores share them
        ([node(8)], {}, 2, (4, 0, 2)),
        # memory for two trials only
        ([node(8, memory=7 * GIB)], {}, 8, (4, 0, 2)),
        # eight GPUs: one trial each, with its share of the cores
        ([node(64, gpu=8)], {}, 100, (8, 1, 8)),
        # two trials share a GPU
        ([node(16, gpu=1)], {"gpu": 0.5}, 10, (8, 0.5, 2)),
        # a fraction of 0.4 leaves a fifth of each GPU idle and never spans two
        ([node(16, gpu=2)], {"gpu": 0.4, "cpu": 1}, 10, (1, 0.4, 4)),
        # trials of two GPUs; a node with three has one idle
        ([node(16, gpu=4)], {"gpu": 2}, 10, (8, 2, 2)),
        ([node(16, gpu=3), node(16, gpu=1)], {"gpu": 2, "cpu": 2}, 10, (2, 2, 1)),
        # two nodes
        ([node(4, gpu=1), node(8, gpu=2)], {}, 10, (4, 1, 3)),
        ([node(4), node(4)], {"cpu": 2}, 10, (2, 0, 4)),
        ([node(8)], {"max_concurrent": 3, "cpu": 1}, 10, (1, 0, 3)),
        ([node(8)], {"max_concurrent": 2}, 10, (4, 0, 2)),
    ],
)
def test_plan(
    nodes: list[Node], given: dict[str, Any], trials: int, expected: tuple[float, float, int]
) -> None:
    plan = plan_resources(settings(**given), nodes, trials)
    assert (plan.cpu, plan.gpu, plan.max_concurrent) == expected


@pytest.mark.parametrize(
    "given", [{"cpu": 3}, {"gpu": 1}, {"cpu": 1, "gpu": 0.5}, {"cpu": 64, "gpu": 0}]
)
def test_what_no_node_has_is_refused_with_what_there_is(given: dict[str, Any]) -> None:
    with pytest.raises(ResourceError, match="2 CPU, 0 GPU"):
        plan_resources(settings(**given), [node(2)], 4)


@pytest.mark.parametrize("given", [{"cpu": 6}, {"gpu": 2, "cpu": 1}])
def test_a_trial_never_spans_two_nodes(given: dict[str, Any]) -> None:
    with pytest.raises(ResourceError, match="no node has that"):
        plan_resources(settings(**given), [node(4, gpu=1), node(4, gpu=1)], 4)


def test_dead_nodes_do_not_count() -> None:
    resources = {"CPU": 2.0, "memory": 1.0}
    named = {"NodeManagerAddress": "10.0.0.2", "NodeManagerHostname": "w1", "NodeID": "ab"}
    alive = {"Alive": True, "Resources": resources, **named}
    dead = {**alive, "Alive": False}
    assert nodes_of([alive, dead]) == [Node("10.0.0.2", 2.0, 0.0, 1.0, "ab", "w1")]


@pytest.mark.parametrize(
    ("given", "least"),
    [
        ({}, {"CPU": 1}),
        ({"cpu": 4, "gpu": 1}, {"CPU": 4, "GPU": 1}),
        ({"cpu": 4, "gpu": 0}, {"CPU": 4}),
    ],
)
def test_what_a_trial_needs_at_least_is_known_before_there_is_a_node(
    given: dict[str, Any], least: dict[str, float]
) -> None:
    assert least_share(settings(**given)) == least
    with pytest.raises(ResourceError, match="there is none for trials"):
        plan_resources(settings(**given), [], 4)
