"""Epochs, steps and trials that fit into hours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.init.schedule import (
    FEWEST_EPOCHS,
    FIRST_RUNG_SHARE,
    FIRST_RUNG_STEPS,
    FOLDS,
    IN_USE,
    MOST_STEPS,
    START_SECONDS,
    TRIALS,
    plan_schedule,
)
from tuner.spec.load import parse_spec
from tuner.spec.spec_values import FINALE_SHARE


@given(
    hours=st.floats(0.05, 200),
    step=st.floats(0.01, 10),
    validation=st.floats(0.01, 600),
    at_once=st.integers(1, 8),
    alone=st.floats(0.2, 1),
    cases=st.sampled_from([6, 24, 200]),
)
def test_a_study_fits_into_its_hours(
    hours: float, step: float, validation: float, at_once: int, alone: float, cases: int
) -> None:
    plan = plan_schedule(
        hours, step, validation, kind="cpu", at_once=at_once, cases=cases, alone=alone
    )
    assert plan.trials in {*TRIALS, 1}
    assert plan.epochs >= FEWEST_EPOCHS
    assert plan.steps >= 1
    assert plan.full_steps <= MOST_STEPS
    assert plan.grace_period <= plan.epochs
    # but for times that the starts alone, or no epoch of one step, fit into
    if plan.steps > 1 and plan.grace_period > 1:
        assert plan.expected_hours <= hours * 1.001
        if plan.folds == 1 and plan.trials > 1:
            # the last rung is the best trial's, from which on it trains alone
            assert plan.full_hours <= hours * FINALE_SHARE * 9 / 8


def test_the_best_trial_has_most_of_the_time_and_the_others_the_rest() -> None:
    hours, step = 1.0, 0.45
    plan = plan_schedule(hours, step, 2.6, kind="cpu", at_once=2, cases=156, alone=0.637)
    assert plan.full_hours == pytest.approx(IN_USE * FINALE_SHARE * 9 / 8 * hours, rel=0.05)
    searched = plan.expected_hours - IN_USE * FINALE_SHARE * hours
    assert 0.5 * (1 - FINALE_SHARE) < searched / (IN_USE * hours) <= 1 - FINALE_SHARE
    assert plan.rungs[0] * plan.steps >= FIRST_RUNG_STEPS


def test_in_a_short_time_the_default_trains_alone() -> None:
    """No three trials come to a rung that says something, and leave the best one its part."""
    plan = plan_schedule(0.15, 0.45, 2.6, kind="cpu", at_once=2, cases=156, alone=0.637)
    assert plan.trials == 1
    assert plan.full_hours == pytest.approx(0.15 * IN_USE, rel=0.1)


def test_more_hours_make_longer_trainings_and_more_trials() -> None:
    plans = [
        plan_schedule(hours, 0.3, 10, kind="cuda", at_once=1, cases=99) for hours in (0.5, 2, 8, 24)
    ]
    steps = [plan.full_steps for plan in plans]
    assert steps == sorted(steps)
    assert plans[0].trials < plans[-1].trials
    for plan in plans:
        first = plan.rungs[0] * plan.steps
        assert first >= min(FIRST_RUNG_STEPS, plan.full_steps // 9)
        assert first >= 0.9 * FIRST_RUNG_SHARE * plan.full_steps


def test_with_more_workers_more_trials_are_tried() -> None:
    few, many = (plan_schedule(3, 1.0, 5, kind="cpu", at_once=n, cases=99) for n in (1, 8))
    assert few.full_steps == many.full_steps
    assert few.trials < many.trials


def test_a_slow_validation_makes_epochs_longer() -> None:
    fast, slow = (
        plan_schedule(8, 0.3, seconds, kind="cuda", at_once=1, cases=99) for seconds in (2, 120)
    )
    assert fast.epochs > slow.epochs
    assert 120 / (slow.steps * 0.3) < 0.5
    assert slow.rungs[0] == slow.grace_period


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
