"""A rung: the trials that were trained as long, in the order of their scores."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tuner.study.trial_entry import IN_PROGRESS, TrialState, sign_of

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord

Ranked = tuple[float, int]
"""A trial's score, greater is better, with its sign turned, and its number: the best come first,
and of equals the first trial."""


class Rung:
    """The trials of a record that have a finite score at an epoch.

    It holds nothing that is not in the record; it saves sorting all trials anew with each
    report, which is felt with thousands of them.

    Args:
        record: The study's record.
        epoch: Epoch of the rung.
        admits: Whether a trial is compared at it.
    """

    def __init__(self, record: StudyRecord, epoch: int, admits: Callable[[int], bool]) -> None:
        self.ranked: list[Ranked] = []
        self._record = record
        self._epoch = epoch
        self._admits = admits
        self._sign = sign_of(record.mode)
        self._scores = record.scores_at(epoch)
        self._later = record.scores_at(epoch + 1)
        self._num_scores = self._num_later = 0
        self._went_on: set[int] = set()
        self._waiting: list[Ranked] = []

    def __len__(self) -> int:
        """The number of trials at this rung."""
        return len(self.ranked)

    @property
    def is_stale(self) -> bool:
        """Whether the record was read anew since."""
        return self._scores is not self._record.scores_at(self._epoch)

    def follow(self) -> None:
        """Add the scores that were recorded since the last call."""
        for number in self._new(self._scores, self._num_scores):
            if self._belongs(number):
                ranked = (-self._sign * self._scores[number], number)
                insort(self.ranked, ranked)
                insort(self._waiting, ranked)
        self._num_scores = len(self._scores)
        self._went_on.update(filter(self._belongs, self._new(self._later, self._num_later)))
        self._num_later = len(self._later)

    def quantile(self, share: float) -> float:
        """The score that a share of the scores is below, between two of them by `numpy.quantile`.

        NaN for no scores.
        """
        if not self.ranked:
            return math.nan
        below, weight = divmod((len(self.ranked) - 1) * share, 1.0)
        # of the whole list, `numpy.quantile` looks at these two
        places = (-1 - int(below), -1 - min(int(below) + 1, len(self.ranked) - 1))
        return float(np.quantile([-self.ranked[place][0] for place in places], weight))

    def passed(self, also: int | None) -> int:
        """How many trials went on after this rung; `also`, which is being judged, did not yet."""
        goes_on = [
            entry.number
            for entry in self._record.with_state(*IN_PROGRESS)
            if entry.epochs == self._epoch and entry.number != also and self._belongs(entry.number)
        ]
        return len(self._went_on) + len(goes_on)

    def first_waiting(self, also: int | None) -> Ranked | None:
        """The best trial that is paused here; `also` counts as paused."""
        index = 0
        while index < len(self._waiting):
            ranked = self._waiting[index]
            number = ranked[1]
            state = self._record.entries[number].state
            if number in self._went_on or state.finished:
                del self._waiting[index]
            elif state is TrialState.PAUSED or number == also:
                return ranked
            else:
                index += 1
        return None

    def _belongs(self, number: int) -> bool:
        return math.isfinite(self._scores.get(number, math.nan)) and self._admits(number)

    @staticmethod
    def _new(scores: dict[int, float], known: int) -> list[int]:
        return list(islice(reversed(scores), len(scores) - known))[::-1]
