"""The last part of a study whose time is short: its best trials alone train on to their end."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tuner.spec.spec_values import FINALE_SHARE
from tuner.study.trial_entry import FINALIST, TrialState, sign_of

if TYPE_CHECKING:
    from tuner.search.deadline import TimePlan
    from tuner.study.record import StudyRecord
    from tuner.study.trial_entry import TrialEntry


class Finale:
    """Which trials train on alone, from when on.

    It begins when the best trial, with what is free then, needs the time that is left to come to
    its last epoch; and no sooner than `FINALE_SHARE` of the time before the end. A study that has
    trained a better one to its end by then needs none.

    Args:
        record: The study's record, which keeps who was chosen.
        plan: What fits into the time that is left.
    """

    def __init__(self, record: StudyRecord, plan: TimePlan) -> None:
        self._record = record
        self._plan = plan

    def finalists(self, next_seconds: float = 0.0) -> list[TrialEntry]:
        """The trials that train on alone, the best first; none before it begins or when it is over.

        Args:
            next_seconds: How long a worker that is free would be busy with what is next: the last
                part begins before or after that, whichever is nearer.
        """
        going_on = self._record.with_state(
            TrialState.RUNNING, TrialState.PAUSED, TrialState.INTERRUPTED
        )
        chosen = [entry for entry in going_on if entry.is_finalist]
        if chosen:
            return best_first(chosen, self._record.mode)
        return self._begin(going_on, next_seconds)

    def _begin(self, going_on: list[TrialEntry], next_seconds: float) -> list[TrialEntry]:
        plan = self._plan
        left = plan.left - next_seconds / 2
        if left > FINALE_SHARE * plan.total:
            return []
        best = self._record.best()
        if best is None or best.state.finished or best.ends_at is not None:
            return []
        if not plan.is_short() or not plan.can_end(best):
            return []
        if left > plan.seconds_alone(best):
            return []
        able = (entry for entry in going_on if entry.scores and plan.can_end(entry))
        chosen = best_first((e for e in able if e.ends_at is None), self._record.mode)
        chosen = chosen[: max(1, plan.finalists())]
        with self._record.transaction():
            for entry in chosen:
                self._record.note(entry.number, FINALIST, True)
                self._record.decide(
                    entry.number,
                    "finalist",
                    f"trains on to the end, {_place(len(chosen))} of the study so far: "
                    f"{plan.left:.0f} s of the time budget are left",
                )
        return chosen


def best_first(entries: Iterable[TrialEntry], mode: str) -> list[TrialEntry]:
    """Trials by their best score so far; those without one come last."""
    return sorted(entries, key=lambda entry: (-best_score(entry, mode), entry.number))


def best_score(entry: TrialEntry, mode: str) -> float:
    """Best score, greater is better; minus infinity for none."""
    best = entry.best(mode)
    return -math.inf if best is None else sign_of(mode) * best[1]


def _place(chosen: int) -> str:
    return "the best" if chosen == 1 else f"one of the best {chosen}"
