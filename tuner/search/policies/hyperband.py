"""Hyperband (Li et al., 2018): brackets of successive halving whose rounds wait for all."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.search.policies.policy import GO_ON, Action, Decision, Policy
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from tuner.spec.brackets import Bracket
    from tuner.study.record import StudyRecord


@dataclass(frozen=True)
class _Round:
    """One comparison of a bracket.

    Attributes:
        bracket: Index of the bracket.
        stage: Index of its milestone.
    """

    bracket: int
    stage: int


class Hyperband(Policy):
    """Trials pause at the milestones of their bracket until all of the round are there.

    Then the best `ceil(n / reduction_factor)` go on and the others end. Brackets are filled in
    the order of trial numbers, so workers are kept busy with trials of the next bracket while a
    round is incomplete. Of a bracket that the study leaves incomplete, those that it has are
    compared. A trial that fails counts as worse than any other; one whose score is not defined at
    a milestone comes after all that have one, and goes on only where they leave room.

    Ray's `HyperBandScheduler` keeps its brackets in memory alone and needs Tune's own
    checkpoints to pause a trial; this is the same algorithm, with the same brackets, read from
    the record. Ray compares the trials that happen to be there when a bracket is not full yet.

    Args:
        record: The study's record.
        brackets: The brackets of one band.
        reduction_factor: One of so many trials survives a round.
        planned: Trials of the study.
    """

    def __init__(
        self,
        record: StudyRecord,
        brackets: Sequence[Bracket],
        reduction_factor: int,
        planned: int,
    ) -> None:
        super().__init__(record)
        self._brackets = tuple(brackets)
        self._reduction_factor = reduction_factor
        self._starts = [0]
        while self._starts[-1] < planned:
            size = self._kind(len(self._starts) - 1).size
            self._starts.append(min(self._starts[-1] + size, planned))
        # scores do not change, so neither does who survives a round that is complete
        self._complete: dict[_Round, tuple[int, ...]] = {}

    def judge(self, number: int, epoch: int) -> Decision:
        """Pause a trial at a milestone, unless it completes the round."""
        here = self._round(number, epoch)
        if here is None:
            return GO_ON
        survivors = self._survivors(here)
        if survivors is None:
            return Decision(Action.PAUSE, f"{self._at(here)}: waits for the others of its round")
        if number in survivors:
            return Decision(
                Action.CONTINUE, f"{self._at(here)}: among the best {len(survivors)} of its round"
            )
        return Decision(Action.STOP, self._verdict(number, here, len(survivors)))

    def promote(self, *, last: bool = False) -> int | None:
        """The paused survivor of a complete round that has come furthest; the others end."""
        best: tuple[int, int] | None = None
        for entry in self._record.with_state(TrialState.PAUSED):
            here = self._round(entry.number, entry.epochs)
            # between two folds there is no round
            survivors = None if here is None else self._survivors(here, last=last)
            if here is None or survivors is None:
                continue
            if entry.number in survivors:
                best = min(best or (0, 0), (-entry.epochs, entry.number))
            else:
                reason = self._verdict(entry.number, here, len(survivors))
                self._record.finish(entry.number, TrialState.STOPPED, reason)
        return None if best is None else best[1]

    def bracket(self, number: int) -> int:
        """Index of the bracket of a trial, from 0, over all bands."""
        return bisect_right(self._starts, number) - 1

    def _kind(self, bracket: int) -> Bracket:
        return self._brackets[bracket % len(self._brackets)]

    def _round(self, number: int, epoch: int) -> _Round | None:
        """The comparison of a trial at an epoch."""
        bracket = self.bracket(number)
        compared = self._kind(bracket).milestones[:-1]
        return _Round(bracket, compared.index(epoch)) if epoch in compared else None

    def _survivors(self, here: _Round, *, last: bool = False) -> tuple[int, ...] | None:
        """Trials that go on after a round; None while it is not complete.

        Args:
            here: The round.
            last: Whether no further trial comes, so that those of the bracket are all.
        """
        if here in self._complete:
            return self._complete[here]
        candidates = self._candidates(here, last=last)
        if candidates is None:
            return None
        scores, entries = self._record.scores_at(self._milestone(here)), self._record.entries
        milestone = self._milestone(here)
        # a trial may pass it without a score: its first fold ended early
        if any(
            n not in scores and entries[n].epochs < milestone and not entries[n].state.finished
            for n in candidates
        ):
            return None
        ranked = sorted(
            (n for n in candidates if n in scores),
            key=lambda n: (-self._sign * scores[n] if math.isfinite(scores[n]) else math.inf, n),
        )
        survivors = tuple(ranked[: self._quota(here)])
        if not last:
            self._complete[here] = survivors
        return survivors

    def _candidates(self, here: _Round, *, last: bool) -> Sequence[int] | None:
        """Trials that a round compares; None while they are not all known."""
        if here.stage:
            return self._survivors(_Round(here.bracket, here.stage - 1), last=last)
        members, known = self._members(here.bracket), len(self._record.entries)
        if known < members.stop and not last:
            return None
        return members[: max(known - members.start, 0)]

    def _quota(self, here: _Round) -> int:
        """How many trials may survive a round."""
        members = self._members(here.bracket)
        quota = min(len(members), len(self._record.entries) - members.start)
        for _ in range(here.stage + 1):
            quota = -(-quota // self._reduction_factor)
        return quota

    def _members(self, bracket: int) -> range:
        """Trials of a bracket."""
        return range(self._starts[bracket], self._starts[bracket + 1])

    def _milestone(self, here: _Round) -> int:
        return self._kind(here.bracket).milestones[here.stage]

    def _at(self, here: _Round) -> str:
        return f"at epoch {self._milestone(here)} of bracket {here.bracket + 1}"

    def _by(self, here: _Round) -> str:
        return f"by Hyperband {self._at(here)}"

    def _verdict(self, number: int, here: _Round, survivors: int) -> str:
        epoch = self._milestone(here)
        return (
            f"{self._by(here)}: {self._judged_score(number, epoch)} is not among the best "
            f"{survivors} of its round{self._better_epoch(number, epoch)}"
        )
