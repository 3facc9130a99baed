"""A policy within a time budget: trials end their schedules before the study does."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tuner.search.policies.asha import PromotionAsha, StoppingAsha
from tuner.search.policies.finale import Finale, best_first, best_score
from tuner.search.policies.policy import GO_ON, Action, Decision, Policy
from tuner.spec.policies import AshaSettings
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from tuner.search.deadline import TimePlan
    from tuner.spec.study_spec import StudySpec
    from tuner.study.record import StudyRecord
    from tuner.study.trial_entry import TrialEntry


class PlannedPolicy(Policy):
    """Follows another policy while there is time, and sees to it that the best trials end.

    A trial whose learning rate has not come down yet is worth less than its score could be. So,
    when time gets short, the best trials end their schedules, as many as fit, in shorter ones
    where needed, and others make room for them. Nothing is started that could not end. Trials
    that cannot are paused: `tune resume` goes on with them. The last part of such a study belongs
    to its best trials, see `Finale`.

    Where the time is too short for ASHA that stops trials, it promotes them instead: the first
    trials of a rung would train on with nothing to compare them with. Stopping one of
    `reduction_factor` trials, among few, takes about that share of all full trainings.

    Args:
        record: The study's record.
        policy: What decides while there is time.
        plan: What fits into the time that is left.
        spreads: What decides in its place when time is short.
        share: Share of a full training that the policy gives a trial; more needs to be spread.
        finale: What leaves the last part of the time to the best trials; None for a study that
            looks for several kinds of best ones.
    """

    def __init__(
        self,
        record: StudyRecord,
        policy: Policy,
        plan: TimePlan,
        spreads: Policy | None = None,
        share: float = 1.0,
        finale: Finale | None = None,
    ) -> None:
        super().__init__(record)
        self._policy = policy
        self._plan = plan
        self._spreads = spreads or policy
        self._share = share
        self._finale = finale

    def judge(self, number: int, epoch: int) -> Decision:
        """Decide as the policy does, and whether the trial must end its schedule now."""
        entry = self._record.entries[number]
        if entry.ends_at is not None:
            # no rung stops it any more
            return self._ended_sooner(entry, epoch) or GO_ON
        finalists = self._finalists()
        if entry in finalists:
            return self._ended(entry, epoch, final=True) or GO_ON
        if finalists and epoch < self._plan.ending_after(entry, epoch).planned:
            return Decision(Action.PAUSE, _makes_room(finalists))
        decision = self._deciding().judge(number, epoch)
        if decision.action is Action.STOP:
            return self._kept(entry, epoch, decision)
        if decision.action is Action.PAUSE:
            return decision
        return self._ended(entry, epoch) or decision

    def promote(self, *, last: bool = False) -> int | None:
        """The trial that is to end its schedule now, or the one that the policy promotes."""
        for entry in self._paused():
            if entry.ends_at is not None and self._plan.can_end(entry):
                if entry.epochs + self._plan.room(entry) < entry.ends_at:
                    # as much time as it was promised is no longer left
                    self._end(entry)
                return entry.number
        if self._plan.pace() is None:
            return self._policy.promote(last=last)
        short = self._plan.is_short()
        number = self._deciding().promote(last=last and not short)
        promoted = None if number is None else self._record.entries[number]
        new = not last and self._plan.new_trials > 0 and self._plan.may_start()
        seconds = self._seconds_of_next(promoted, new=new)
        finalists = self._finalists(seconds)
        if finalists:
            waiting = (e for e in finalists if e.state is TrialState.PAUSED)
            return next((e.number for e in waiting if self._plan.can_end(e)), None)
        found = self._to_end(short, seconds)
        if found is not None:
            self._end(found)
            return found.number
        if promoted is not None and self._reaches_next(promoted):
            return promoted.number
        return None

    def may_start(self) -> bool:
        """Whether a new trial can end a schedule, if a short one."""
        return not self._finalists() and self._plan.may_start() and self._policy.may_start()

    def keeps_paused(self) -> bool:
        """Whether the time was too short, so that paused trials may go on with more of it."""
        return self._plan.is_short()

    def never_promoted(self, number: int) -> str:
        """The reason that the policy gives."""
        return self._policy.never_promoted(number)

    def _finalists(self, next_seconds: float = 0.0) -> list[TrialEntry]:
        """The trials that have the rest of the time to themselves; none while there is time."""
        if self._finale is None or self._plan.pace() is None:
            return []
        return self._finale.finalists(next_seconds)

    def _deciding(self) -> Policy:
        return self._spreads if self._plan.is_short(self._share) else self._policy

    def _paused(self) -> list[TrialEntry]:
        """Trials that wait, the best first."""
        paused = [e for e in self._record.with_state(TrialState.PAUSED) if e.scores]
        return best_first(paused, self._record.mode)

    def _kept(self, entry: TrialEntry, epoch: int, decision: Decision) -> Decision:
        """Set aside rather than stop the best trial of the study if its schedule has not ended."""
        ending = self._plan.ending_after(entry, epoch)
        if self._record.best() is not entry or ending.shortest <= epoch:
            return decision
        return Decision(
            Action.PAUSE,
            f"{decision.reason}; set aside, since its score is the best of the study so far and "
            "its schedule has not ended",
        )

    def _ended(self, entry: TrialEntry, epoch: int, *, final: bool = False) -> Decision | None:
        """What happens to a running trial as the time ends; None while it may go on.

        Args:
            entry: The trial.
            epoch: Its last epoch.
            final: Whether no other trial may take its place.
        """
        plan = self._plan
        ending, left, pace = plan.ending_after(entry, epoch), plan.left, plan.pace(entry)
        assert pace is not None
        if epoch >= ending.planned or (ending.planned - epoch) * pace <= left:
            return None
        if ending.shortest == epoch:
            if pace <= left:
                return None
            return Decision(
                Action.PAUSE, f"ends after epoch {epoch}: no further one fits into the time budget"
            )
        if plan.startup + pace + plan.seconds_to_end(entry, epoch + 1) <= left:
            return None
        better = None if final else self._better_waiting(entry)
        if better is not None:
            self._end(better)
            return Decision(
                Action.PAUSE,
                f"makes room for trial {better.number}, whose score is better and whose schedule "
                "can still end within the time budget",
            )
        if epoch + plan.room(entry) < ending.shortest:
            if not self._anything_ends() and not self.may_start():
                # no other trial needs the worker, and the estimate may be too long
                return None
            return Decision(
                Action.PAUSE,
                "its schedule cannot end within the time budget: that takes "
                f"{plan.startup + plan.seconds_to_end(entry, epoch):.0f} s, and "
                f"{max(0.0, left):.0f} s are left",
            )
        return Decision(Action.PAUSE, self._end(entry))

    def _anything_ends(self) -> bool:
        """Whether a trial has ended its schedule, or is about to."""
        ending = self._record.with_state(TrialState.RUNNING, TrialState.PAUSED)
        return bool(self._record.with_state(TrialState.COMPLETED)) or any(
            entry.ends_at is not None for entry in ending
        )

    def _ended_sooner(self, entry: TrialEntry, epoch: int) -> Decision | None:
        """Shorten a schedule again, where epochs take longer than they did; None if it fits."""
        plan = self._plan
        ending, pace = plan.ending_after(entry, epoch), plan.pace(entry)
        assert pace is not None
        fits = epoch + plan.room(entry)
        if (ending.planned - epoch) * pace <= plan.left or not ending.shortest <= fits:
            # should it not fit at all, the study's deadline remains
            return None
        return Decision(Action.PAUSE, self._end(entry)) if fits < ending.planned else None

    def _better_waiting(self, entry: TrialEntry) -> TrialEntry | None:
        """The best trial that waits, if it is better than one that runs and can still end."""
        mode = self._record.mode
        for paused in self._paused():
            if best_score(paused, mode) <= best_score(entry, mode):
                return None
            if paused.ends_at is None and self._plan.can_end(paused):
                return paused
        return None

    def _to_end(self, short: bool, next_seconds: float) -> TrialEntry | None:
        """The trial that must end its schedule now; it could not after what comes next instead."""
        plan = self._plan
        for paused in self._paused():
            if paused.ends_at is not None or not plan.can_end(paused):
                continue
            if not short and self._record.best() is not paused:
                return None
            needed = plan.startup + plan.seconds_to_end(paused)
            return paused if plan.left - next_seconds < needed else None
        return None

    def _seconds_of_next(self, promoted: TrialEntry | None, *, new: bool) -> float:
        """Seconds that a worker is busy with what the policy would do next."""
        plan = self._plan
        if promoted is not None:
            pace = plan.pace(promoted)
            assert pace is not None
            return plan.startup + (plan.next_pause(promoted) - promoted.epochs) * pace
        return plan.seconds_of_new() if new else math.inf

    def _reaches_next(self, entry: TrialEntry) -> bool:
        """Whether a promoted trial comes to its next rung and can end its schedule from there."""
        plan = self._plan
        reached = plan.next_pause(entry)
        seconds = self._seconds_of_next(entry, new=False)
        return seconds + plan.seconds_to_end(entry, reached) <= plan.left

    def _end(self, entry: TrialEntry) -> str:
        """Let a trial end its schedule in the epochs that fit; the reason."""
        planned = self._plan.ending_after(entry, entry.epochs).planned
        epochs = min(planned, entry.epochs + self._plan.room(entry))
        reason = (
            f"ends its schedule at epoch {epochs}"
            f"{f' instead of {planned}' if epochs < planned else ''}: "
            f"{max(0.0, self._plan.left):.0f} s of the time budget are left"
        )
        self._record.shorten(entry.number, epochs, reason)
        return reason


def _makes_room(finalists: list[TrialEntry]) -> str:
    numbers = ", ".join(str(entry.number) for entry in finalists)
    one = len(finalists) == 1
    return (
        f"makes room for trial{'' if one else 's'} {numbers}, the best so far, which "
        f"train{'s' if one else ''} on for the rest of the time"
    )


def planned(policy: Policy, record: StudyRecord, spec: StudySpec, plan: TimePlan) -> PlannedPolicy:
    """A policy within a time budget.

    Args:
        policy: What decides while there is time.
        record: The study's record.
        spec: The study's spec.
        plan: What fits into the time that is left.
    """
    spreads, share = None, 1.0
    if isinstance(policy, StoppingAsha):
        settings = spec.policy
        assert isinstance(settings, AshaSettings)
        share = 1 / settings.reduction_factor
        spreads = PromotionAsha(
            record, spec.rungs(), settings.reduction_factor, settings.brackets, spec.search.seed
        )
    finale = None if spec.further_metrics else Finale(record, plan)
    return PlannedPolicy(record, policy, plan, spreads, share, finale)
