"""Epochs, steps and trials that fit into the hours that a study is given."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.spec.policies import AshaSettings
from tuner.spec.spec_values import RACED_SHARE

TRIALS = (48, 32, 24, 16, 12, 8, 6, 4, 3)
"""Trials of a study: as many of these as leave enough steps to each full training."""

ENOUGH_STEPS = {"cuda": 10_000, "cpu": 2_500}
"""Steps of a full training below which rather fewer trials are tried. With nnU-Net's 250 an epoch
Hippocampus is learnt after 30 epochs, harder tasks go on (Auto-nnU-Net's published curves)."""

MOST_STEPS = 250_000
"""Steps of a full training at most: nnU-Net's 1000 epochs of 250."""

EPOCHS = 81
"""Epochs of a full training, unless validation would take too long: with rungs at 3, 9 and 27."""

FEWEST_EPOCHS = 9

RUNGS = (3, 2, 1)
"""Rungs that are tried, one after the other."""

FIRST_RUNG_STEPS = 350
"""Training steps below which trials are not compared: before, scores say how soon a network stops
predicting background alone, which on Hippocampus takes nnU-Net's momentum some 500 steps, and AdamW
100."""

VALIDATION_SHARE = 0.1
"""Time of validation at most, as a share of that of training."""

START_SECONDS = 10.0
"""Seconds that a trial takes before its first step, and for the checkpoint of its epochs."""

IN_USE = 0.85
"""Share of the hours that trials are planned to fill; the rest is for what was not foreseen."""


LONGEST = 0.6
"""Share of the study's time that one full training takes at most."""


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
    hours: float, step: float, validation: float, *, kind: str, at_once: int, cases: int
) -> Schedule:
    """The schedule of a study.

    Args:
        hours: What it may take.
        step: Seconds of a training step.
        validation: Seconds of validation after an epoch.
        kind: `cuda` or `cpu`.
        at_once: Trials that run at the same time.
        cases: Cases of the data.
    """
    enough = ENOUGH_STEPS[kind]
    time = _Time(hours, step, validation, at_once)
    if cases < MANY_CASES:
        folded = _best(time, FOLDS, enough)
        if folded.full_steps >= enough / 2:
            return folded
    return _best(time, 1, enough)


@dataclass(frozen=True)
class _Time:
    """What a study has, and what its trials take."""

    hours: float
    step: float
    validation: float
    at_once: int

    def starts(self, trials: int) -> float:
        """Seconds of the starts of trials."""
        return trials * START_SECONDS / self.at_once

    def of_full_training(self, trials: int, epochs: int, folds: int, rungs: int) -> float:
        """Seconds that a full training on one fold may take, so that all trials fit."""
        seconds = max(self.hours * 3600 * IN_USE - self.starts(trials), 1.0)
        # the best trial trains to the end on each fold, which no other can help it with
        longest = seconds * LONGEST / folds
        return min(seconds * self.at_once * epochs / _epochs(trials, epochs, folds, rungs), longest)


def _best(time: _Time, folds: int, enough: int) -> Schedule:
    """The schedule with the most trials that leave enough steps to each."""
    plans = [_with_trials(time, trials, folds) for trials in TRIALS]
    # as long as the time of one training is the limit, more trials take nothing from it
    reached = min(enough, 0.9 * plans[-1].full_steps)
    return next((plan for plan in plans if plan.full_steps >= reached), plans[-1])


def _with_trials(time: _Time, trials: int, folds: int) -> Schedule:
    """The schedule with so many trials, with as many rungs as have enough steps before them."""
    plans = (_with_rungs(time, trials, folds, rungs) for rungs in RUNGS)
    enough = (plan for plan in plans if plan.grace_period * plan.steps >= FIRST_RUNG_STEPS)
    return next(enough, _with_rungs(time, trials, folds, RUNGS[-1]))


def _with_rungs(time: _Time, trials: int, folds: int, rungs: int) -> Schedule:
    step, validation = time.step, time.validation
    with_validation = step * (1 + VALIDATION_SHARE)
    most = min(time.of_full_training(trials, EPOCHS, folds, rungs) / with_validation, MOST_STEPS)
    least_steps = max(1, round(validation / (VALIDATION_SHARE * step)))
    # so that the last rung is a third of the epochs
    whole = 3**rungs
    epochs = max(FEWEST_EPOCHS, min(EPOCHS, int(most / least_steps)) // whole * whole)
    an_epoch = time.of_full_training(trials, epochs, folds, rungs) / epochs
    steps = _rounded(min(int((an_epoch - validation) / step), MOST_STEPS // epochs))
    an_epoch = steps * step + validation
    expected = _epochs(trials, epochs, folds, rungs) * an_epoch / time.at_once
    return Schedule(
        trials=trials,
        epochs=epochs,
        steps=steps,
        folds=folds,
        grace_period=_policy(epochs, rungs).grace_period,
        full_hours=epochs * an_epoch / 3600,
        expected_hours=(max(expected, folds * epochs * an_epoch) + time.starts(trials)) / 3600,
    )


def _policy(epochs: int, rungs: int) -> AshaSettings:
    """Halving with so many rungs where there are epochs for it."""
    return AshaSettings(grace_period=max(1, epochs // 3**rungs))


def _epochs(trials: int, epochs: int, folds: int, rungs: int) -> float:
    """Epochs that all trials are expected to take, as `SpecValues.expected_epochs` has it."""
    policy = _policy(epochs, rungs)
    further = max(1.0, RACED_SHARE * policy.expected_full_trainings(epochs, trials))
    return policy.expected_epochs(epochs, trials) + further * (folds - 1) * epochs


def _rounded(steps: int) -> int:
    """A number of steps, with two digits and at least 1."""
    size: int = 10 ** max(0, len(str(steps)) - 2)
    return max(1, steps // size * size)
