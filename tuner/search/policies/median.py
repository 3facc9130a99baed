"""Median stopping, as in Vizier (Golovin et al., 2017)."""

from __future__ import annotations

import math
from statistics import median
from typing import TYPE_CHECKING

from tuner.search.policies.policy import GO_ON, Action, Decision, Policy, distinct_texts

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord


class MedianStopping(Policy):
    """Stops a trial whose best score is below the median of the others' averages so far.

    Epochs whose score is not defined are left out of both; a trial that has no other goes on.

    Args:
        record: The study's record.
        grace_period: Epochs that every trial trains.
        min_trials: Trials that must have come as far before any is stopped.
    """

    def __init__(self, record: StudyRecord, grace_period: int, min_trials: int = 3) -> None:
        super().__init__(record)
        self._grace_period = grace_period
        self._min_trials = min_trials

    def judge(self, number: int, epoch: int) -> Decision:
        """Compare the best score so far with the running averages of the other trials."""
        if epoch < self._grace_period:
            return GO_ON
        averages = [
            average
            for other, entry in self._record.entries.items()
            if other != number
            and entry.epochs >= epoch
            and math.isfinite(average := self._average(other, epoch))
        ]
        scores = self._scores(number, epoch)
        if not scores or len(averages) < self._min_trials or max(scores) >= median(averages):
            return GO_ON
        score, middle = distinct_texts(self._sign * max(scores), self._sign * median(averages))
        its_best = f"its best so far, {score}, is"
        return Decision(
            Action.STOP,
            f"by median stopping at epoch {epoch}: {its_best} worse than the median "
            f"{middle} of the averages of {len(averages)} other trials "
            "up to there",
        )

    def _average(self, number: int, epoch: int) -> float:
        scores = self._scores(number, epoch)
        return sum(scores) / len(scores) if scores else math.nan

    def _scores(self, number: int, epoch: int) -> list[float]:
        """Scores that are defined, up to an epoch."""
        scores = (self._score(number, past) for past in range(1, epoch + 1))
        return [score for score in scores if math.isfinite(score)]
