"""Epochs, steps and trials that fit into hours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.init.schedule import (
    ENOUGH_STEPS,
    FEWEST_EPOCHS,
    LONGEST,
    MOST_STEPS,
    TRIALS,
    plan_schedule,
)


@given(
    hours=st.floats(0.05, 200),
    step=st.floats(0.01, 10),
    validation=st.floats(0.01, 600),
    at_once=st.integers(1, 8),
)
def test_a_study_fits_into_its_hours(
    hours: float, step: float, validation: float, at_once: int
) -> None:
    plan = plan_schedule(hours, step, validation, kind="cpu", at_once=at_once)
    assert plan.trials in TRIALS
    assert plan.epochs >= FEWEST_EPOCHS
    assert plan.steps >= 1
    assert plan.full_steps <= MOST_STEPS
    assert plan.grace_period <= plan.epochs
    # but for times that no epoch of one step fits into
    if plan.steps > 1:
        assert plan.expected_hours <= hours
        assert plan.full_hours <= hours * LONGEST


def test_more_hours_make_longer_trainings_and_then_more_trials() -> None:
    plans = [
        plan_schedule(hours, 0.3, 10, kind="cuda", at_once=1) for hours in (0.5, 2, 8, 24, 200)
    ]
    steps = [plan.full_steps for plan in plans]
    assert steps == sorted(steps)
    assert plans[0].trials < plans[-1].trials == TRIALS[0]
    assert steps[0] < ENOUGH_STEPS["cuda"] < steps[2]


def test_trials_that_take_no_time_from_the_longest_are_not_left_out() -> None:
    few, many = (plan_schedule(1, 1.0, 5, kind="cpu", at_once=n) for n in (1, 8))
    assert few.full_steps == pytest.approx(many.full_steps, rel=0.15)
    assert few.trials < many.trials


def test_a_slow_validation_makes_epochs_longer() -> None:
    fast, slow = (plan_schedule(8, 0.3, seconds, kind="cuda", at_once=1) for seconds in (2, 120))
    assert fast.epochs > slow.epochs
    assert 120 / (slow.steps * 0.3) < 0.5
    assert slow.rungs[0] == slow.grace_period
