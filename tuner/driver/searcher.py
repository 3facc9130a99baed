"""Ray Tune searcher that chooses the next trial by the record and a searcher of ours."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.search import Searcher

from tuner.search.gaussian_process import single_blas_thread
from tuner.search.searchers import SEARCHERS
from tuner.search.searchers.view import Propose, SearchView
from tuner.spec.grid import first_points, grid_points
from tuner.study.trial_entry import TrialState
from tuner.study.warm_start import LearningRecord, best_point, read_imported
from tuner.trial.failures import end_trial
from tuner.trial.messages import EpochReport, Snapshot, TrialEnd, TrialRequest

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry


class Promotes(Protocol):
    """Protocol of what chooses the paused trial to continue."""

    def promote(self, *, last: bool = False) -> int | None:
        """Number of that trial, None if none does."""
        ...

    def may_start(self) -> bool:
        """Whether a new trial may start."""
        ...

    def keeps_paused(self) -> bool:
        """Whether trials stay paused when nothing is left to run."""
        ...

    def never_promoted(self, number: int) -> str:
        """The reason of a trial that is still paused when the study ends."""
        ...


class Shares(Protocol):
    """Protocol of what gives trials other GPUs than those of the study's trials."""

    def requested(self, number: int) -> float:
        """GPUs of a trial that begins or goes on; 0 for those of the study's trials."""
        ...

    def outgrows(self, number: int) -> str:
        """Why a trial that was out of memory goes on with more of it; empty if it does not."""
        ...


