from __future__ import annotations

from pathlib import Path

import pytest
from ray import cloudpickle
from ray.exceptions import OutOfMemoryError
from trial_messages import ray_trial

from tuner.driver.lost_workers import LostWorkers
from tuner.driver.scheduler import RecordScheduler
from tuner.search.policies import Policy
from tuner.spec.load import parse_spec
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState
from tuner.trial.failures import WorkerLostError

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
