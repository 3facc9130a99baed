"""Which nodes are used, which are left out and for how long, and how many places there are."""

from __future__ import annotations

from typing import Any

import pytest

from tuner.driver.nodes import LONGEST_INTERVAL, PROBE_INTERVAL, Nodes
from tuner.driver.resources import Node
from tuner.errors import ResourceError
from tuner.spec.settings import ResourceSettings
from tuner.study.nodes import NodeState

GIB = 2**30
HEAD = Node("10.0.0.1", 0, 0, 8 * GIB, "head", "head")


def node(name: str, cpu: float = 2, gpu: float = 0) -> Node:
    return Node(f"10.0.0.{name}", cpu, gpu, 64 * GIB, name, f"host{name}")


def cluster(here: str = "1", trials: int = 10, **settings: Any) -> Nodes:
    given: dict[str, Any] = {"cpu": 1, "gpu": 0, **settings}
    return Nodes(ResourceSettings(**given), trials, here)


def states(nodes: Nodes) -> dict[str, NodeState]:
    return {entry.node_id: entry.state for entry in nodes.entries()}


def test_the_drivers_own_node_is_used_at_once_and_others_when_their_probe_has_passed() -> None:
    nodes = cluster()
    nodes.see([HEAD, node("1"), node("2")], 0)
    assert nodes.plan().max_concurrent == 4
    assert states(nodes) == {"1": NodeState.USED, "2": NodeState.PROBED}
    assert (nodes.places(), nodes.avoided) == (2, {"2"})
    assert [each.node_id for each in nodes.due(0)] == ["2"]
    assert nodes.due(0) == []
    assert nodes.probed("2", [], 3) == ["node host2 (10.0.0.2) is used: 2 CPU, 0 GPU"]
    assert (nodes.places(), nodes.avoided) == (4, frozenset())


def test_a_node_that_joins_in_the_middle_gives_places_and_one_that_leaves_takes_them() -> None:
    nodes = cluster()
    nodes.see([node("1")], 0)
    nodes.plan()
    assert nodes.places() == 2
    nodes.see([node("1"), node("2", cpu=4)], 1)
    nodes.due(1)
    nodes.probed("2", [], 2)
    assert nodes.places() == 6
    assert nodes.see([node("1")], 3) == ["node host2 (10.0.0.2) left the cluster"]
    assert nodes.places() == 2
    assert nodes.name("2") == "host2 (10.0.0.2)"


@pytest.mark.parametrize(("most", "places"), [("auto", 10), (3, 3), (50, 10)])
def test_max_concurrent_and_the_trials_of_the_study_limit_the_places(
    most: Any, places: int
) -> None:
    nodes = cluster(max_concurrent=most)
    nodes.see([node("1", cpu=64)], 0)
    nodes.plan()
    assert nodes.places() == nodes.limit == places


def test_a_node_that_fails_its_probe_is_left_out_with_the_reason_and_probed_again() -> None:
    nodes = cluster()
    nodes.see([node("1"), node("2")], 0)
    nodes.plan()
    nodes.due(0)
    (line,) = nodes.probed("2", ["it does not see /studies", "its clock is 90 s ahead"], 1)
    assert line.endswith("is left out: it does not see /studies; its clock is 90 s ahead")
    assert nodes.summary().startswith("1 used, 2 places; host2 (10.0.0.2) is left out: it does not")
    assert (nodes.places(), nodes.avoided) == (2, {"2"})
    assert nodes.due(PROBE_INTERVAL) == []
    assert [each.node_id for each in nodes.due(1 + PROBE_INTERVAL)] == ["2"]
    # the same again is not told again
    assert nodes.probed("2", ["it does not see /studies", "its clock is 90 s ahead"], 50) == []
    nodes.due(100)
    assert nodes.probed("2", [], 101)
    assert nodes.places() == 4


