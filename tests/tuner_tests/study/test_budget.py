"""Budgets of epochs and GPU-hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.driver.stopping import BudgetStopper
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.budget import budget_lines, gpu_hours_spent, spent_budget
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.trial.messages import EpochReport


def spec_of(search: str) -> StudySpec:
    return parse_spec(
        f"config: {{max_epochs: 9}}\nspace: {{learning_rate: {{loguniform: [1e-5, 1e-2]}}}}\n"
        f"search: {search}\n",
        source="space.yaml",
    )


def report(epoch: int, gpus: float) -> EpochReport:
    return EpochReport(epoch, 0.5, {}, 900.0, gpus)


def test_epochs_count_over_all_trials_and_runs(tmp_path: Path) -> None:
    spec = spec_of("{epoch_budget: 4}")
    record = StudyRecord(tmp_path, spec.space, "max")
    for number in range(2):
        record.propose({"learning_rate": 1e-3}, "test")
        report(1, 0).add_to(record, number)
    record.close_running("the driver was killed")
    record.close()
    again = StudyRecord(tmp_path, spec.space, "max")
    report(2, 0).add_to(again, 0)
    assert not BudgetStopper(Study(again.folder, spec, again)).stop_all()
    report(2, 0).add_to(again, 1)
    assert BudgetStopper(Study(again.folder, spec, again)).stop_all()
    assert spent_budget(Study(again.folder, spec, again)) == "the budget of 4 epochs is spent"
    assert spent_budget(Study(again.folder, spec_of("{epoch_budget: 5}"), again)) is None
    assert budget_lines(Study(again.folder, spec_of("{epoch_budget: 5}"), again)) == [
        "4 of 5 epochs"
    ]


def test_half_a_gpu_counts_half(tmp_path: Path) -> None:
    spec = spec_of("{gpu_hours: 0.375}")
    record = StudyRecord(tmp_path, spec.space, "max")
    record.propose({"learning_rate": 1e-3}, "test")
    report(1, 0.5).add_to(record, 0)
    # an epoch that is reported again after a break does not count again
    report(1, 0.5).add_to(record, 0)
    assert gpu_hours_spent(record.entries.values()) == 0.125
    assert spent_budget(Study(record.folder, spec, record)) is None
    record.close()
    again = StudyRecord(tmp_path, spec.space, "max")
    report(2, 1).add_to(again, 0)
    assert gpu_hours_spent(again.entries.values()) == 0.375
    assert (
        spent_budget(Study(again.folder, spec, again)) == "the budget of 0.375 GPU-hours is spent"
    )


@pytest.mark.parametrize("search", ["{}", "{num_trials: 3, time_budget: 1h}"])
def test_without_them_nothing_is_spent(tmp_path: Path, search: str) -> None:
    spec = spec_of(search)
    record = StudyRecord(tmp_path, spec.space, "max")
    record.propose({"learning_rate": 1e-3}, "test")
    report(1, 1).add_to(record, 0)
    assert spent_budget(Study(record.folder, spec, record)) is None
    assert budget_lines(Study(record.folder, spec, record)) == []
