from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from ray import cloudpickle
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from trial_messages import ray_trial

from tuner.driver import placement
from tuner.driver.placement import FitNodes
from tuner.driver.scheduler import WORKER_STARTS_WITHIN, RecordScheduler
from tuner.search.policies import Policy
from tuner.spec.domains import Uniform
from tuner.spec.space import Space
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState

SICK, OTHER = "a" * 56, "b" * 56


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What Ray is asked for: bundles, and the labels of their node."""
    calls: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        placement,
        "placement_group",
        lambda bundles, strategy, bundle_label_selector: calls.append(
            (bundles, bundle_label_selector)
        ),
    )
    return calls


def test_nodes_are_avoided_as_they_are_when_a_place_is_asked_for(
    asked: list[tuple[Any, Any]],
) -> None:
    avoided: set[str] = set()
    fit = FitNodes(2, 3, lambda: frozenset(avoided))
    fit.to_placement_group()
    avoided |= {OTHER, SICK}
    fit.to_placement_group()
    bundles = [{"CPU": 2.0, "GPU": 3.0}]
    selector = [{"ray.io/node-id": f"!in({SICK}, {OTHER})"}]
    assert asked == [(bundles, None), (bundles, selector)]


def test_trials_are_alike_to_tune_whatever_is_avoided() -> None:
    """It gives the process of one to the next, and asks for one again where that differs."""
    one, two = (
        FitNodes(1, 0, lambda nodes=nodes: nodes) for nodes in (frozenset({SICK}), frozenset())
    )  # type: ignore[misc]
    assert one == two
    assert hash(one) == hash(two)
    assert one != FitNodes(2, 0, frozenset)
    assert isinstance(one, PlacementGroupFactory)
    copy = cloudpickle.loads(cloudpickle.dumps(one))
    assert (copy, copy.avoided) == (one, frozenset())


def test_a_trial_that_waits_for_nodes_that_are_gone_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was asked of Ray leaves out a node; when it is fit again, Ray must be asked anew."""
    space = Space({"x": Uniform(0, 1)})
    record = StudyRecord(Path("memory"), space, "max", InMemoryStorage())
    record.propose({"x": 0.5}, "test")
    avoided = {"w1"}
    stopped: list[Any] = []
    scheduler = RecordScheduler(
        record, Policy(record), placement=FitNodes(1, 0, lambda: frozenset(avoided))
    )
    waiting = ray_trial(0, status=Trial.PENDING, update_resources=lambda placement: None)
    scheduler.on_trial_add(None, waiting)  # type: ignore[arg-type]
    controller: Any = SimpleNamespace(stop_trial=stopped.append)
    later = time.monotonic() + 2 * WORKER_STARTS_WITHIN
    monkeypatch.setattr("tuner.driver.scheduler.time.monotonic", lambda: later)
    assert scheduler.choose_trial_to_run(controller) is waiting
    avoided.add("w2")
    assert scheduler.choose_trial_to_run(controller) is waiting
    avoided.remove("w1")
    assert scheduler.choose_trial_to_run(controller) is None
    assert stopped == [waiting]
    assert record.entries[0].state is TrialState.INTERRUPTED