def test_a_node_that_fails_trials_though_its_probe_passes_rests_longer_each_time() -> None:
    nodes = cluster()
    nodes.see([node("1")], 0)
    nodes.plan()
    now, rests = 0.0, []
    for _ in range(12):
        assert nodes.failed("1", "its storage fails", now)
        assert nodes.places() == 0
        moment = now
        while not nodes.due(moment):
            moment += 1
        rests.append(moment - now)
        now = moment
        nodes.probed("1", [], now)
        assert nodes.places() == 2
    assert rests[:4] == [0, 2 * PROBE_INTERVAL, 4 * PROBE_INTERVAL, 8 * PROBE_INTERVAL]
    assert rests[-1] == LONGEST_INTERVAL
    # an epoch that was finished there clears it
    nodes.works("1")
    nodes.failed("1", "its storage fails", now)
    assert nodes.due(now)


def test_a_probe_from_before_a_failure_does_not_clear_it() -> None:
    nodes = cluster()
    nodes.see([node("1"), node("2")], 0)
    nodes.plan()
    nodes.due(0)
    assert len(nodes.failed("2", "its disk is full", 1)) == 1
    assert nodes.probed("2", [], 1) == []
    assert states(nodes)["2"] is NodeState.LEFT_OUT
    # another trial that ran there
    assert nodes.failed("2", "its disk is full", 1) == []


def test_what_happens_to_a_node_that_is_gone_changes_nothing() -> None:
    nodes = cluster()
    nodes.see([node("1"), node("2")], 0)
    nodes.due(0)
    nodes.see([node("1")], 1)
    assert nodes.probed("2", [], 2) == nodes.failed("2", "why", 2) == []
    nodes.works("2")
    nodes.works(None)
    assert nodes.name(None) == "that is not known"


def test_a_cluster_whose_head_alone_is_there_waits_for_a_node_and_asks_for_one() -> None:
    nodes = cluster(cpu=4, gpu=1)
    nodes.see([HEAD], 0)
    with pytest.raises(ResourceError, match=r"4 CPU and 1 GPU.*there is none for trials"):
        nodes.plan()
    assert nodes.wanted() == [{"CPU": 4, "GPU": 1}]
    assert "needs 4 CPU and 1 GPU; the study waits for one" in nodes.waiting()
    nodes.see([HEAD, node("2", cpu=8, gpu=2)], 5)
    assert nodes.plan().max_concurrent == 2
    # it is being probed, and would do: no other one is asked for
    assert nodes.wanted() == []
    nodes.due(5)
    nodes.probed("2", [], 6)
    assert (nodes.places(), nodes.waiting()) == (2, "")


def test_automatic_shares_are_those_of_the_nodes_that_are_not_left_out() -> None:
    nodes = Nodes(ResourceSettings(), 10)
    nodes.see([node("1", cpu=2), node("2", cpu=16, gpu=2)], 0)
    nodes.due(0)
    nodes.probed("1", ["it does not see /studies"], 1)
    share = nodes.plan()
    assert (share.cpu, share.gpu) == (8, 1)


def test_a_cluster_is_asked_to_grow_to_max_concurrent_alone() -> None:
    nodes = cluster(cpu=2, max_concurrent=3)
    nodes.see([node("1")], 0)
    nodes.plan()
    assert nodes.wanted() == [{"CPU": 2}] * 3
    alone = cluster(cpu=2)
    alone.see([node("1")], 0)
    alone.plan()
    assert alone.wanted() == []


def test_without_a_node_that_is_fit_the_study_waits_and_says_why() -> None:
    nodes = cluster()
    nodes.see([node("1")], 0)
    nodes.plan()
    nodes.failed("1", "node host1 has storage that fails", 1)
    assert nodes.places() == 0
    assert "host1 (10.0.0.1) is left out: node host1 has storage that fails" in nodes.waiting()


def test_a_cluster_of_our_own_is_used_as_it_is() -> None:
    nodes = Nodes(ResourceSettings(cpu=1, gpu=0), 10, joined=False)
    nodes.see([node("1"), node("2")], 0)
    nodes.plan()
    assert (nodes.places(), nodes.due(0), nodes.avoided) == (4, [], frozenset())
