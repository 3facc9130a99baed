from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError
from ray.tune.experiment import Trial
from trial_messages import ray_trial

from tuner.driver import lost_workers
from tuner.driver.lost_workers import LostWorkers
from tuner.driver.memory_places import MemoryPlaces
from tuner.driver.nodes import Nodes
from tuner.driver.resources import Node
from tuner.driver.scheduler import RecordScheduler
from tuner.search.policies import Policy
from tuner.spec.load import parse_spec
from tuner.spec.settings import ResourceSettings
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import MEMORY, TrialState
from tuner.trial.failures import (
    NodeLostError,
    TrialHungError,
    WorkerLostError,
    WorkerOutOfMemoryError,
)
from tuner.trial.memory import MemoryUse
from tuner.trial.messages import EpochReport, TrialRequest
from tuner.trial.node_faults import NodeUnfitError

MESSAGE = "1 worker(s) were killed due to the node running low on memory.\nTop 10 users: ..."


def test_the_trial_is_recorded_as_out_of_memory(tmp_path: Path) -> None:
    spec = parse_spec("space: {learning_rate: {uniform: [0.1, 1]}}", source="s.yaml")
    record = StudyRecord(tmp_path, spec.space, "max")
    record.propose({"learning_rate": 0.5}, "test")
    error_file = tmp_path / "error.pkl"
    error_file.write_bytes(cloudpickle.dumps(OutOfMemoryError(MESSAGE)))
    trial = ray_trial(0, pickled_error_file=str(error_file))
    RecordScheduler(record, Policy(record)).on_trial_error(None, trial)  # type: ignore[arg-type]
    entry = record.entries[0]
    assert entry.state is TrialState.OUT_OF_MEMORY
    assert "Ray ended its worker to free memory: 1 worker(s) were killed" in entry.reason


def tune_trial() -> Any:
    """A trial as Tune has it: it can be a key of a dict."""
    return Trial("stub", stub=True, config=TrialRequest(0, {}).to_ray())


