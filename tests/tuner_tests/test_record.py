from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from tuner.errors import StudyError
from tuner.record import StudyRecord, TrialState, epochs_spent
from tuner.searchers import report_result
from tuner.space import Space
from tuner.spec import parse_spec

SPACE = """
config: {max_epochs: 9}
space:
  learning_rate: {loguniform: [1e-5, 1e-2]}
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
  class_weights: {choice: [uniform, [1, 2, 5]]}
  train_batch_size: {randint: [1, 4]}
  foreground_fraction: {quniform: [0.25, 0.75, 0.25]}
"""


@pytest.fixture
def space() -> Space:
    return parse_spec(SPACE, source="space.yaml").space


@pytest.fixture
def reopen(tmp_path: Path, space: Space) -> Callable[[], StudyRecord]:
    return lambda: StudyRecord(tmp_path, space, "max")


def result(epoch: int, score: float, **more: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "score": score,
        "metrics/val_dice": score,
        "epoch_seconds": 2.0,
        **more,
    }


def propose(record: StudyRecord) -> None:
    values = record.space.sample(random.Random(len(record.entries)))
    record.propose(values, "test", generation=2)


def test_a_reopened_record_knows_everything(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    for number in range(4):
        propose(record)
        record.report(number, 1, 0.5 + number / 10, {"val_dice": 0.5}, 3.0)
    record.report(1, 2, 0.9, {"val_dice": 0.9}, 3.0)
    record.finish(0, TrialState.STOPPED, "weak")
    record.finish(1, TrialState.COMPLETED, "trained 2 epochs")
    record.finish(2, TrialState.DIVERGED, "loss is nan")
    record.interrupt_running("interrupted by the user")
    propose(record)
    record.report(4, 1, 0.2, {}, 3.0)
    record.pause(4, "at rung 1")
    again = reopen()
    assert again.entries == record.entries
    assert again.entries[3].state is TrialState.INTERRUPTED
    assert [entry.number for entry in again.unfinished()] == [3]
    best = again.best()
    assert best is not None
    assert (best.number, best.best("max"), best.seconds) == (1, (2, 0.9), 6.0)
    assert again.entries[4].state is TrialState.PAUSED
    assert again.entries[4].generation == 2
    assert again.scores_at(1) == {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.2}
    assert epochs_spent(again.entries.values()) == 6


def test_every_kind_of_value_comes_back_as_it_was(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    for _ in range(20):
        propose(record)
    assert {type(v["class_weights"]) for v in (e.values for e in record.entries.values())} == {
        str,
        list,
    }
    assert reopen().entries == record.entries


def test_trials_are_told_to_optuna_as_what_they_are(
    reopen: Callable[[], StudyRecord], tmp_path: Path
) -> None:
    record = reopen()
    endings = [
        TrialState.COMPLETED,
        TrialState.STOPPED,
        TrialState.DIVERGED,
        TrialState.OUT_OF_MEMORY,
        TrialState.FAILED,
    ]
    for number, state in enumerate(endings):
        propose(record)
        record.report(number, 1, 0.4, {}, 1.0)
        record.report(number, 2, 0.3, {}, 1.0)
        record.finish(number, state, "why")
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE",
        "PRUNED",
        "FAIL",
        "FAIL",
        "FAIL",
    ]
    assert study.trials[0].value == 0.4
    assert study.trials[1].intermediate_values == {1: 0.4, 2: 0.3}


def test_an_epoch_is_counted_once(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    propose(record)
    assert report_result(record, 0, result(1, 0.5))
    assert not report_result(record, 0, result(1, 0.7))
    assert not report_result(record, 0, {"done": True})
    assert record.entries[0].scores == {1: 0.5}
    assert record.entries[0].seconds == 2.0


def test_nan_never_wins_and_the_first_ending_stands(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    for number, score in enumerate((math.nan, 0.1, math.inf)):
        propose(record)
        record.report(number, 1, score, {}, 1.0)
    best = record.best()
    assert best is None or best.number == 1
    record.finish(1, TrialState.COMPLETED, "done")
    record.finish(1, TrialState.FAILED, "late")
    assert record.entries[1].state is TrialState.COMPLETED
    record.finish(0, TrialState.COMPLETED, "done")
    assert record.entries[0].state is TrialState.FAILED
    assert "without reporting a score" in record.entries[0].reason


def test_a_moved_study_folder_keeps_its_trials(tmp_path: Path, space: Space) -> None:
    before = tmp_path / "before"
    before.mkdir()
    record = StudyRecord(before, space, "max")
    propose(record)
    del record
    shutil.move(before, tmp_path / "after")
    assert len(StudyRecord(tmp_path / "after", space, "max").entries) == 1


def test_a_damaged_record_is_named(tmp_path: Path, space: Space) -> None:
    (tmp_path / "optuna.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StudyError, match=r"optuna\.db cannot be read"):
        StudyRecord(tmp_path, space, "max")