class RecordSearcher(Searcher):  # type: ignore[misc]
    """Chooses the next trial: those that were cut off, then promoted ones, then new ones.

    What it proposes depends on the record alone: each proposal is drawn with the study's seed
    and the trial's number, so a resumed study goes on as it would have.

    Args:
        study: The study.
        propose: What draws new trials.
        policy: What promotes paused trials.
        first: Points to try before the searcher is asked, by what they are.
        imported: Trials of earlier studies that it learns from.
        places: How many trials may run at once just now; by default Tune alone limits them.
    """

    def __init__(
        self,
        study: Study,
        propose: Propose,
        policy: Promotes,
        first: Sequence[tuple[str, Mapping[str, Any]]] = (),
        imported: Mapping[int, TrialEntry] | None = None,
        places: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        super().__init__()
        record, spec = study.record, study.spec
        self._study = study
        self._record = record
        self._spec = spec
        self._propose = propose
        self._policy = policy
        self._first = tuple(first)
        imported = imported or {}
        self._known = LearningRecord(record, dict(imported)) if imported else record
        self._default = best_point(imported, record.mode) or spec.default_point()
        self._rungs = (*spec.rungs(), *spec.fold_ends)
        self._to_resume = [entry.number for entry in record.unfinished()]
        self._number_of: dict[str, int] = {}
        self._places = places
        self._live: set[str] = set()
        self._is_over: Callable[[], bool] = lambda: False
        self._exhausted = False
        self._idle_since: float | None = None
        self._proposed_at: float | None = None
        self._shares: Shares | None = None

    @property
    def record(self) -> StudyRecord:
        """The record of its trials."""
        return self._record

    @property
    def live(self) -> int:
        """Trials that run, or wait for a worker."""
        return len(self._live)

    @property
    def live_trials(self) -> list[int]:
        """Numbers of the trials that run, or wait for a worker."""
        return [self._number_of[trial_id] for trial_id in self._live]

    def wanted(self, most: int) -> int:
        """Trials that could run now: `most`, or those that have begun where no more are to."""
        return most if self._idle_since is None else len(self._live) + len(self._to_resume)

    @property
    def idle_seconds(self) -> float:
        """How long no other trial has been there to run; 0 while one is."""
        since = self._idle_since
        if len(self._live) >= self._spec.search.num_trials:
            # all of them run, and Tune does not ask for more
            since = self._proposed_at
        return 0.0 if since is None or self._to_resume else time.monotonic() - since

    @property
    def has_more(self) -> bool:
        """Whether a trial would begin, or go on after an interruption, if there were a place."""
        if self._to_resume:
            return True
        new = not self._exhausted and len(self._record.entries) < self._spec.search.num_trials
        return new and self._policy.may_start()

    def share_by(self, shares: Shares) -> None:
        """Give trials other GPUs than those of the study's trials, where it says so."""
        self._shares = shares

    def __getstate__(self) -> dict[str, Any]:
        """The record is the state; there is nothing else to keep."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The values of the trial to run next and its number; None to wait; or FINISHED."""
        if len(self._live) >= self._places():
            # Tune asks for nothing else while no trial runs: a signal or a budget ends it here
            return str(Searcher.FINISHED) if not self._live and self._is_over() else None
        entry = self._next()
        if entry is None:
            self._idle_since = self._idle_since or time.monotonic()
        else:
            self._idle_since, self._proposed_at = None, time.monotonic()
            self._live.add(trial_id)
            self._number_of[trial_id] = entry.number
            last = entry.lineage[-1] if entry.lineage else None
            exploits = None if last is None else Snapshot(last.donor, last.epoch)
            return TrialRequest(
                entry.number,
                self._values(entry),
                exploits,
                entry.finished_folds,
                0 if self._shares is None else self._shares.requested(entry.number),
            ).to_ray()
        if self._record.unfinished():
            # one of those that run may have to go on later
            return None
        if self._policy.keeps_paused():
            return str(Searcher.FINISHED)
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
        self._live.discard(trial_id)
        # the scheduler's on_trial_error has the exception of a lost process, and closes the trial
        if not error and result is not None:
            report = EpochReport.from_ray(result)
            if report is not None:
                report.add_to(self._record, number)
            end = TrialEnd.from_ray(result)
            if end is not None:
                with self._record.transaction():
                    for name, value in end.notes.items():
                        self._record.note(number, name, value)
                    self._end(number, end)
        if self._record.entries[number].state is TrialState.INTERRUPTED:
            self._to_resume.append(number)

    def _end(self, number: int, end: TrialEnd) -> None:
        if end.state is TrialState.OUT_OF_MEMORY and self._shares is not None:
            outgrown = self._shares.outgrows(number)
            if outgrown:
                self._record.interrupt(number, outgrown)
                return
        end_trial(self._study, number, end)

    def wait_unless(self, is_over: Callable[[], bool]) -> None:
        """Wait for a place while there is none and no trial runs, unless the study is over."""
        self._is_over = is_over

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the record has been written already."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the state is in the record."""

    def _values(self, entry: TrialEntry) -> dict[str, Any]:
        """The values that the trial trains with."""
        return entry.trained_values

    def _next(self) -> TrialEntry | None:
        if self._to_resume:
            return self._go_on(self._to_resume.pop(0))
        promoted = self._policy.promote()
        if promoted is not None:
            return self._go_on(promoted)
        new = self._new() if self._policy.may_start() else None
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
        with single_blas_thread():
            proposed = self._propose(view)
        if proposed is None:
            self._exhausted = True
            return None
        return self._record.propose(
            proposed.values, self._spec.search.searcher, proposed.generation
        )


def build_searcher(
    study: Study, policy: Promotes, places: Callable[[], int] = lambda: sys.maxsize
) -> RecordSearcher:
    """The searcher that the spec asks for.

    Args:
        study: The study.
        policy: What promotes paused trials.
        places: How many trials may run at once just now.

    Raises:
        SpecError: if the searcher cannot search the space.
    """
    spec = study.spec
    if spec.search.searcher == "grid":
        grid_points(spec.space)
    imported = read_imported(study.folder, spec.space) if spec.search.warm_start else {}
    propose = SEARCHERS.resolve(spec.search.searcher)
    return RecordSearcher(study, propose, policy, first_points(spec), imported, places)
