"""A study with a time budget of hand-written reports, with a clock that is set."""

from __future__ import annotations

from pathlib import Path

from optuna.storages import InMemoryStorage

from tuner.driver.searcher import build_searcher
from tuner.search.deadline import SLACK, TimePlan
from tuner.search.policies import Action, PlannedPolicy, build_policy, planned
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.study import Study

SPEC = """
metric: {metric}
config: {{max_epochs: 20, scheduler: {scheduler}}}
space: {{learning_rate: {{loguniform: [1e-5, 1e-2]}}}}
search: {{num_trials: {trials}, searcher: random}}
policy: {{name: asha, grace_period: 4, reduction_factor: 2, promotion: {promotion}}}
"""
SECOND = 1 / SLACK
"""Seconds of an epoch that is planned with one second."""


class AtOnce(TimePlan):
    """A plan of workers that start at once."""

    @property
    def startup(self) -> float:
        return 0.0

    @property
    def left(self) -> float:
        return self._seconds_left()


class Planned:
    """A study of hand-written reports, with a clock that is set."""

    def __init__(
        self,
        scheduler: str = "wsd",
        *,
        trials: int = 8,
        promotion: bool = True,
        workers: int = 1,
        record: StudyRecord | None = None,
        total: float = 0.0,
        alone: tuple[int, float] | None = None,
        metric: str = "val_dice",
    ) -> None:
        text = SPEC.format(
            scheduler=scheduler, trials=trials, promotion=str(promotion).lower(), metric=metric
        )
        self.spec: StudySpec = parse_spec(text, source="s.yaml")
        self.record = record or StudyRecord(Path("s"), self.spec.space, "max", InMemoryStorage())
        # without a total the end is nobody's alone
        self.left = total
        study = Study(self.record.folder, self.spec, self.record)
        self.plan = AtOnce.of(study, lambda: workers, lambda: self.left, alone)
        inner = build_policy(self.record, self.spec)
        self.policy: PlannedPolicy = planned(inner, self.record, self.spec, self.plan)
        self.searcher = build_searcher(study, self.policy)

    def trial(self, *scores: float, paused: bool = True, seconds: float = SECOND) -> int:
        """A trial that was trained so long, and whose scores nobody judged."""
        values = {"learning_rate": 1e-3 + len(self.record.entries) * 1e-5}
        number = self.record.propose(values, "test").number
        for epoch, score in enumerate(scores, 1):
            self.record.report(number, epoch, score, {}, seconds)
        if paused:
            self.record.pause(number, "it waits")
        return number

    def report(self, number: int, score: float, left: float) -> tuple[Action, str]:
        """What is decided on one more epoch of a trial, with so much time left."""
        self.left = left
        epoch = self.record.entries[number].epochs + 1
        self.record.report(number, epoch, score, {}, SECOND)
        decision = self.policy.judge(number, epoch)
        if decision.action is Action.PAUSE:
            self.record.pause(number, decision.reason)
        return decision.action, decision.reason
