"""Trials with a part of a GPU, spread over GPUs before they share them; with a model of Ray."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tuner.driver import shared_gpus
from tuner.driver.placement import FitNodes
from tuner.driver.shared_gpus import NODE_LABEL


class Place:
    """A placement group of the model; those that ask for one are compared as Ray's are."""

    def __init__(self, ray: Ray, bundles: list[dict[str, float]], labels: Any) -> None:
        self._ray = ray
        self.bundles = bundles
        self.labels = labels or [{}] * len(bundles)
        self.booked: list[tuple[str, int, float]] = []
        self.state = "PENDING"

    def wait(self, timeout_seconds: float) -> bool:
        self._ray.settle()
        return self.state == "CREATED"


class Ray:
    """GPUs of nodes, booked as Ray books them: where the least is left that is enough."""

    def __init__(self, **gpus: int) -> None:
        self.left = {node: [1.0] * count for node, count in gpus.items()}
        self.places: list[Place] = []

    def placement_group(
        self, bundles: Any, strategy: str = "PACK", bundle_label_selector: Any = None
    ) -> Place:
        self.places.append(Place(self, bundles, bundle_label_selector))
        return self.places[-1]

    def remove_placement_group(self, place: Place) -> None:
        for node, gpu, part in place.booked:
            self.left[node][gpu] += part
        place.booked, place.state = [], "REMOVED"

    def placement_group_table(self, place: Place) -> dict[str, Any]:
        where = {index: node for index, (node, _, _) in enumerate(place.booked)}
        return {"state": place.state, "bundles_to_node_id": where}

    def settle(self) -> None:
        """Find a place for those that wait."""
        for place in self.places:
            if place.state != "PENDING":
                continue
            for bundle, label in zip(place.bundles, place.labels, strict=True):
                if not self._book(place, bundle["GPU"], label.get(NODE_LABEL)):
                    # all of it or nothing
                    self.remove_placement_group(place)
                    place.state = "PENDING"
                    break
            else:
                place.state = "CREATED"

    def _book(self, place: Place, given: float, wanted: str | None) -> bool:
        # Ray counts ten-thousandths
        part = round(given, 4)
        able = [
            (left, node, gpu)
            for node, gpus in self.left.items()
            for gpu, left in enumerate(gpus)
            if left >= part - 1e-9 and wanted in (None, node)
        ]
        if not able:
            return False
        _, node, gpu = min(able, key=lambda each: (round(each[0], 6), each[1], each[2]))
        self.left[node][gpu] -= part
        place.booked.append((node, gpu, part))
        return True


class Study:
    """A study whose trials have a part of a GPU, on a model of Ray."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, share: float, **gpus: int) -> None:
        self.ray = Ray(**gpus)
        for name in ("placement_group", "placement_group_table", "remove_placement_group"):
            monkeypatch.setattr(shared_gpus, name, getattr(self.ray, name))
        monkeypatch.setattr("tuner.driver.placement.placement_group", self.ray.placement_group)
        self.fit = FitNodes(1, share, frozenset, lambda: gpus)

    def start(self) -> Any:
        place: Any = self.fit.to_placement_group()
        self.ray.settle()
        return place

    def trials(self) -> dict[str, list[int]]:
        """How many places are on each GPU of each node."""
        found = {node: [0] * len(left) for node, left in self.ray.left.items()}
        for place in self.ray.places:
            for node, gpu, _ in place.booked:
                found[node][gpu] += 1
        return found


def test_two_halves_have_a_gpu_each_before_they_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(monkeypatch, 0.5, a=2)
    seen = []
    for _ in range(4):
        study.start()
        seen.append(study.trials()["a"])
    assert seen == [[1, 0], [1, 1], [2, 1], [2, 2]]
    # a fifth waits, and has the place of the one that ends
    fifth = study.start()
    assert fifth.state == "PENDING"
    study.ray.remove_placement_group(study.ray.places[0])
    study.ray.settle()
    assert fifth.state == "CREATED"


def test_rays_own_choice_would_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model does without spreading is what Ray does."""
    study = Study(monkeypatch, 0.5, a=2)
    for _ in range(2):
        study.ray.placement_group([{"CPU": 1, "GPU": 0.5}])
    study.ray.settle()
    assert study.trials()["a"] == [2, 0]


def test_nodes_are_filled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(monkeypatch, 0.25, a=1, b=2)
    for _ in range(3):
        study.start()
    assert study.trials() == {"a": [1], "b": [1, 1]}


def test_a_gpu_that_another_study_has_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(monkeypatch, 0.5, a=2)
    other = study.ray.placement_group([{"GPU": 1.0}])
    study.ray.settle()
    for _ in range(2):
        assert study.start().state == "CREATED"
    assert study.trials()["a"] == [1, 2]
    study.ray.remove_placement_group(other)
    study.start()
    assert study.trials()["a"] == [1, 2]


def test_nothing_stays_booked_beside_the_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(monkeypatch, 0.5, a=2, b=1)
    places = [study.start() for _ in range(6)]
    for place in places:
        study.ray.remove_placement_group(place)
    assert study.ray.left == {"a": [1.0, 1.0], "b": [1.0]}


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    share=st.sampled_from([0.1, 0.2, 0.25, 1 / 3, 0.4, 0.5, 0.6]),
    gpus=st.lists(st.integers(1, 4), min_size=1, max_size=2),
    steps=st.lists(st.one_of(st.none(), st.integers(0, 99)), max_size=30),
)
def test_no_gpu_has_two_trials_while_another_has_none(
    monkeypatch: pytest.MonkeyPatch, share: float, gpus: list[int], steps: list[int | None]
) -> None:
    study = Study(monkeypatch, share, **dict(zip("ab", gpus, strict=False)))
    running: list[Any] = []
    for step in steps:
        if step is None:
            idle = sum(counts.count(0) for counts in study.trials().values())
            place = study.start()
            if place.state == "PENDING":
                # Tune asks for no more than there are places
                assert not idle
                study.ray.remove_placement_group(place)
                continue
            running.append(place)
            after = sum(counts.count(0) for counts in study.trials().values())
            assert after == max(0, idle - 1)
        elif running:
            study.ray.remove_placement_group(running.pop(step % len(running)))
