"""Scores that are not defined in an epoch or a case: who looks at them, and what it makes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage
from trial_messages import epoch_result, ray_trial

from tuner.driver.scheduler import RecordScheduler
from tuner.search.policies import Hyperband, build_policy
from tuner.search.searchers import SEARCHERS, SearchView
from tuner.search.searchers.gp import observations
from tuner.search.searchers.ranks import ranks_by_rung
from tuner.spec.brackets import Bracket
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.statistics import compare, interval
from tuner.study.trial_entry import TrialState
from tuner.testing import check_undefined_scores_are_no_harm

SPACE = """
config: {max_epochs: 9}
space:
  learning_rate: {loguniform: [1e-5, 1e-2]}
  optimizer: {choice: [adamw, sgd]}
"""

NAN = math.nan


def spec_of(more: str = "") -> StudySpec:
    return parse_spec(f"{SPACE}\n{more}\n", source="space.yaml")


def record_of(spec: StudySpec) -> StudyRecord:
    return StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())


def propose(record: StudyRecord) -> int:
    rate = 1e-5 * 1.3 ** len(record.entries)
    return record.propose({"learning_rate": rate, "optimizer": "adamw"}, "test").number


def report(record: StudyRecord, policy: Any, number: int, *scores: float) -> TrialState:
    """Report the next epochs of a trial, for as long as it runs."""
    for score in scores:
        entry = record.entries[number]
        if entry.state is not TrialState.RUNNING:
            break
        undefined = "val_dice is not defined" if math.isnan(score) else ""
        result = epoch_result(entry.epochs + 1, score, undefined=undefined)
        scheduler = RecordScheduler(record, policy)
        scheduler.on_trial_result(None, ray_trial(number), result)  # type: ignore[arg-type]
    return record.entries[number].state


@pytest.mark.parametrize(
    "text",
    [
        "policy: {name: asha, promotion: false, reduction_factor: 3}",
        "policy: {name: asha, promotion: true, reduction_factor: 3}",
        "policy: {name: pasha, reduction_factor: 3}",
        "policy: median",
        "policy: none",
    ],
)
def test_a_trial_goes_on_where_its_score_is_not_defined(text: str) -> None:
    spec = spec_of(text)
    record = record_of(spec)
    policy = build_policy(record, spec)
    for level in (0.5, 0.6, 0.7, 0.8):
        report(record, policy, propose(record), *(level + 0.01 * epoch for epoch in range(9)))
    before = {number: entry.state for number, entry in record.entries.items()}
    number = propose(record)
    assert report(record, policy, number, *[NAN] * 9) is TrialState.RUNNING
    assert record.entries[number].epochs == 9
    told = [decision for decision in record.decisions if decision.action == "undefined"]
    assert [decision.epoch for decision in told] == list(range(1, 10))
    # and it changes nothing for the others
    assert before == {n: record.entries[n].state for n in before}
    for entry in record.with_state(TrialState.RUNNING):
        record.finish(entry.number, TrialState.COMPLETED, "trained to the end")
    best = record.best()
    assert best is not None
    assert best.number != number


def test_a_trial_is_compared_again_where_it_has_a_score() -> None:
    spec = spec_of("policy: {name: asha, promotion: false, reduction_factor: 3}")
    record = record_of(spec)
    policy = build_policy(record, spec)
    for _ in range(3):
        report(record, policy, propose(record), 0.8, 0.8, 0.8, 0.8)
    assert report(record, policy, propose(record), NAN, NAN, 0.1) is TrialState.STOPPED
    assert record.entries[3].epochs == 3


def test_median_stopping_averages_the_epochs_that_have_a_score() -> None:
    spec = spec_of("policy: {name: median, grace_period: 2}")
    record = record_of(spec)
    policy = build_policy(record, spec)
    for _ in range(3):
        report(record, policy, propose(record), NAN, 0.8)
    weak = propose(record)
    assert report(record, policy, weak, 0.1, NAN) is TrialState.STOPPED
    for told in ("by median stopping at epoch 2", "0.1", "the median 0.8"):
        assert told in record.entries[weak].reason


def test_in_a_hyperband_round_an_undefined_score_comes_last_but_may_fill_it() -> None:
    record = record_of(spec_of())
    policy = Hyperband(record, (Bracket(4, (1, 4)),), 2, planned=4)
    for score in (NAN, 0.2, NAN):
        assert report(record, policy, propose(record), score) is TrialState.PAUSED
    assert report(record, policy, propose(record), NAN) is TrialState.STOPPED
    for told in ("not defined", "is not among the best 2 of its round"):
        assert told in record.entries[3].reason
    for survivor in (0, 1):
        assert policy.promote() == survivor
        record.running(survivor)
    assert policy.promote() is None
    assert record.entries[2].state is TrialState.STOPPED


def test_pasha_ranks_trials_by_scores_that_both_have() -> None:
    """Trials 1 and 3 swap places between the two rungs; trial 0 has no score at the lower one."""
    spec = spec_of("policy: {name: pasha, reduction_factor: 3}")
    record = record_of(spec)
    policy: Any = build_policy(record, spec)
    for scores in ((NAN, NAN, 0.9), (0.8, 0.8, 0.1), (NAN, NAN, 0.2), (0.7, 0.7, 0.7)):
        number = propose(record)
        for epoch, score in enumerate(scores, 1):
            record.report(number, epoch, score, {}, 1.0)
    assert policy._disagree(1, 3)
    alike = record_of(spec)
    policy = build_policy(alike, spec)
    for scores in ((NAN, NAN, 0.9), (0.8, 0.8, 0.8), (0.1, 0.1, 0.1)):
        number = propose(alike)
        for epoch, score in enumerate(scores, 1):
            alike.report(number, epoch, score, {}, 1.0)
    assert not policy._disagree(1, 3)


def test_a_population_compares_those_that_have_a_score() -> None:
    spec = spec_of("policy: {name: pbt, perturbation_interval: 1}\nsearch: {num_trials: 5}")
    record = record_of(spec)
    policy = build_policy(record, spec)
    for _ in range(5):
        propose(record)
    for number, score in enumerate((0.9, NAN, 0.5, 0.1, 0.6)):
        report(record, policy, number, score)
    while (number := policy.promote()) is not None:  # type: ignore[assignment]
        record.running(number)
    assert [bool(entry.lineage) for entry in record.entries.values()] == [
        *[False] * 3,
        True,
        False,
    ]
    assert record.entries[3].lineage[0].donor == 0


def view(record: StudyRecord, spec: StudySpec) -> SearchView:
    rungs = (*spec.rungs(), spec.max_epochs)
    return SearchView(record, len(record.entries), 0, spec.default_point(), rungs)


def test_an_undefined_score_is_no_result_and_no_bad_one() -> None:
    """Of trial 2 the first rung counts; trial 3 has no result; trial 4 diverged."""
    spec = spec_of()
    record = record_of(spec)
    curves = ((0.1, 0.1, 0.1), (0.5, 0.5, 0.5), (0.9, 0.9, NAN), (NAN, NAN, NAN), ())
    for number, curve in enumerate(curves):
        propose(record)
        for epoch, score in enumerate(curve, 1):
            record.report(number, epoch, score, {}, 1.0)
        record.finish(number, TrialState.STOPPED if curve else TrialState.DIVERGED, "done")
    ranks = ranks_by_rung(view(record, spec))
    assert sorted(ranks, key=lambda number: ranks[number]) == [4, 2, 0, 1]
    points, _, values, _ = observations(view(record, spec))
    assert np.isfinite(values).all()
    assert len(points) == len(values) == 2 + 2 + 1


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"grid"}))
def test_searchers_learn_beside_scores_that_are_not_defined(name: str) -> None:
    check_undefined_scores_are_no_harm(name)


def test_means_of_a_confirmation_leave_out_what_is_not_defined() -> None:
    """A case that one seed leaves empty, rightly, and in which another finds a false lesion."""
    scores = np.array([[0.8, 0.6, NAN], [0.7, 0.5, 0.0], [0.9, 0.7, NAN]])
    found = interval(scores)
    assert found.mean == pytest.approx((0.7 + 0.4 + 0.8) / 3)
    assert found.low < found.mean < found.high
    other = np.array([[0.5, 0.3, 0.0], [0.4, 0.2, 0.0], [0.6, 0.4, NAN]])
    against = compare(scores, other)
    # by case: 0.8 - 0.5, 0.6 - 0.3, 0 - 0
    assert against.difference.mean == pytest.approx(0.2)
    assert against.cases == 3
    assert math.isfinite(against.p_value)