class JoinedCluster:
    """A cluster of two nodes, one of which a trial may run on."""

    joined = True

    def __init__(self) -> None:
        self.nodes = Nodes(ResourceSettings(cpu=1, gpu=0), 4, "head")
        self.nodes.see([Node("10.0.0.2", 2, 0, 2**34, "w2-id", "w2")], 0)
        self.nodes.plan()
        self.memory = MemoryPlaces()
        self.failures: list[tuple[str | None, str]] = []

    def failed(self, node_id: str | None, reason: str) -> None:
        self.failures.append((node_id, reason))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study with one trial, none of whose failures may be tried again."""
    text = "space: {learning_rate: {uniform: [0.1, 1]}}\nfailures: {max_failures: 0}"
    spec = parse_spec(text, source="s.yaml")
    record = StudyRecord(tmp_path, spec.space, "max")
    record.propose({"learning_rate": 0.5}, "test")
    return Study(tmp_path, spec, record)


def after_loss(
    study: Study,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    *,
    node_lives: bool = True,
    gone: bool = False,
    cluster: JoinedCluster | None = None,
) -> tuple[TrialState, str]:
    """How the trial stands after its worker on node w2 was lost."""
    monkeypatch.setattr(lost_workers, "node_of", lambda trial: "w2-id")
    joined: Any = cluster or JoinedCluster()
    lost = LostWorkers(study, lambda: gone, joined, lambda node_id: node_lives)
    lost.on_trial_start(0, [], tune_trial())
    lost.lost(0, error)
    entry = study.record.entries[0]
    return entry.state, entry.reason


@pytest.mark.parametrize(
    ("error", "node_lives", "reason"),
    [
        (NodeLostError("it was preempted"), True, "it was preempted"),
        (NodeLostError("the connection to it was lost"), True, "the connection to it was lost"),
        (WorkerLostError("it died unexpectedly"), False, "it died unexpectedly"),
    ],
)
def test_a_trial_whose_node_is_lost_goes_on_elsewhere(
    study: Study, monkeypatch: pytest.MonkeyPatch, error: Exception, node_lives: bool, reason: str
) -> None:
    assert after_loss(study, monkeypatch, error, node_lives=node_lives) == (
        TrialState.INTERRUPTED,
        f"its node w2 (10.0.0.2) was lost: {reason}; it goes on elsewhere",
    )
    assert study.record.entries[0].failures == 0
    assert study.record.halted is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("node w2 has storage that fails", "node w2 has storage that fails"),
        ("other programs hold 12 GB", "node w2 (10.0.0.2): other programs hold 12 GB"),
    ],
)
def test_a_trial_on_an_unfit_node_goes_on_elsewhere_and_the_node_is_left_out(
    study: Study, monkeypatch: pytest.MonkeyPatch, words: str, told: str
) -> None:
    cluster = JoinedCluster()
    error = NodeUnfitError(words)
    state, reason = after_loss(study, monkeypatch, error, cluster=cluster)
    assert state is TrialState.INTERRUPTED
    assert reason == f"{told}; it goes on elsewhere"
    assert cluster.failures == [("w2-id", told)]
    assert study.record.halted is None


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (WorkerLostError("killed by signal 9"), TrialState.FAILED),
        (WorkerOutOfMemoryError("it took all memory"), TrialState.OUT_OF_MEMORY),
        (TrialHungError("it hung"), TrialState.FAILED),
    ],
)
def test_a_worker_that_dies_on_a_node_that_lives_is_a_failure_of_its_trial(
    study: Study, monkeypatch: pytest.MonkeyPatch, error: Exception, state: TrialState
) -> None:
    found, reason = after_loss(study, monkeypatch, error)
    assert found is state
    assert ("on node w2 (10.0.0.2)" in reason) is isinstance(error, WorkerLostError)


def test_a_trial_that_had_to_share_its_nodes_memory_goes_on_when_there_is_room(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = JoinedCluster()
    study.record.propose({"learning_rate": 0.5}, "test")
    cluster.memory.follow(study.record)
    for number in (0, 1):
        cluster.memory.begins(number, MemoryUse("w2-id", 0, 0, 1000, 9000))
    error = WorkerOutOfMemoryError("it took all memory")
    assert after_loss(study, monkeypatch, error, cluster=cluster) == (
        TrialState.INTERRUPTED,
        "too many trials at once for the memory of their node: it took all memory; it goes on when "
        "there is room",
    )
    assert study.record.entries[0].notes[MEMORY] == 4000
    assert study.record.entries[0].failures == 0
    # by itself it is too large
    cluster.memory.ends(1)
    state, _ = after_loss(study, monkeypatch, error, cluster=cluster)
    assert state is TrialState.OUT_OF_MEMORY


def test_when_the_cluster_is_gone_its_nodes_are_not_asked(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_loss(study, monkeypatch, NodeLostError("it left the cluster"), gone=True)
    assert study.record.halted == "the Ray cluster went away"


def test_a_node_on_which_an_epoch_is_finished_works(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_workers, "node_of", lambda trial: "w2-id")
    cluster: Any = JoinedCluster()
    rests = []
    for now in (0.0, 1000.0):
        cluster.nodes.failed("w2-id", "its disk is full", now)
        rests.append(bool(cluster.nodes.due(now)))
        cluster.nodes.due(now + 500.0)
        cluster.nodes.probed("w2-id", [], now + 500.0)
    lost = LostWorkers(study, lambda: False, cluster)
    lost.on_trial_start(0, [], tune_trial())
    lost.on_trial_result(0, [], tune_trial(), EpochReport(1, 0.5, {}, 1.0).to_ray())
    cluster.nodes.failed("w2-id", "its disk is full", 2000.0)
    rests.append(bool(cluster.nodes.due(2000.0)))
    # probed at once, after a rest, and at once again
    assert rests == [True, False, True]


@pytest.mark.parametrize("gone", [False, True])
def test_a_trial_of_a_lost_cluster_is_interrupted_and_others_are_tried_again(
    tmp_path: Path, gone: bool
) -> None:
    spec = parse_spec("space: {learning_rate: {uniform: [0.1, 1]}}", source="s.yaml")
    record = StudyRecord(tmp_path, spec.space, "max")
    record.propose({"learning_rate": 0.5}, "test")
    study = Study(tmp_path, spec, record)
    LostWorkers(study, lambda: gone).lost(0, WorkerLostError("it was killed"))
    entry = StudyRecord(tmp_path, spec.space, "max").entries[0]
    assert entry.state is TrialState.INTERRUPTED
    assert entry.failures == (0 if gone else 1)
    assert ("its worker process died: it was killed" in entry.reason) is not gone
    assert record.halted == ("the Ray cluster went away" if gone else None)
