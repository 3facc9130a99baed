"""Limits on parameters and memory: counted, measured, told to the searcher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from optuna.storages import InMemoryStorage
from trial_messages import completed, epoch_result

from training.config import ModelTrainingConfig
from training.models import build_model
from tuner.driver.searcher import build_searcher
from tuner.search.policies import Policy
from tuner.search.searchers.optuna_searchers import copy_trials
from tuner.search.searchers.view import SearchView
from tuner.spec.load import parse_spec
from tuner.spec.settings import ConstraintSettings
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import VIOLATION, TrialState
from tuner.trial.costs import MemoryMeter, TrialCosts
from tuner.trial.failures import ConstraintBrokenError
from tuner.trial.messages import TrialEnd
from tuner.trial.networks import count_parameters

SMALL = ModelTrainingConfig(
    model_params={"embed_dim": 4, "depths": [1, 1], "num_heads": [1, 2]}, gpus=0
)


def test_parameters_are_those_of_the_network() -> None:
    real = sum(parameter.numel() for parameter in build_model(SMALL).parameters())
    assert count_parameters(SMALL) == real


def test_a_network_that_no_memory_holds_is_out_of_memory() -> None:
    params = {"embed_dim": 10**12, "depths": [1, 1], "num_heads": [1, 2]}
    with pytest.raises(MemoryError, match="can't allocate memory for the network"):
        count_parameters(ModelTrainingConfig(model_params=params))


def test_a_network_of_exactly_the_limit_may_train() -> None:
    number = count_parameters(SMALL)
    TrialCosts(SMALL, ConstraintSettings(max_parameters=number))
    with pytest.raises(ConstraintBrokenError, match=f"{number:,} parameters, above") as error:
        TrialCosts(SMALL, ConstraintSettings(max_parameters=number - 1))
    assert error.value.violation == pytest.approx(1 / (number - 1))


def test_the_peak_is_kept_when_memory_is_freed() -> None:
    size = 200 * 2**20
    meter = MemoryMeter(gpu=False)
    before = meter.peak()
    block = torch.ones(size // 4)
    held = meter.peak()
    del block
    assert held - before > 0.9 * size
    # the kernel counts pages in batches
    assert meter.peak() > 0.99 * held
    # what was freed is no part of the next trial's peak
    assert MemoryMeter(gpu=False).peak() < 0.5 * size


def test_memory_above_the_limit_ends_a_trial() -> None:
    costs = TrialCosts(SMALL, ConstraintSettings(max_memory="100MB"))  # type: ignore[arg-type]
    assert costs.measure()["parameters"] == count_parameters(SMALL)
    block = torch.ones(200 * 2**18)
    with pytest.raises(ConstraintBrokenError, match=r"2\d\d\.\dMB of memory, above max_memory=100"):
        costs.measure()
    del block


@pytest.mark.parametrize("name", ["tpe", "nsga2", "gp"])
def test_searchers_keep_to_what_is_feasible(name: str) -> None:
    """The better half of the domain is not feasible; random draws are 0.125 off on average."""
    spec = parse_spec(
        f"""
config: {{max_epochs: 9}}
space: {{foreground_fraction: {{uniform: [0, 1]}}, weight_decay: {{uniform: [0, 1]}}}}
search: {{searcher: {name}, num_trials: 64, default_first: false}}
policy: none
""",
        source="space.yaml",
    )
    record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
    searcher = build_searcher(Study(record.folder, spec, record), Policy(record))
    for number in range(64):
        proposal = searcher.suggest(str(number))
        assert isinstance(proposal, dict)
        share = proposal["foreground_fraction"]
        result = {**epoch_result(9, share), **completed()}
        if share > 0.5:
            end = TrialEnd(TrialState.INFEASIBLE, "too large", {VIOLATION: share - 0.5})
            result = end.to_ray()
        searcher.on_trial_complete(str(number), result)
    broken = record.with_state(TrialState.INFEASIBLE)
    assert all(entry.notes[VIOLATION] > 0 for entry in broken)
    late = [entry.values["foreground_fraction"] for entry in record.entries.values()][40:]
    assert np.mean(np.maximum(np.array(late) - 0.5, 0)) < 0.08
    best = record.best()
    assert best is not None
    assert best.values["foreground_fraction"] <= 0.5


def test_optuna_is_told_how_far_off_a_trial_is() -> None:
    spec = parse_spec("space: {learning_rate: {uniform: [0.001, 1]}}", source="space.yaml")
    record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
    for number, violation in enumerate([None, 0.25]):
        record.propose({"learning_rate": 0.1}, "")
        if violation is None:
            record.report(number, spec.max_epochs, 0.5, {}, 1.0)
            record.finish(number, TrialState.COMPLETED, "done")
        else:
            record.note(number, VIOLATION, violation)
            record.finish(number, TrialState.INFEASIBLE, "too large")
    study = optuna.create_study(direction="maximize")
    copy_trials(SearchView(record, 2, 0, {}, (spec.max_epochs,)), study, ())
    assert [list(trial.constraints.values()) for trial in study.trials] == [[0.0], [0.25]]
