"""How many trials fit into the memory of a node, by what those that ran have taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from tuner.driver.memory_places import MARGIN, RECENT, MemoryPlaces
from tuner.driver.nodes import Nodes
from tuner.driver.resources import Node
from tuner.spec.domains import Uniform
from tuner.spec.settings import ResourceSettings
from tuner.spec.space import Space
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import MEMORY
from tuner.trial.memory import MemoryUse

GIB = 2.0**30
SPACE = Space({"x": Uniform(0, 1)})


class Cluster:
    """Trials of a study, on nodes that may use so much memory beside `others`."""

    def __init__(self, limit: float = 16, others: float = 1, trials: int = 40) -> None:
        self.record = StudyRecord(Path("memory"), SPACE, "max", InMemoryStorage())
        for _ in range(trials):
            self.record.propose({"x": 0.5}, "test")
        self.places = MemoryPlaces()
        self.places.follow(self.record)
        self.limit, self.others = limit, others
        self.held: dict[int, float] = {}

    def use(self, number: int, held: float, node: str = "a") -> MemoryUse:
        self.held[number] = held
        used = self.others + sum(self.held.values())
        return MemoryUse(node, held * GIB, held * GIB, used * GIB, self.limit * GIB)

    def begin(self, *numbers: int, node: str = "a") -> None:
        for number in numbers:
            self.places.begins(number, self.use(number, 0.0, node))

    def epoch(self, number: int, held: float, node: str = "a") -> None:
        self.places.reports(number, self.use(number, held, node))

    def end(self, number: int) -> None:
        self.places.ends(number)
        self.held.pop(number, None)


def test_the_first_trials_are_let_in_unmeasured() -> None:
    cluster = Cluster()
    assert cluster.places.room("a") is None
    cluster.begin(0, 1)
    assert cluster.places.room("a") is None


def test_a_further_trial_begins_where_one_like_the_largest_fits() -> None:
    cluster = Cluster(limit=16, others=1)
    cluster.begin(0)
    cluster.epoch(0, 5.0)
    # 15 for trials: 1.1 * 5 of each
    assert cluster.places.room("a") == 1
    cluster.begin(1)
    # one that was not measured yet is as large
    assert cluster.places.room("a") == 0
    cluster.epoch(1, 2.0)
    assert cluster.places.room("a") == 1
    cluster.end(0)
    assert cluster.places.room("a") == 2


def test_a_trial_that_does_not_fit_by_itself_runs_alone() -> None:
    cluster = Cluster(limit=4, others=1)
    cluster.begin(0)
    cluster.epoch(0, 5.0)
    assert cluster.places.room("a") == 0
    assert cluster.places.makes_room(0) == ""
    cluster.end(0)
    assert cluster.places.room("a") == 1


def test_places_come_back_when_trials_are_smaller() -> None:
    cluster = Cluster(limit=16, others=0)
    cluster.begin(0)
    cluster.epoch(0, 9.0)
    cluster.end(0)
    for number in range(1, RECENT):
        cluster.begin(number)
        cluster.epoch(number, 2.0)
        assert cluster.places.largest == 9 * GIB
        cluster.end(number)
    assert cluster.places.room("a") == 1
    cluster.begin(RECENT)
    cluster.epoch(RECENT, 2.0)
    cluster.end(RECENT)
    assert cluster.places.largest == 2 * GIB
    assert cluster.places.room("a") == 7


@settings(deadline=None)
@given(
    st.lists(st.floats(0.5, 6), min_size=1, max_size=8),
    st.floats(0, 4),
    st.floats(8, 64),
)
def test_what_is_let_in_fits_if_it_is_no_larger_than_the_largest(
    sizes: list[float], others: float, limit: float
) -> None:
    cluster = Cluster(limit, others)
    for number, size in enumerate(sizes):
        cluster.begin(number)
        cluster.epoch(number, size)
    room = cluster.places.room("a")
    assert room is not None
    held = others + sum(sizes)
    for further in range(room):
        held += max(sizes)
        assert held <= limit, further
    # nor is one left out that would fit with its margin
    needed = others + MARGIN * (sum(sizes) + (room + 1) * max(sizes))
    assert needed > limit - 1e-6


def test_what_other_programs_hold_is_not_for_trials() -> None:
    cluster = Cluster(limit=16, others=1)
    cluster.begin(0)
    cluster.epoch(0, 3.0)
    assert cluster.places.room("a") == 3
    cluster.others = 8
    cluster.epoch(0, 3.0)
    assert cluster.places.room("a") == 1
    cluster.others = 1
    cluster.epoch(0, 3.0)
    assert cluster.places.room("a") == 3


def test_nodes_are_looked_at_by_themselves() -> None:
    cluster = Cluster(limit=16, others=0)
    cluster.begin(0)
    cluster.places.begins(1, MemoryUse("b", 0.0, 0.0, 0.0, 64 * GIB))
    cluster.places.reports(1, MemoryUse("b", 5 * GIB, 5 * GIB, 5 * GIB, 64 * GIB))
    assert (cluster.places.room("a"), cluster.places.room("b")) == (1, 10)
    assert (cluster.places.running("a"), cluster.places.running("b")) == (1, 1)


def test_trials_that_do_not_fit_together_pause_but_for_the_first() -> None:
    cluster = Cluster(limit=15, others=0)
    cluster.begin(3, 4, 5, 6)
    for number in (3, 4, 5, 6):
        assert cluster.places.makes_room(5) == ""
        cluster.epoch(number, 4.0)
    # the first of them is to train on
    assert cluster.places.makes_room(3) == ""
    reason = cluster.places.makes_room(5)
    assert (
        reason == "makes room: 4 trials of its node need 16.0 GiB of memory, and may use 15.0 GiB"
    )
    # those that stay fit
    assert cluster.places.makes_room(4) == ""
    cluster.end(5)
    # its worker ends, and none takes its place
    assert cluster.places.lets_go()
    cluster.end(6)
    cluster.end(4)
    assert not cluster.places.lets_go()


def test_ray_ending_a_trial_for_memory_says_how_many_are_too_many() -> None:
    cluster = Cluster(limit=16, others=1)
    cluster.begin(0, 1, 2)
    assert cluster.places.killed(2)
    cluster.end(2)
    assert cluster.record.entries[2].notes[MEMORY] == pytest.approx(5 * GIB)
    # as many as before would not fit
    assert cluster.places.room("a") == 0
    cluster.end(1)
    assert cluster.places.room("a") == 1
    cluster.end(0)
    cluster.begin(2)
    # alone it is too large by itself
    assert not cluster.places.killed(2)
    assert not cluster.places.killed(30)


def test_a_study_that_goes_on_knows_what_its_trials_took() -> None:
    cluster = Cluster(limit=16, others=1)
    cluster.begin(0)
    cluster.epoch(0, 5.0)
    cluster.epoch(0, 4.0)
    assert cluster.record.entries[0].notes[MEMORY] == 5 * GIB
    again = MemoryPlaces()
    again.follow(cluster.record)
    assert again.largest == 5 * GIB
    again.begins(1, cluster.use(1, 0.0))
    assert again.room("a") == 1


def test_trials_of_a_confirmation_are_as_large_as_those_of_the_search() -> None:
    cluster = Cluster()
    cluster.begin(0)
    cluster.epoch(0, 5.0)
    confirmation = StudyRecord(Path("memory"), SPACE, "max", InMemoryStorage())
    confirmation.propose({"x": 0.5}, "test")
    cluster.places.follow(confirmation)
    assert cluster.places.largest == 5 * GIB
    cluster.begin(0)
    cluster.epoch(0, 3.0)
    assert cluster.places.largest == 3 * GIB
    assert confirmation.entries[0].notes[MEMORY] == 3 * GIB
    assert cluster.record.entries[0].notes[MEMORY] == 5 * GIB


def test_trials_that_cannot_be_measured_change_nothing() -> None:
    cluster = Cluster()
    cluster.places.begins(0, None)
    cluster.places.reports(0, None)
    assert cluster.places.makes_room(0) == ""
    cluster.end(0)
    assert not cluster.places.lets_go()


def test_the_places_of_a_study_follow_its_memory_and_it_is_told() -> None:
    cluster = Cluster(limit=16, others=1)
    settings = ResourceSettings(cpu=1, gpu=0)
    nodes = Nodes(settings, 40, "a", memory=cluster.places)
    nodes.see([Node("10.0.0.1", 4, 0, 64 * GIB, "a", "host-a")], 0)
    nodes.plan()
    cluster.begin(0, 1, 2)
    assert nodes.places() == 4
    assert nodes.short_of_memory() == []
    for number in (0, 1, 2):
        cluster.epoch(number, 4.5)
    assert (nodes.places(), nodes.avoided) == (3, {"a"})
    assert nodes.short_of_memory() == [
        "3 at once instead of 4 on host-a (10.0.0.1): a trial needs up to 4.5 GiB (and a tenth to "
        "spare) of the 15.0 GiB of memory that trials may use"
    ]
    cluster.end(0)
    assert (nodes.places(), nodes.avoided) == (3, frozenset())
    assert nodes.short_of_memory() == []
