"""Population based training (Jaderberg et al., 2017)."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tuner.search.policies.explore import perturbed
from tuner.search.policies.policy import GO_ON, Action, Decision, Policy
from tuner.study.trial_entry import Exploit, TrialState, changes

if TYPE_CHECKING:
    from tuner.spec.policies import PbtSettings
    from tuner.study.record import StudyRecord
    from tuner.study.trial_entry import TrialEntry


class PopulationTraining(Policy):
    """Weak trials copy the weights of strong ones (exploit) and vary their values (explore).

    All trials of the study are the population, and each trains the full budget. Every
    `perturbation_interval` epochs a trial is compared with those that have come as far, at that
    same epoch. One of the worst `quantile_fraction` goes on from the checkpoint that one of the
    best had at that epoch, with its values, each a bit changed. While there are more trials
    than workers, a trial pauses there and the one that has trained least goes on, so that the
    population stays together. With `synchronous`, none goes on before all have come as far.

    Who copies whom, and with which values, is drawn with the study's seed, the trial's
    number and the epoch, and is in the record before the trial goes on. Ray's
    `PopulationBasedTraining` draws from Python's global generator, keeps its state in memory,
    and moves weights as Ray checkpoints, which are gone with its own files; so the quantiles
    and the changes are Ray's, and the rest is done by the record.

    Args:
        record: The study's record.
        settings: When trials are compared, and how many change.
        population: Trials of the study.
        max_epochs: The full budget.
        seed: The study's seed.
    """

    def __init__(
        self,
        record: StudyRecord,
        settings: PbtSettings,
        population: int,
        max_epochs: int,
        seed: int,
    ) -> None:
        super().__init__(record)
        self._settings = settings
        self._population = population
        self._max_epochs = max_epochs
        self._seed = seed

    def judge(self, number: int, epoch: int) -> Decision:
        """Pause a trial that is to change, or that others wait for."""
        if epoch % self._settings.perturbation_interval or epoch >= self._max_epochs:
            return GO_ON
        if self._others_wait(epoch):
            return Decision(Action.PAUSE, f"at epoch {epoch}: trials that trained less go first")
        if self._settings.synchronous and not self._all_reached(epoch):
            return Decision(Action.PAUSE, f"at epoch {epoch}: waits until all have come as far")
        weak, strong = self._quantiles(epoch)
        if number in weak and strong:
            return Decision(
                Action.PAUSE,
                f"at epoch {epoch}: {self._judged_score(number, epoch)} is among the worst "
                f"{len(weak)} of {len(self._record.scores_at(epoch))} trials: it takes over "
                "one of the best",
            )
        return GO_ON

    def promote(self, *, last: bool = False) -> int | None:
        """The paused trial that trained least; first the record notes whose weights it copies."""
        paused = self._record.with_state(TrialState.PAUSED)
        # new trials go first: the population is to be complete
        if not paused or len(self._record.entries) < self._population:
            return None
        entry = min(paused, key=lambda entry: (entry.epochs, entry.number))
        if self._settings.synchronous and not self._all_reached(entry.epochs):
            return None
        self._exploit(entry)
        return entry.number

    def _others_wait(self, epoch: int) -> bool:
        if len(self._record.entries) < self._population:
            return True
        return any(entry.epochs <= epoch for entry in self._record.with_state(TrialState.PAUSED))

    def _all_reached(self, epoch: int) -> bool:
        entries = self._record.entries.values()
        return all(entry.epochs >= epoch or entry.state.finished for entry in entries)

    def _exploit(self, entry: TrialEntry) -> None:
        """Let a weak trial copy a strong one; nothing if it did so already."""
        number, epoch = entry.number, entry.epochs
        if any(step.epoch == epoch for step in entry.lineage):
            return
        weak, strong = self._quantiles(epoch)
        if number not in weak or not strong:
            return
        rng = random.Random(f"{self._seed}, {number}, {epoch}")
        donor = rng.choice(strong)
        before = self._record.entries[donor].values_at(epoch)
        values = self._explore(before, donor, epoch, rng)
        step = Exploit(epoch, donor, values, changes(before, values))
        reason = (
            f"{step.describe()}; it had {self._shown_score(donor, epoch)}, this one "
            f"{self._shown_score(number, epoch)}"
        )
        self._record.exploit(number, step, reason)

    def _explore(
        self, values: dict[str, Any], donor: int, epoch: int, rng: random.Random
    ) -> dict[str, Any]:
        """The values to go on with from an epoch of a donor, near those that it had."""
        space = self._record.space
        return perturbed(space, values, rng, self._settings.resample_probability)

    def _quantiles(self, epoch: int) -> tuple[list[int], list[int]]:
        """The worst and the best trials of those that have a score at an epoch."""
        # one whose score is not defined is neither: it says nothing of the trial
        rank = {
            number: self._sign * score
            for number, score in self._record.scores_at(epoch).items()
            if math.isfinite(score)
        }
        ranked = sorted(rank, key=lambda number: (rank[number], -number))
        weak, strong = quantiles(ranked, self._settings.quantile_fraction)
        # a failed trial is never copied, however good its earlier scores
        return weak, [number for number in strong if self._record.entries[number].state.usable]

    def _shown_score(self, number: int, epoch: int) -> str:
        return f"{self._record.entries[number].scores[epoch]:.4g}"


def quantiles(ranked: Sequence[int], fraction: float) -> tuple[list[int], list[int]]:
    """The first and the last `fraction` of trials, without an overlap; none of a single one."""
    size = math.ceil(len(ranked) * fraction)
    if size > len(ranked) / 2:
        size = len(ranked) // 2
    return list(ranked[:size]), list(ranked[len(ranked) - size :])
