"""Simulated studies with a time budget, whose trials score higher when their rate has come down.

The score of a problem of `problems` is lowered by `GAP` of its range times the factor of the
learning-rate schedule in that epoch: a trial that is cut off at its full rate has lost all of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from optuna.storages import InMemoryStorage
from simulator import Simulator

from training.config import ModelTrainingConfig
from tuner.driver.scheduler import RecordScheduler
from tuner.driver.searcher import build_searcher
from tuner.search.deadline import TimePlan
from tuner.search.policies import build_policy, planned
from tuner.spec.load import parse_spec
from tuner.spec.policies import AshaSettings
from tuner.spec.settings import SearchSettings
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialEntry

GAP = 0.1
"""Share of the best score that is missing at the full rate; 2 to 5 points of Dice in real ones."""


def rate(config: ModelTrainingConfig, epoch: int) -> float:
    """The factor of the learning rate at the end of an epoch, from 1."""
    if config.scheduler == "poly":
        return float(max(0.0, 1 - epoch / config.max_epochs) ** config.poly_power)
    stable = config.stable_epochs
    share = (epoch - stable) / (config.max_epochs - stable)
    return 1 - math.sqrt(min(1.0, max(0.0, share)))


@cache
def _config(scheduler: str, max_epochs: int) -> ModelTrainingConfig:
    return ModelTrainingConfig.from_flat({"scheduler": scheduler, "max_epochs": max_epochs})


class Scheduled:
    """A problem whose trials follow a learning-rate schedule.

    Args:
        problem: What is trained.
        scheduler: `wsd` or `poly`.
    """

    def __init__(self, problem: Any, scheduler: str) -> None:
        self._problem = problem
        self._scheduler = scheduler
        self.epochs: int = problem.epochs
        self.best: float = problem.best
        self.fixed: Mapping[str, Any] = problem.fixed

    def space(self) -> Any:
        """What is searched."""
        return self._problem.space()

    def config(self, values: Mapping[str, Any]) -> ModelTrainingConfig:
        """The config of a trial, as far as its schedule goes."""
        return _config(self._scheduler, values.get("max_epochs", self.epochs))

    def true(self, values: Mapping[str, Any], epoch: int) -> float:
        """The score without noise."""
        return float(self._problem.true(self._plain(values), epoch)) - self._missing(values, epoch)

    def observed(self, values: Mapping[str, Any], epoch: int, seed: int) -> float:
        """The score as a trial reports it."""
        score = float(self._problem.observed(self._plain(values), epoch, seed))
        return score - self._missing(values, epoch)

    def seconds(self, values: Mapping[str, Any]) -> float:
        """Seconds of an epoch."""
        return float(self._problem.seconds(values))

    def _missing(self, values: Mapping[str, Any], epoch: int) -> float:
        return GAP * self.best * rate(self.config(values), epoch)

    def _plain(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name != "max_epochs"}


def simulate_deadline(
    problem: Scheduled,
    *,
    planned_end: bool,
    promotion: bool,
    trials: int,
    workers: int,
    full_trainings: float,
    seed: int,
) -> dict[str, Any]:
    """One study with time for so many full trainings; what it has at the deadline.

    Args:
        problem: What is searched.
        planned_end: Whether the end is planned.
        promotion: The variant of ASHA.
        trials: Trials of the study.
        workers: Trials at once.
        full_trainings: The time budget, in trainings to the last epoch.
        seed: Seed of proposals and noise.
    """
    base = parse_spec("space: {learning_rate: {uniform: [0.1, 1]}}", source="simulated.yaml")
    deadline = full_trainings * problem.epochs / workers
    spec = base.model_copy(
        update={
            "config": {"max_epochs": problem.epochs},
            "space": problem.space(),
            "search": SearchSettings(
                searcher="tpe", num_trials=trials, seed=seed, time_budget=deadline
            ),
            "policy": AshaSettings(grace_period=1, reduction_factor=3, promotion=promotion),
        }
    )
    record = StudyRecord(Path("simulated"), spec.space, "max", InMemoryStorage())
    policy = build_policy(record, spec)
    clock: list[Simulator] = []
    if planned_end:
        plan = TimePlan(
            record, problem.config, rungs=spec.rungs(), trials=trials, workers=lambda: workers,
            seconds_left=lambda: deadline - (clock[0].now if clock else 0.0),
        )  # fmt: skip
        policy = planned(policy, record, spec, plan)
    searcher = build_searcher(Study(record.folder, spec, record), policy)
    simulator = Simulator(
        problem, searcher, RecordScheduler(record, policy), workers=workers, seed=seed,
        budget=10**9, deadline=deadline,
    )  # fmt: skip
    clock.append(simulator)
    outcome = simulator.run()
    winner = record.best()
    return {
        "score": 0.0 if winner is None else _true(problem, winner) / problem.best,
        "annealed": winner is not None and _annealed(problem, winner),
        "cut": outcome.cut,
        "tried": outcome.trials,
        "idle": outcome.idle / (outcome.seconds * workers),
        "unused": 1 - outcome.seconds / deadline,
    }


def _best(entry: TrialEntry) -> tuple[dict[str, Any], int]:
    best = entry.best("max")
    assert best is not None
    return entry.trained_values_at(best[0]), best[0]


def _true(problem: Scheduled, entry: TrialEntry) -> float:
    return problem.true(*_best(entry))


def _annealed(problem: Scheduled, entry: TrialEntry) -> bool:
    values, epoch = _best(entry)
    return rate(problem.config(values), epoch) < 0.25
