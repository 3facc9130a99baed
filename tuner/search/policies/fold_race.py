"""Folds as a fidelity: a configuration that is behind beyond doubt gets no further fold.

A trial trains on one fold after the other. Within the first, the study's own policy compares
trials at its rungs. Where a fold ends, a trial is compared with the best one so far, and with the
default config, on the folds that both have, in pairs, which takes out how hard a fold is (as racing
does: Maron and Moore, 1994; Birattari et al., 2002). As in SMAC (Hutter et al., 2011), one that is
ahead goes on at once, so the best trial always has all folds soon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import t as student

from tuner.search.policies.policy import GO_ON, Action, Decision, Policy
from tuner.spec.grid import DEFAULT
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from tuner.study.record import StudyRecord
    from tuner.study.trial_entry import TrialEntry

DOUBT = 0.1
"""A trial whose chance to be ahead after all folds is below this is behind beyond doubt."""


@dataclass(frozen=True)
class PairedNoise:
    """What a score differs by on one fold, beside how good a trial and how hard a fold is.

    Attributes:
        deviation: Its standard deviation; NaN where it is not known yet.
        freedom: Degrees of freedom of the estimate.
    """

    deviation: float
    freedom: int


def paired_noise(scores: Sequence[Sequence[float]]) -> PairedNoise:
    """Noise of the model score = trial + fold + noise, pooled over all trials.

    Each fold after the first is set against the mean of those before it (Helmert's contrasts),
    which leaves the trial out; their mean over trials leaves the fold out. So trials with few
    folds count with those that they have.

    Args:
        scores: Score of each trial on its folds, which are the first ones.
    """
    known = [[score for score in row if math.isfinite(score)] for row in scores]
    whole = [row for row, kept in zip(scores, known, strict=True) if len(row) == len(kept)]
    squares, freedom = 0.0, 0
    for fold in range(1, max(map(len, whole), default=0)):
        contrasts: Float[ndarray, " trials"] = np.array(
            [
                math.sqrt(fold / (fold + 1)) * (row[fold] - math.fsum(row[:fold]) / fold)
                for row in whole
                if len(row) > fold
            ]
        )
        squares += float(((contrasts - contrasts.mean()) ** 2).sum())
        freedom += len(contrasts) - 1
    return PairedNoise(math.sqrt(squares / freedom) if freedom else math.nan, freedom)


def chance_ahead(gap: float, shared: int, folds: int, noise: PairedNoise) -> float:
    """Chance that a trial is ahead of another after all folds, by the folds that both have.

    This is the predictive power with which a study is ended for futility (Spiegelhalter et al.,
    1986): of all folds' mean difference the shared ones are known, the others are predicted.

    Args:
        gap: Mean difference on the shared folds, positive if it is ahead.
        shared: How many these are.
        folds: Folds of the study.
        noise: Of one score; without an estimate nothing can be ruled out.
    """
    if not noise.freedom or not math.isfinite(gap):
        return 1.0
    spread = noise.deviation * math.sqrt(2 * (folds - shared) / (folds * shared))
    if spread == 0.0:
        return float(gap > 0)
    return float(student.cdf(gap / spread, noise.freedom))


class FoldRace(Policy):
    """Runs another policy on the first fold, and races trials where folds end.

    A trial that is ahead of the best one so far goes on. One that is behind beyond doubt stops.
    The others pause; they go on when no new trial is left to start, the likeliest first, or as soon
    as they are ahead of what is the best trial then. A trial whose score is not defined on the
    shared folds is not compared and goes on. Where the other policy trains none to the end, as
    PASHA may, the best one still gets every fold at last.

    Args:
        record: The study's record.
        first: The policy of the first fold.
        folds: Folds of the study.
        planned: Trials of the study.
        race: Whether trials are raced; if not, each that finishes the first fold gets them all.
    """

    def __init__(
        self, record: StudyRecord, first: Policy, folds: int, planned: int, *, race: bool = True
    ) -> None:
        super().__init__(record)
        assert record.fold_epochs is not None
        self._fold_epochs = record.fold_epochs
        self._first = first
        self._folds = folds
        self._planned = planned
        self._race = race
        self._fold_scores: dict[int, list[float]] = {}

    def judge(self, number: int, epoch: int) -> Decision:
        """Ask the other policy within the first fold; race where a fold ends."""
        if epoch < self._fold_epochs:
            return self._first.judge(number, epoch)
        if epoch % self._fold_epochs or epoch >= self._folds * self._fold_epochs or not self._race:
            return GO_ON
        shared = epoch // self._fold_epochs
        at = f"by the race at the end of fold {shared} of {self._folds}"
        best = self._best_beside(number)
        if best is None:
            return Decision(Action.CONTINUE, f"{at}: it is the first trial that came here")
        gap = self._gap(number, best)
        if not math.isfinite(gap):
            return Decision(Action.CONTINUE, f"{at}: its score is not defined, so not compared")
        verdict = self._verdict(number, best)
        if gap > 0:
            return Decision(Action.CONTINUE, f"{at}: {verdict}")
        chance, rival = self._hardest(number, self._noise())
        if chance < DOUBT:
            return Decision(Action.STOP, f"{at}: {self._verdict(number, rival)}, beyond doubt")
        return Decision(Action.PAUSE, f"{at}: {verdict}, not beyond doubt")

    def promote(self, *, last: bool = False) -> int | None:
        """A paused trial that is ahead now, then the other policy's, then one within doubt."""
        waiting = self._waiting()
        ahead = [entry for entry in waiting if self._gap_to_best(entry.number) > 0]
        if ahead:
            return max(ahead, key=lambda e: (self._gap_to_best(e.number), -e.number)).number
        promoted = self._first.promote(last=last)
        if promoted is not None:
            return promoted
        if waiting and (last or len(self._record.entries) >= self._planned):
            promoted = self._likeliest(waiting)
        return self._unfinished_winner() if promoted is None and last else promoted

    def may_start(self) -> bool:
        """Whether the other policy lets a new trial start."""
        return self._first.may_start()

    def keeps_paused(self) -> bool:
        """Whether the other policy keeps trials paused."""
        return self._first.keeps_paused()

    def never_promoted(self, number: int) -> str:
        """Why a trial that is still paused got no further fold."""
        entry = self._record.entries[number]
        if not entry.finished_folds:
            return self._first.never_promoted(number)
        best = self._best_beside(number)
        verdict = "" if best is None else f": {self._verdict(number, best)}"
        return f"by the race after fold {entry.finished_folds} of {self._folds}{verdict}"

    def _likeliest(self, waiting: Sequence[TrialEntry]) -> int | None:
        """The trial that is likeliest to be ahead after all folds, if that is not beyond doubt."""
        noise = self._noise()
        chances = {}
        for entry in waiting:
            alone = self._best_beside(entry.number) is None
            chances[entry.number] = 1.0 if alone else self._hardest(entry.number, noise)[0]
        likeliest = max(chances, key=lambda number: (chances[number], -number))
        return likeliest if chances[likeliest] >= DOUBT else None

    def _unfinished_winner(self) -> int | None:
        """The best trial of the study if it is paused before its last fold ended."""
        best = self._record.best()
        return best.number if best is not None and best.state is TrialState.PAUSED else None

    def _waiting(self) -> list[TrialEntry]:
        """Trials that are paused between two folds."""
        paused = self._record.with_state(TrialState.PAUSED)
        return [entry for entry in paused if entry.finished_folds]

    def _best_beside(self, number: int) -> TrialEntry | None:
        """The best other trial, of those with most folds; None if none has as many as this one."""
        ranked = [
            (entry.finished_folds, self._mean(entry), -entry.number)
            for entry in self._rivals(number)
            # one that lost its race cannot hold back those that may still win
            if entry.state is TrialState.COMPLETED or not entry.state.finished
        ]
        return self._record.entries[-max(ranked)[2]] if ranked else None

    def _rivals(self, number: int) -> list[TrialEntry]:
        """Other trials that have the folds of a trial, and a score."""
        needed = self._record.entries[number].finished_folds
        return [
            entry
            for entry in self._came()
            if entry.number != number
            and entry.finished_folds >= needed
            and math.isfinite(self._mean(entry))
        ]

    def _hardest(self, number: int, noise: PairedNoise) -> tuple[float, TrialEntry]:
        """The lower chance of a trial that has a best one beside it, and against whom.

        Against that one or the default config, also where the default has fewer folds than the
        best trial, or lost its own race: whoever is behind it need not be tried further.
        """
        best = self._best_beside(number)
        assert best is not None
        defaults = [entry for entry in self._rivals(number) if entry.proposed_by == DEFAULT]
        rivals = {entry.number: entry for entry in (best, *defaults)}
        chances = {rival: self._chance(number, entry, noise) for rival, entry in rivals.items()}
        hardest = min(chances, key=lambda rival: chances[rival])
        return chances[hardest], rivals[hardest]

    def _came(self) -> list[TrialEntry]:
        """Trials that have finished a fold."""
        return [self._record.entries[n] for n in self._record.scores_at(self._fold_epochs)]

    def _scores(self, entry: TrialEntry) -> list[float]:
        """Score of each finished fold, greater is better; they do not change any more."""
        known = self._fold_scores.get(entry.number, [])
        if len(known) != entry.finished_folds:
            known = [self._sign * score for score in entry.fold_scores(self._record.mode)]
            self._fold_scores[entry.number] = known
        return known

    def _mean(self, entry: TrialEntry) -> float:
        """Mean over the folds whose score is defined; NaN for none."""
        return _mean([score for score in self._scores(entry) if math.isfinite(score)])

    def _gap(self, number: int, best: TrialEntry) -> float:
        """Mean difference to another trial on the shared folds; NaN for none."""
        own, other = self._scores(self._record.entries[number]), self._scores(best)
        gaps = [one - two for one, two in zip(own, other, strict=False)]
        return _mean([gap for gap in gaps if math.isfinite(gap)])

    def _gap_to_best(self, number: int) -> float:
        best = self._best_beside(number)
        return math.inf if best is None else self._gap(number, best)

    def _noise(self) -> PairedNoise:
        return paired_noise([self._scores(entry) for entry in self._came()])

    def _chance(self, number: int, best: TrialEntry, noise: PairedNoise) -> float:
        shared = self._record.entries[number].finished_folds
        return chance_ahead(self._gap(number, best), shared, self._folds, noise)

    def _verdict(self, number: int, best: TrialEntry) -> str:
        shared = self._record.entries[number].finished_folds
        gap = self._gap(number, best)
        on = "the fold" if shared == 1 else f"the {shared} folds"
        where = "ahead of" if gap > 0 else "behind"
        return f"{abs(gap):.4g} {where} trial {best.number} on {on} that both have"


def _mean(scores: Sequence[float]) -> float:
    return math.fsum(scores) / len(scores) if scores else math.nan
