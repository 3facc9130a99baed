"""Tune's view of a confirmation: what of it is still to train."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuner.run.searcher import RecordSearcher
from tuner.search.policies import Policy
from tuner.study.confirmation import SEED, Candidate, missing

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.record import StudyRecord
    from tuner.study.trial_entry import TrialEntry


class ConfirmSearcher(RecordSearcher):
    """Gives each candidate with each seed once, after trials that were cut off.

    Args:
        record: The record of the confirmation.
        spec: The study's spec.
        chosen: The candidates.
    """

    def __init__(self, record: StudyRecord, spec: StudySpec, chosen: list[Candidate]) -> None:
        super().__init__(record, spec, lambda view: None, Policy(record))
        self._chosen = chosen

    def _values(self, entry: TrialEntry) -> dict[str, Any]:
        return {**super()._values(entry), "seed": entry.notes[SEED]}

    def _new(self) -> TrialEntry | None:
        left = missing(self._record, self._chosen, self._spec)
        if not left:
            return None
        candidate, seed = left[0]
        with self._record.transaction():
            entry = self._record.propose(candidate.values, f"confirm {candidate.name}")
            self._record.note(entry.number, SEED, seed)
        return entry
