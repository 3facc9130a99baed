"""Asynchronous successive halving (Li et al., 2020), in its two variants.

Both read the rungs from the record: the score of every trial at the rung's epoch. Rungs are
whole epochs, `grace_period * reduction_factor^k`, so none is lost to rounding.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tuner.search.policies.policy import GO_ON, Action, Decision, Policy, distinct_texts
from tuner.search.policies.rung import Rung

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord


class RungPolicy(Policy):
    """Base of the policies that compare trials at rungs.

    A trial whose score at a rung is not defined cannot be compared there: it goes on, and counts
    for no other trial's place.

    With several brackets (Hyperband), bracket `s` leaves out the first `s` rungs, and trials
    are compared within their bracket. Trials are dealt to brackets by a draw seeded with the
    study's seed and the trial's number, in which a bracket is as likely as Hyperband would
    make it: the shorter the ladder, the fewer trials.

    Args:
        record: The study's record, which holds the rungs.
        rungs: Epochs at which trials are compared, ascending, below the full budget.
        reduction_factor: One of so many trials survives a rung.
        brackets: How many brackets.
        seed: The study's seed.
    """

    NAME = "ASHA"

    def __init__(
        self,
        record: StudyRecord,
        rungs: Sequence[int],
        reduction_factor: int,
        brackets: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(record)
        self._rungs = tuple(rungs)
        self._reduction_factor = reduction_factor
        self._seed = seed
        # Hyperband gives bracket s as many trials as its first rung has room for
        shares = [float(reduction_factor) ** -s for s in range(brackets)]
        self._shares = [share / sum(shares) for share in shares]
        self._bracket_of: dict[int, int] = {}
        self._rung_at: dict[tuple[int, int], Rung] = {}

    def bracket(self, number: int) -> int:
        """The bracket of a trial."""
        if len(self._shares) == 1:
            return 0
        if number not in self._bracket_of:
            rng = np.random.default_rng((self._seed, number, 0xB4AC))
            self._bracket_of[number] = int(rng.choice(len(self._shares), p=self._shares))
        return self._bracket_of[number]

    def _rung(self, epoch: int, bracket: int) -> Rung:
        """A rung of a bracket as it is now."""
        rung = self._rung_at.get((epoch, bracket))
        if rung is None or rung.is_stale:
            rung = self._rung_at[epoch, bracket] = Rung(
                self._record, epoch, lambda number: self.bracket(number) == bracket
            )
        rung.follow()
        return rung

    def _compares_at(self, number: int, epoch: int) -> bool:
        return epoch in self._rungs[self.bracket(number) :]

    def _rung_name(self, epoch: int) -> str:
        return f"rung {self._rungs.index(epoch) + 1} (epoch {epoch})"

    def _at(self, epoch: int) -> str:
        return f"by {self.NAME} at {self._rung_name(epoch)}"

    def _skip_comparison(self, epoch: int) -> Decision:
        return Decision(
            Action.CONTINUE,
            f"{self._at(epoch)}: its score is not defined, so it is not compared",
        )


class StoppingAsha(RungPolicy):
    """The stopping variant: a trial goes on or ends for good.

    A trial goes on if its score is in the best 1/reduction_factor of all scores reported at
    that rung so far, its own included; the first few always go on.
    """

    def judge(self, number: int, epoch: int) -> Decision:
        """Stop a trial that misses the cutoff of its rung."""
        if not self._compares_at(number, epoch):
            return GO_ON
        score = self._score(number, epoch)
        if not math.isfinite(score):
            return self._skip_comparison(epoch)
        rung = self._rung(epoch, self.bracket(number))
        cutoff = rung.quantile(1 - 1 / self._reduction_factor)
        if score >= cutoff:
            return Decision(Action.CONTINUE, self._verdict(number, epoch, "reaches", cutoff))
        verdict = self._verdict(number, epoch, "is worse than", cutoff)
        return Decision(Action.STOP, verdict + self._better_epoch(number, epoch))

    def _verdict(self, number: int, epoch: int, compares: str, cutoff: float) -> str:
        size = len(self._rung(epoch, self.bracket(number)))
        if size == 1:
            return f"{self._at(epoch)}: it is the first trial that came here"
        score, limit = distinct_texts(
            self._record.entries[number].scores[epoch], self._sign * cutoff
        )
        return (
            f"{self._at(epoch)}: its score there, {score}, {compares} {limit}, the cutoff for the "
            f"best 1 in {self._reduction_factor} of the {size} trials that came here"
        )


class PromotionAsha(RungPolicy):
    """The promotion variant: a trial pauses at a rung, and the best of a rung go on.

    Of the `n` trials of a rung, no more than `n // reduction_factor` go on, the best of those
    that are there when a worker is free; the highest rung comes first. So a trial that was
    unlucky when it came, or came early, goes on as soon as the rung has filled up below it.

    The published algorithm promotes every trial that is at some time among the best. With a
    searcher that learns, new trials are better than old ones, nearly all of them would go on,
    and the budget would go into few trials; the limit keeps it where it is meant to go.
    """

    def judge(self, number: int, epoch: int) -> Decision:
        """Pause a trial at a rung, unless it is the one to go on."""
        if not self._compares_at(number, epoch):
            return GO_ON
        score = self._score(number, epoch)
        if not math.isfinite(score):
            return self._skip_comparison(epoch)
        if self._next(also=number) == number:
            return Decision(Action.CONTINUE, f"{self._at(epoch)}: {self._rank(number, epoch)}")
        return Decision(
            Action.PAUSE,
            f"{self._at(epoch)}: {self._rank(number, epoch)}{self._better_epoch(number, epoch)}",
        )

    def never_promoted(self, number: int) -> str:
        """The place that a trial had at its rung in the end."""
        epoch = self._record.entries[number].epochs
        if not self._compares_at(number, epoch):
            return super().never_promoted(number)
        return (
            f"paused at {self._rung_name(epoch)}: never promoted: "
            f"{self._rank(number, epoch, over=True)}{self._better_epoch(number, epoch)}"
        )

    def _rank(self, number: int, epoch: int, *, over: bool = False) -> str:
        """The place of a trial at a rung, and how many may go on from there.

        Args:
            number: The trial.
            epoch: Epoch of the rung.
            over: Whether the study is over; the best of a rung then went on in any case.
        """
        rung = self._rung(epoch, self.bracket(number))
        rank = bisect_left(rung.ranked, (-self._score(number, epoch), number)) + 1
        quota = len(rung) // self._reduction_factor
        place = f"{self._judged_score(number, epoch)} is number {rank} of {len(rung)} here"
        if not over:
            if not quota:
                return f"{place}; 1 in {self._reduction_factor} goes on, when as many are here"
            return f"{place}, of which {quota} may go on"
        if rank <= quota:
            return f"{place}, but {rung.passed(None)} had gone on before it came"
        return f"{place}, of which {rung.passed(None)} went on"

    def promote(self, *, last: bool = False) -> int | None:
        """The best paused trial of the highest rung that has room above it."""
        return self._next(last=last)

    def _top(self) -> int:
        """How many rungs trials may be promoted from."""
        return len(self._rungs)

    def _next(self, *, also: int | None = None, last: bool = False) -> int | None:
        """The trial to go on next, of those paused and the trial `also`."""
        for index in reversed(range(self._top())):
            epoch = self._rungs[index]
            for bracket in range(min(index + 1, len(self._shares))):
                rung = self._rung(epoch, bracket)
                quota = len(rung) // self._reduction_factor
                if last:
                    # a study of few trials still trains its best one to the end
                    quota = max(quota, 1)
                if rung.passed(also) >= quota:
                    continue
                waiting = rung.first_waiting(also)
                if waiting is not None and bisect_left(rung.ranked, waiting) < quota:
                    return waiting[1]
        return None
