from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, OwnerDiedError, RayActorError

from tuner.run.failures import WorkerLostError, WorkerOutOfMemoryError
from tuner.run.scheduler import RecordScheduler
from tuner.run.worker_death import WorkerDeaths, lost_worker_ends_one_trial
from tuner.search.policies import Policy
from tuner.spec.load import parse_spec
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState

MESSAGE = "1 worker(s) were killed due to the node running low on memory.\nTop 10 users: ..."


def fail_a_task(exception: Exception) -> list[Exception]:
    """What the trial is told when its worker's task fails with `exception`."""
    told: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda actor, error: told.append(error))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=None)
    manager: Any = SimpleNamespace(
        _failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None
    )
    RayActorManager._actor_task_failed(manager, tracked_actor_task=task, exception=exception)
    return told


def test_a_worker_ended_for_memory_ends_its_trial_alone() -> None:
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail_a_task(OutOfMemoryError(MESSAGE))  # Tune by itself ends the study
    with lost_worker_ends_one_trial():
        (error,) = fail_a_task(OutOfMemoryError(MESSAGE))
    assert isinstance(error, RayActorError)
    assert str(cloudpickle.loads(cloudpickle.dumps(error))) == str(error)
    with pytest.raises(RuntimeError, match="unexpected exception"):
        fail_a_task(OutOfMemoryError(MESSAGE))


def test_the_trial_is_recorded_as_out_of_memory(tmp_path: Path) -> None:
    spec = parse_spec("space: {learning_rate: {uniform: [0.1, 1]}}", source="s.yaml")
    record = StudyRecord(tmp_path, spec.space, "max")
    record.propose({"learning_rate": 0.5}, "test")
    error_file = tmp_path / "error.pkl"
    error_file.write_bytes(cloudpickle.dumps(WorkerOutOfMemoryError(MESSAGE.splitlines()[0])))
    trial = SimpleNamespace(config={"trial_number": 0}, pickled_error_file=str(error_file))
    RecordScheduler(record, Policy(record)).on_trial_error(None, trial)  # type: ignore[arg-type]
    entry = record.entries[0]
    assert entry.state is TrialState.OUT_OF_MEMORY
    assert "Ray ended its worker to free memory" in entry.reason


@pytest.mark.parametrize("gone", [False, True])
def test_a_trial_of_a_lost_cluster_is_interrupted_and_others_are_tried_again(
    tmp_path: Path, gone: bool
) -> None:
    spec = parse_spec("space: {learning_rate: {uniform: [0.1, 1]}}", source="s.yaml")
    record = StudyRecord(tmp_path, spec.space, "max")
    record.propose({"learning_rate": 0.5}, "test")
    WorkerDeaths(record, spec, lambda: gone).died(0, TrialState.FAILED, "its process died")
    entry = StudyRecord(tmp_path, spec.space, "max").entries[0]
    assert entry.state is TrialState.INTERRUPTED
    assert entry.failures == (0 if gone else 1)
    assert record.halted == ("the Ray cluster went away" if gone else None)


def test_objects_lost_with_a_node_end_one_trial_alone() -> None:
    with lost_worker_ends_one_trial():
        (error,) = fail_a_task(OwnerDiedError("0" * 56, None, ""))
    assert isinstance(error, WorkerLostError)
