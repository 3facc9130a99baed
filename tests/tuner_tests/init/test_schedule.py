"""Epochs, steps and trials that fit into hours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.init.schedule import (
    ENOUGH_STEPS,
    FEWEST_EPOCHS,
    FIRST_RUNG_STEPS,
    FOLDS,
    LONGEST,
    MOST_STEPS,
    START_SECONDS,
    TRIALS,
    plan_schedule,
)
from tuner.spec.load import parse_spec


@given(
    hours=st.floats(0.05, 200),
    step=st.floats(0.01, 10),
    validation=st.floats(0.01, 600),
    at_once=st.integers(1, 8),
    cases=st.sampled_from([6, 24, 200]),
)
def test_a_study_fits_into_its_hours(
    hours: float, step: float, validation: float, at_once: int, cases: int
) -> None:
    plan = plan_schedule(hours, step, validation, kind="cpu", at_once=at_once, cases=cases)
    assert plan.trials in TRIALS
    assert plan.epochs >= FEWEST_EPOCHS
    assert plan.steps >= 1
    assert plan.full_steps <= MOST_STEPS
    assert plan.grace_period <= plan.epochs
    # but for times that no epoch of one step fits into
    if plan.steps > 1:
        assert plan.expected_hours <= hours
        assert plan.full_hours * plan.folds <= hours * LONGEST


def test_more_hours_make_longer_trainings_and_then_more_trials() -> None:
    plans = [
        plan_schedule(hours, 0.3, 10, kind="cuda", at_once=1, cases=99)
        for hours in (0.5, 2, 8, 24, 200)
    ]
    steps = [plan.full_steps for plan in plans]
    assert steps == sorted(steps)
    assert plans[0].trials < plans[-1].trials == TRIALS[0]
    assert steps[0] < ENOUGH_STEPS["cuda"] < steps[2]


def test_trials_that_take_no_time_from_the_longest_are_not_left_out() -> None:
    few, many = (plan_schedule(1, 1.0, 5, kind="cpu", at_once=n, cases=99) for n in (1, 8))
    assert few.full_steps == pytest.approx(many.full_steps, rel=0.15)
    assert few.trials < many.trials


def test_a_slow_validation_makes_epochs_longer() -> None:
    fast, slow = (
        plan_schedule(8, 0.3, seconds, kind="cuda", at_once=1, cases=99) for seconds in (2, 120)
    )
    assert fast.epochs > slow.epochs
    assert 120 / (slow.steps * 0.3) < 0.5
    assert slow.rungs[0] == slow.grace_period


@pytest.mark.parametrize("hours", [0.25, 1, 2, 8, 24])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_trials_are_not_compared_too_early(hours: float, kind: str) -> None:
    plan = plan_schedule(hours, 0.3, 5, kind=kind, at_once=2, cases=99)
    assert plan.rungs
    # the last rung is a third of a training, whatever their number
    assert plan.rungs[-1] * 3 == plan.epochs
    if plan.full_steps > 9 * FIRST_RUNG_STEPS:
        assert plan.rungs[0] * plan.steps >= FIRST_RUNG_STEPS


def test_few_cases_are_judged_on_folds_where_the_hours_allow_it() -> None:
    few, many, short = (
        plan_schedule(hours, 0.3, 5, kind="cuda", at_once=1, cases=cases)
        for hours, cases in ((24, 20), (24, 200), (0.5, 20))
    )
    assert (few.folds, many.folds, short.folds) == (FOLDS, 1, 1)


def test_the_study_of_a_schedule_expects_the_same_epochs() -> None:
    plan = plan_schedule(24, 0.3, 5, kind="cuda", at_once=1, cases=20)
    spec = parse_spec(
        f"""
config: {{max_epochs: {plan.epochs}}}
space: {{learning_rate: {{loguniform: [1e-4, 1e-1]}}}}
search: {{num_trials: {plan.trials}, folds: {plan.folds}}}
policy: {{name: asha, grace_period: {plan.grace_period}}}
""",
        source="s",
    )
    an_epoch = plan.steps * 0.3 + 5
    hours = (spec.expected_epochs() * an_epoch + plan.trials * START_SECONDS) / 3600
    assert plan.expected_hours == pytest.approx(hours)
