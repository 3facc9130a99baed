"""Tune's view of a searcher: what runs next, by the record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.search import Searcher

from tuner.run.failures import end_trial
from tuner.run.results import report_result
from tuner.search.one_thread import one_thread
from tuner.search.searchers import SEARCHERS
from tuner.search.searchers.view import Propose, SearchView
from tuner.spec.grid import first_points, grid_points
from tuner.study.trial_entry import TrialState
from tuner.study.warm_start import LearningRecord, best_point, read_imported
from tuner.trial.messages import INHERITS, TRIAL_NOTES, TRIAL_NUMBER

if TYPE_CHECKING:
    from tuner.spec.study_spec import StudySpec
    from tuner.study.record import StudyRecord
    from tuner.study.trial_entry import TrialEntry


class Promotes(Protocol):
    """What knows which paused trial goes on next."""

    def promote(self, *, last: bool = False) -> int | None:
        """Number of that trial, None if none does."""
        ...

    def never_promoted(self, number: int) -> str:
        """Why a paused trial ends when the study does."""
        ...


class RecordSearcher(Searcher):  # type: ignore[misc]
    """Says what runs next: trials that were cut off, then promoted ones, then new ones.

    What it proposes depends on the record alone: each proposal is drawn with the study's seed
    and the trial's number, so a resumed study goes on as it would have.

    Args:
        record: The study's record.
        spec: The study's spec.
        propose: What draws new trials.
        policy: What promotes paused trials.
        first: Points to try before the searcher is asked, by what they are.
        imported: Trials of earlier studies that it learns from.
    """

    def __init__(
        self,
        record: StudyRecord,
        spec: StudySpec,
        propose: Propose,
        policy: Promotes,
        first: Sequence[tuple[str, Mapping[str, Any]]] = (),
        imported: Mapping[int, TrialEntry] | None = None,
    ) -> None:
        super().__init__()
        self._record = record
        self._spec = spec
        self._propose = propose
        self._policy = policy
        self._first = tuple(first)
        imported = imported or {}
        self._known = LearningRecord(record, dict(imported)) if imported else record
        self._default = best_point(imported, record.mode) or spec.default_point()
        self._rungs = (*spec.rungs(), spec.max_epochs)
        self._to_resume = [entry.number for entry in record.unfinished()]
        self._number_of: dict[str, int] = {}
        self._exhausted = False

    def __getstate__(self) -> dict[str, Any]:
        """The record is the state; there is nothing else to keep."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The values of the trial to run next and its number; None to wait; or FINISHED."""
        entry = self._next()
        if entry is not None:
            self._number_of[trial_id] = entry.number
            config = {**self._values(entry), TRIAL_NUMBER: entry.number}
            if entry.lineage:
                config[INHERITS] = (entry.lineage[-1].donor, entry.lineage[-1].epoch)
            return config
        if self._record.unfinished():
            # one of those that run may have to go on later
            return None
        with self._record.transaction():
            for paused in self._record.with_state(TrialState.PAUSED):
                reason = self._policy.never_promoted(paused.number)
                self._record.finish(paused.number, TrialState.STOPPED, reason)
        return str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Close the trial with the ending that it reported, if nothing closed it before."""
        number = self._number_of[trial_id]
        # the scheduler's on_trial_error has the exception of a lost process, and closes the trial
        if not error and result is not None:
            report_result(self._record, number, result)
            with self._record.transaction():
                for name in set(TRIAL_NOTES) & set(result):
                    self._record.note(number, name, json.loads(result[name]))
                if "outcome" in result:
                    state = TrialState(result["outcome"])
                    end_trial(self._record, self._spec, number, state, result["reason"])
        if self._record.entries[number].state is TrialState.INTERRUPTED:
            self._to_resume.append(number)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the record is written as things happen."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the record is the state."""

    def _values(self, entry: TrialEntry) -> dict[str, Any]:
        """What the trial trains with."""
        return entry.trained_values

    def _next(self) -> TrialEntry | None:
        if self._to_resume:
            return self._go_on(self._to_resume.pop(0))
        promoted = self._policy.promote()
        if promoted is not None:
            return self._go_on(promoted)
        new = self._new()
        if new is not None or self._record.unfinished():
            return new
        promoted = self._policy.promote(last=True)
        return None if promoted is None else self._go_on(promoted)

    def _go_on(self, number: int) -> TrialEntry:
        self._record.running(number)
        return self._record.entries[number]

    def _new(self) -> TrialEntry | None:
        number = len(self._record.entries)
        if self._exhausted or number >= self._spec.search.num_trials:
            return None
        if number < len(self._first):
            name, values = self._first[number]
            return self._record.propose(values, name)
        view = SearchView(
            self._known,
            number,
            self._spec.search.seed,
            self._default,
            self._rungs,
            self._spec.further_metrics,
        )
        with one_thread():
            proposed = self._propose(view)
        if proposed is None:
            self._exhausted = True
            return None
        return self._record.propose(
            proposed.values, self._spec.search.searcher, proposed.generation
        )


def build_searcher(record: StudyRecord, spec: StudySpec, policy: Promotes) -> RecordSearcher:
    """The searcher that the spec asks for.

    Args:
        record: The study's record.
        spec: Its spec.
        policy: What promotes paused trials.

    Raises:
        SpecError: if the searcher cannot search the space.
    """
    if spec.search.searcher == "grid":
        grid_points(spec.space)
    imported = read_imported(record.folder, spec.space) if spec.search.warm_start else {}
    return RecordSearcher(
        record, spec, SEARCHERS.resolve(spec.search.searcher), policy, first_points(spec), imported
    )
