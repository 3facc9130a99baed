"""Epochs, steps and trials that fit into the hours that a study is given."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.spec.policies import AshaSettings

TRIALS = (32, 24, 16, 12, 8, 6, 4, 3)
"""Trials of a study: as many of these as leave enough steps to each full training."""

ENOUGH_STEPS = {"cuda": 10_000, "cpu": 2_500}
"""Steps of a full training below which rather fewer trials are tried. With nnU-Net's 250 an epoch
Hippocampus is learnt after 30 epochs, harder tasks go on (Auto-nnU-Net's published curves)."""

MOST_STEPS = 250_000
"""Steps of a full training at most: nnU-Net's 1000 epochs of 250."""

EPOCHS = 81
"""Epochs of a full training, unless validation would take too long: with rungs at 3, 9 and 27."""

FEWEST_EPOCHS = 9

VALIDATION_SHARE = 0.25
"""Time of validation at most, as a share of that of training."""

START_SECONDS = 10.0
"""Seconds that a trial takes before its first step, and for the checkpoint of its epochs."""

IN_USE = 0.85
"""Share of the hours that trials are planned to fill; the rest is for what was not foreseen."""


LONGEST = 0.6
"""Share of the study's time that one full training takes at most."""


@dataclass(frozen=True)
class Schedule:
    """How a study spends its hours.

    Attributes:
        trials: Trials.
        epochs: Epochs of a full training.
        steps: Training steps of an epoch.
        grace_period: First rung of ASHA.
        full_hours: Hours that one full training takes.
        expected_hours: Hours that the study is expected to take.
    """

    trials: int
    epochs: int
    steps: int
    grace_period: int
    full_hours: float
    expected_hours: float

    @property
    def rungs(self) -> tuple[int, ...]:
        """Epochs at which trials are compared."""
        return AshaSettings(grace_period=self.grace_period).rungs(self.epochs)


def plan_schedule(
    hours: float, step: float, validation: float, *, kind: str, at_once: int
) -> Schedule:
    """The schedule of a study.

    Args:
        hours: What it may take.
        step: Seconds of a training step.
        validation: Seconds of validation after an epoch.
        kind: `cuda` or `cpu`.
        at_once: Trials that run at the same time.
    """
    chosen = None
    for trials in TRIALS:
        chosen = _with_trials(trials, hours, step, validation, at_once)
        if chosen.epochs * chosen.steps >= ENOUGH_STEPS[kind]:
            break
    assert chosen is not None
    return chosen


def _with_trials(
    trials: int, hours: float, step: float, validation: float, at_once: int
) -> Schedule:
    starts = trials * START_SECONDS / at_once
    seconds = max(hours * 3600 * IN_USE - starts, 1.0)
    with_validation = step * (1 + VALIDATION_SHARE)
    most = min(_full_seconds(seconds, trials, EPOCHS, at_once) / with_validation, MOST_STEPS)
    least_steps = max(1, round(validation / (VALIDATION_SHARE * step)))
    epochs = max(FEWEST_EPOCHS, min(EPOCHS, int(most / least_steps)))
    an_epoch = _full_seconds(seconds, trials, epochs, at_once) / epochs
    steps = min(_rounded(int((an_epoch - validation) / step)), MOST_STEPS // epochs)
    an_epoch = steps * step + validation
    expected = _policy(epochs).expected_epochs(epochs, trials) * an_epoch / at_once
    return Schedule(
        trials=trials,
        epochs=epochs,
        steps=steps,
        grace_period=_policy(epochs).grace_period,
        full_hours=epochs * an_epoch / 3600,
        expected_hours=(max(expected, epochs * an_epoch) + starts) / 3600,
    )


def _policy(epochs: int) -> AshaSettings:
    """Halving with three rungs where there are epochs for it."""
    return AshaSettings(grace_period=max(1, epochs // 27))


def _full_seconds(seconds: float, trials: int, epochs: int, at_once: int) -> float:
    """Seconds of a full training, so that all trials fit into the study's."""
    full_trainings = _policy(epochs).expected_epochs(epochs, trials) / epochs
    # the best trial trains to the end, which no other can help it with
    return min(seconds * at_once / full_trainings, seconds * LONGEST)


def _rounded(steps: int) -> int:
    """A number of steps, with two digits and at least 1."""
    size: int = 10 ** max(0, len(str(steps)) - 2)
    return max(1, steps // size * size)
