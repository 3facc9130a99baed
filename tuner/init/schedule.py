"""Epochs, steps and trials that fit into the hours that a study is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.spec.policies import AshaSettings
from tuner.spec.spec_values import FINALE_SHARE, RACED_SHARE

TRIALS = (48, 32, 24, 16, 12, 10, 8, 6, 4, 3)
"""Trials of a study: as many of these as there is time for, and one alone if there is for none."""

REDUCTION_FACTOR = 3
"""One of so many trials trains past a rung."""

ENOUGH_STEPS = {"cuda": 10_000, "cpu": 2_500}
"""Steps of a full training on each of several folds below which rather fewer trials are tried, and
below half of which one split has to do. With nnU-Net's 250 an epoch Hippocampus is learnt after 30
epochs, harder tasks go on (Auto-nnU-Net's published curves)."""

MOST_STEPS = 250_000
"""Steps of a full training at most: nnU-Net's 1000 epochs of 250."""

EPOCHS = 81
"""Epochs of a full training, unless validation would take too long."""

FEWEST_EPOCHS = 9

FIRST_RUNG_STEPS = 350
"""Training steps below which trials are not compared: before, scores say how soon a network stops
predicting background alone, which on Hippocampus takes nnU-Net's momentum some 500 steps, and AdamW
100."""

FIRST_RUNG_SHARE = 1 / 81
"""Share of a full training below which trials are not compared."""

VALIDATION_SHARE = 0.1
"""Time of validation at most, as a share of that of training."""

START_SECONDS = 10.0
"""Seconds that a trial takes before its first step, and for the checkpoint of its epochs."""

IN_USE = 0.9
"""Share of the hours that is planned; the rest is for what was not foreseen."""

FOLDS = 3
"""Folds that a configuration is judged on where cases are few and the hours allow it."""

MANY_CASES = 30
"""Cases from which one split is enough: more folds would take the time of more trials."""


@dataclass(frozen=True)
class Schedule:
    """How a study spends its hours.

    Attributes:
        trials: Trials.
        epochs: Epochs of a full training.
        steps: Training steps of an epoch.
        folds: Folds that a configuration is judged on.
        grace_period: First rung of ASHA.
        full_hours: Hours that one full training takes.
        expected_hours: Hours that the study is expected to take.
    """

    trials: int
    epochs: int
    steps: int
    folds: int
    grace_period: int
    full_hours: float
    expected_hours: float

    @property
    def full_steps(self) -> int:
        """Steps of a full training."""
        return self.epochs * self.steps

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared."""
        return AshaSettings(grace_period=self.grace_period).rungs(self.epochs)


def plan_schedule(
    hours: float,
    step: float,
    validation: float,
    *,
    kind: str,
    at_once: int,
    cases: int,
    alone: float = 1.0,
) -> Schedule:
    """The schedule of a study.

    Args:
        hours: What it may take.
        step: Seconds of a training step.
        validation: Seconds of validation after an epoch.
        kind: `cuda` or `cpu`.
        at_once: Trials that run at the same time.
        cases: Cases of the data.
        alone: How long an epoch takes when no other trial runs, as a share.
    """
    time = _Time(hours, step, validation, at_once, alone)
    if cases < MANY_CASES:
        folded = _on_folds(time, ENOUGH_STEPS[kind])
        if folded.full_steps >= ENOUGH_STEPS[kind] / 2:
            return folded
    return _on_one_split(time)


@dataclass(frozen=True)
class _Time:
    """What a study has, and what its trials take."""

    hours: float
    step: float
    validation: float
    at_once: int
    alone: float

    @property
    def seconds(self) -> float:
        """Seconds that are planned."""
        return self.hours * 3600 * IN_USE

    def starts(self, trials: int) -> float:
        """Seconds of the starts of trials."""
        return trials * START_SECONDS / self.at_once

    def training(self, seconds: float, whole: int = 1) -> tuple[int, int]:
        """Epochs, and steps of each, of a training that takes so many seconds beside others.

        Args:
            seconds: What it may take.
            whole: What the number of epochs is a multiple of.
        """
        with_validation = self.step * (1 + VALIDATION_SHARE)
        most = min(seconds / with_validation, MOST_STEPS)
        least_steps = max(1, round(self.validation / (VALIDATION_SHARE * self.step)))
        epochs = max(FEWEST_EPOCHS, min(EPOCHS, int(most / least_steps)))
        epochs = max(1, epochs // whole) * whole
        steps = int((seconds / epochs - self.validation) / self.step)
        return epochs, _rounded(min(steps, MOST_STEPS // epochs))

    def epoch(self, steps: int) -> float:
        """Seconds of an epoch of so many steps."""
        return steps * self.step + self.validation


def _on_one_split(time: _Time) -> Schedule:
    """The schedule of a study whose best trial trains for most of its time.

    As the running study does it, see `tuner.search.policies.finale`. Of the time before, as many
    trials as come to a first rung that says something.
    """
    final = FINALE_SHARE * time.seconds
    epochs, steps = time.training(final / time.alone / (1 - 1 / REDUCTION_FACTOR**2))
    an_epoch = time.epoch(steps)
    least_steps = max(FIRST_RUNG_STEPS, FIRST_RUNG_SHARE * epochs * steps)
    # of a training that is shorter, at a third of it
    least = min(math.ceil(least_steps / steps), max(1, epochs // REDUCTION_FACTOR))

    def searched(trials: int, grace_period: int) -> float:
        passed = _epochs_to_rungs(trials, epochs, grace_period)
        return passed * an_epoch / time.at_once + time.starts(trials)

    room = time.seconds - final
    trials = next((n for n in TRIALS if searched(n, least) <= room), None)
    if trials is None:
        return _one_training(time)
    rungs = range(epochs // REDUCTION_FACTOR, 0, -1)
    grace_period = next(rung for rung in rungs if searched(trials, rung) <= room)
    full = epochs * an_epoch * time.alone
    return Schedule(
        trials=trials,
        epochs=epochs,
        steps=steps,
        folds=1,
        grace_period=grace_period,
        full_hours=full / 3600,
        expected_hours=(searched(trials, grace_period) + min(full, final)) / 3600,
    )


def _one_training(time: _Time) -> Schedule:
    """The schedule of a time in which no trials can be told apart: the default alone."""
    epochs, steps = time.training((time.seconds - time.starts(1)) / time.alone)
    hours = epochs * time.epoch(steps) * time.alone / 3600
    return Schedule(
        trials=1,
        epochs=epochs,
        steps=steps,
        folds=1,
        grace_period=max(1, epochs // REDUCTION_FACTOR),
        full_hours=hours,
        expected_hours=hours + time.starts(1) / 3600,
    )


def _epochs_to_rungs(trials: int, epochs: int, grace_period: int) -> int:
    """Epochs of all trials up to the rungs that they come to, one of three going on from each."""
    spent, before = 0, 0
    for rung in AshaSettings(grace_period=grace_period).rungs(epochs):
        spent += trials * (rung - before)
        before = rung
        trials //= REDUCTION_FACTOR
    return spent


def _on_folds(time: _Time, enough: int) -> Schedule:
    """The schedule with the most trials that leave enough steps to each, on several folds."""
    plans = [_folded(time, trials) for trials in TRIALS]
    # as long as the time of one training is the limit, more trials take nothing from it
    reached = min(enough, 0.9 * plans[-1].full_steps)
    return next((plan for plan in plans if plan.full_steps >= reached), plans[-1])


def _folded(time: _Time, trials: int) -> Schedule:
    """The schedule with so many trials, whose first rung has enough steps where that can be."""
    plans = [_folded_with(time, trials, rungs) for rungs in (3, 2, 1)]
    enough = (plan for plan in plans if plan.grace_period * plan.steps >= FIRST_RUNG_STEPS)
    return next(enough, plans[-1])


def _folded_with(time: _Time, trials: int, rungs: int) -> Schedule:
    whole = REDUCTION_FACTOR**rungs
    seconds = max(time.seconds - time.starts(trials), 1.0)
    share = seconds * time.at_once * EPOCHS / _epochs_on_folds(trials, EPOCHS, EPOCHS // whole)
    # the best trial trains to the end on each fold, which no other can help it with
    epochs, steps = time.training(min(share, seconds * FINALE_SHARE / FOLDS), whole)
    grace_period = epochs // whole
    an_epoch = time.epoch(steps)
    spent = _epochs_on_folds(trials, epochs, grace_period) * an_epoch / time.at_once
    return Schedule(
        trials=trials,
        epochs=epochs,
        steps=steps,
        folds=FOLDS,
        grace_period=grace_period,
        full_hours=epochs * an_epoch / 3600,
        expected_hours=(max(spent, FOLDS * epochs * an_epoch) + time.starts(trials)) / 3600,
    )


def _epochs_on_folds(trials: int, epochs: int, grace_period: int) -> float:
    """Epochs that all trials are expected to take, as `SpecValues.expected_epochs` has it."""
    policy = AshaSettings(grace_period=grace_period)
    further = max(1.0, RACED_SHARE * policy.expected_full_trainings(epochs, trials))
    return policy.expected_epochs(epochs, trials) + further * (FOLDS - 1) * epochs


def _rounded(steps: int) -> int:
    """A number of steps, with two digits and at least 1."""
    size: int = 10 ** max(0, len(str(steps)) - 2)
    return max(1, steps // size * size)
