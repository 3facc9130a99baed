"""Ray Tune searcher of a confirmation: proposes the trials that are still missing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tuner.driver.searcher import RecordSearcher
from tuner.search.policies import Policy
from tuner.study.confirmation import SEED, Candidate, missing

if TYPE_CHECKING:
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry


class ConfirmSearcher(RecordSearcher):
    """Gives each candidate with each seed once, after trials that were cut off.

    Args:
        confirmation: The confirmation.
        chosen: The candidates.
        places: How many trials may run at once just now.
    """

    def __init__(
        self,
        confirmation: Study,
        chosen: list[Candidate],
        places: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        policy = Policy(confirmation.record)
        super().__init__(confirmation, lambda view: None, policy, places=places)
        self._chosen = chosen

    def _values(self, entry: TrialEntry) -> dict[str, Any]:
        return {**super()._values(entry), "seed": entry.notes[SEED]}

    def _new(self) -> TrialEntry | None:
        left = missing(self._study, self._chosen)
        if not left:
            return None
        candidate, seed = left[0]
        with self._record.transaction():
            entry = self._record.propose(candidate.values, f"confirm {candidate.name}")
            self._record.note(entry.number, SEED, seed)
        return entry
