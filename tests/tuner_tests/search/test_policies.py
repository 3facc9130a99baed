"""One suite over all policies, and what each does by itself."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from trial_messages import epoch_result, ray_trial

from tuner.driver.scheduler import RecordScheduler
from tuner.search.policies import (
    POLICIES,
    Action,
    Hyperband,
    MedianStopping,
    Pasha,
    Policy,
    PromotionAsha,
    RungPolicy,
    StoppingAsha,
    build_policy,
)
from tuner.spec.brackets import Bracket, expected_epochs, hyperband_brackets
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState
from tuner.testing import (
    POLICY_CHECKS,
    check_a_resumed_study_decides_alike,
    check_a_study_comes_to_its_end,
    check_no_worker_waits,
    check_undefined_scores_win_nothing,
)
from tuner.testing.policies import noisy_curve, simulate

SPEC = """
config: {max_epochs: 27}
space: {learning_rate: {loguniform: [1e-5, 1e-2]}}
policy: {name: asha, grace_period: 1, reduction_factor: 3}
"""

VARIANTS = [
    "policy: none",
    "policy: median",
    "policy: {name: asha, reduction_factor: 3, promotion: false}",
    "policy: {name: asha, reduction_factor: 3, promotion: false, brackets: 2}",
    "policy: {name: asha, reduction_factor: 3, promotion: true}",
    "policy: {name: asha, reduction_factor: 3, promotion: true, brackets: 2}",
    "policy: pasha",
    "policy: hyperband",
    "policy: {name: pbt, perturbation_interval: 3}",
    "policy: {name: pbt, perturbation_interval: 3, synchronous: false}",
    "policy: {name: pb2, perturbation_interval: 9}",
]
"""Every policy, in every variant."""


def variant(text: str, mode: str = "max", trials: int = 15) -> StudySpec:
    metric = "val_dice" if mode == "max" else "val_loss"
    head = SPEC.replace("policy: {name: asha, grace_period: 1, reduction_factor: 3}", "")
    search = f"search: {{num_trials: {trials}}}"
    return parse_spec(f"{head}metric: {metric}\n{search}\n{text}\n", source="spec.yaml")


def section(text: str) -> Any:
    """The section `policy` of a variant."""
    return yaml.safe_load(text)["policy"]


def in_memory(mode: str = "max") -> StudyRecord:
    space = parse_spec(SPEC, source="spec.yaml").space
    return StudyRecord(Path("memory"), space, mode, InMemoryStorage())


@pytest.fixture
def record() -> StudyRecord:
    return in_memory()


def propose(record: StudyRecord) -> int:
    values = record.space.sample(random.Random(len(record.entries)))
    return record.propose(values, "test").number


def report(record: StudyRecord, policy: Policy, number: int, epoch: int, score: float) -> str:
    """Report through Tune's interface; what became of the trial."""
    scheduler = RecordScheduler(record, policy)
    result = epoch_result(epoch, score)
    decision = scheduler.on_trial_result(None, ray_trial(number), result)  # type: ignore[arg-type]
    state = record.entries[number].state
    assert (decision == TrialScheduler.STOP) == (state is not TrialState.RUNNING)
    return {TrialState.RUNNING: "goes on", TrialState.PAUSED: "pauses"}.get(state, "stops")


class SimulatedTrial(SimpleNamespace):
    """What Ray's schedulers use of a trial."""

    def __hash__(self) -> int:
        return hash(self.trial_id)


study_of = partial(simulate, report=report)
"""A study whose scores go through Tune's interface."""

noisy = noisy_curve


@pytest.mark.parametrize("text", VARIANTS)
def test_a_study_comes_to_its_end(text: str) -> None:
    check_a_study_comes_to_its_end(section(text), report)


@pytest.mark.parametrize("text", VARIANTS)
def test_a_resumed_study_decides_as_it_would_have(text: str) -> None:
    check_a_resumed_study_decides_alike(section(text), report)


@pytest.mark.parametrize("text", VARIANTS)
@pytest.mark.parametrize("check", POLICY_CHECKS)
def test_every_policy_passes_the_checks_for_plugins(check: Callable[[Any], Any], text: str) -> None:
    check(section(text))


@pytest.mark.parametrize("text", VARIANTS)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_score_that_is_never_defined_is_compared_with_none(text: str, mode: str) -> None:
    """Such a trial neither wins nor is taken for a bad one where trials are compared at rungs."""
    record = check_undefined_scores_win_nothing(section(text), report, mode)
    if isinstance(build_policy(record, variant(text, mode)), RungPolicy):
        blank = [entry for entry in record.entries.values() if entry.number % 3 == 0]
        assert {entry.state for entry in blank} == {TrialState.COMPLETED}
        told = [d.reason for d in record.decisions if d.trial == 0 and d.action == "continued"]
        assert told
        assert all("its score is not defined, so it is not compared" in reason for reason in told)


@pytest.mark.parametrize("text", VARIANTS)
def test_an_epoch_reported_again_is_not_judged_again(text: str, record: StudyRecord) -> None:
    policy = build_policy(record, variant(text))
    for _ in range(3):
        propose(record)
    assert report(record, policy, 0, 1, 0.5) in {"goes on", "pauses"}
    before = record.entries[0].state
    report(record, policy, 1, 1, 0.9)
    scheduler = RecordScheduler(record, policy)
    again = scheduler.on_trial_result(None, ray_trial(0), epoch_result(1, 0.1))  # type: ignore[arg-type]
    assert again == TrialScheduler.CONTINUE
    assert record.entries[0].state is before
    assert record.entries[0].scores == {1: 0.5}


@pytest.mark.parametrize("text", VARIANTS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**20), workers=st.integers(1, 6), trials=st.integers(1, 20))
def test_no_worker_waits_while_anything_may_run(
    text: str, seed: int, workers: int, trials: int
) -> None:
    # a population is two at least
    trials = max(trials, 2) if "pb" in text else trials
    record = check_no_worker_waits(section(text), report, seed=seed, workers=workers, trials=trials)
    spec = variant(text, trials=trials)
    policy = build_policy(record, spec)
    if isinstance(policy, PromotionAsha):
        for bracket in range(spec.policy.model_dump().get("brackets", 1)):
            for rung in spec.rungs()[bracket:]:
                at = [n for n in record.scores_at(rung) if policy.bracket(n) == bracket]
                passed = [n for n in at if record.entries[n].epochs > rung]
                assert len(passed) <= max(1, len(at) // 3)


def test_the_stopping_variant_equals_ray_where_ray_is_right(record: StudyRecord) -> None:
    """Ray compares with the scores before this one, so the first trials decide alike."""
    rng = np.random.default_rng(0)
    policy = StoppingAsha(record, (1, 3, 9), 3)
    ray_asha = AsyncHyperBandScheduler(
        time_attr="epoch", metric="score", mode="max", max_t=27, grace_period=1, reduction_factor=3
    )
    agreed = 0
    for number in range(60):
        propose(record)
        trial = SimpleNamespace(trial_id=str(number))
        ray_asha.on_trial_add(None, trial)
        for epoch in range(1, 10):
            score = float(rng.uniform())
            ours = report(record, policy, number, epoch, score)
            reference = ray_asha.on_trial_result(None, trial, {"epoch": epoch, "score": score})
            agreed += (ours == "stops") == (reference == TrialScheduler.STOP)
            if ours == "stops" or reference == TrialScheduler.STOP:
                break
    assert agreed > 60


def test_the_best_third_goes_on(record: StudyRecord) -> None:
    policy = StoppingAsha(record, (1, 3), 3)
    scores = (0.5, 0.4, 0.6, 0.45, 0.7, 0.1)
    decisions = [report(record, policy, propose(record), 1, score) for score in scores]
    assert decisions == ["goes on", "stops", "goes on", "stops", "goes on", "stops"]
    assert record.entries[5].reason == (
        "by ASHA at rung 1 (epoch 1): its score there, 0.1, is worse than 0.5333, the cutoff for "
        "the best 1 in 3 of the 6 trials that came here"
    )
    continued = [d.reason for d in record.decisions if d.action == "continued"]
    assert "it is the first trial that came here" in continued[0]
    assert "0.6, reaches 0.5333, the cutoff for the best 1 in 3 of the 3" in continued[1]
    # the rung's score is not the best one, which tables show beside the reason
    late = propose(record)
    assert report(record, policy, late, 1, 0.9) == "goes on"
    assert report(record, policy, late, 2, 0.8) == "goes on"
    assert report(record, policy, propose(record), 3, 0.5) == "goes on"
    assert report(record, policy, late, 3, 0.3) == "stops"
    assert record.entries[late].reason.endswith("; its best, 0.9, was that of epoch 1")
    broken = propose(record)
    assert report(record, policy, broken, 1, math.nan) == "goes on"
    assert record.decisions[-1].reason == (
        "by ASHA at rung 1 (epoch 1): its score is not defined, so it is not compared"
    )


def test_scores_that_differ_are_told_apart(record: StudyRecord) -> None:
    policy = StoppingAsha(record, (1,), 2)
    for score in (0.36713, 0.36711):
        report(record, policy, propose(record), 1, score)
    assert "0.36711, is worse than 0.36712, the cutoff" in record.entries[1].reason


def test_a_paused_trial_says_where_it_stands(record: StudyRecord) -> None:
    """Also the first ones, of which none may go on yet: no cutoff of inf."""
    policy = PromotionAsha(record, (1, 3), 3)
    told = []
    for score in (0.5, 0.4, 0.3, 0.2):
        number = propose(record)
        report(record, policy, number, 1, score)
        told.append(record.entries[number].reason)
    here = "by ASHA at rung 1 (epoch 1): its score there,"
    assert told == [
        f"{here} 0.5, is number 1 of 1 here; 1 in 3 goes on, when as many are here",
        f"{here} 0.4, is number 2 of 2 here; 1 in 3 goes on, when as many are here",
        f"{here} 0.3, is number 3 of 3 here, of which 1 may go on",
        f"{here} 0.2, is number 4 of 4 here, of which 1 may go on",
    ]
    assert policy.promote() == 0
    record.running(0)
    report(record, policy, 0, 2, 0.6)
    report(record, policy, 0, 3, 0.55)
    assert record.entries[0].reason.endswith(
        "when as many are here; its best, 0.6, was that of epoch 2"
    )
    # the place that was the best one's is taken when a better one comes
    late = propose(record)
    report(record, policy, late, 1, 0.9)
    never = "paused at rung 1 (epoch 1): never promoted: its score there,"
    assert policy.never_promoted(1) == f"{never} 0.4, is number 3 of 5 here, of which 1 went on"
    assert policy.never_promoted(late) == (
        f"{never} 0.9, is number 1 of 5 here, but 1 had gone on before it came"
    )


def test_pasha_says_that_longer_training_changes_nothing(record: StudyRecord) -> None:
    policy = Pasha(record, (1, 2, 4), 2)
    for score in (0.9, 0.8, 0.2, 0.1):
        report(record, policy, propose(record), 1, score)
    for number in (0, 1):
        record.running(number)
        report(record, policy, number, 2, 0.9 - number / 10)
    assert policy.promote() is None
    reason = policy.never_promoted(0)
    assert reason.startswith("paused at rung 2 (epoch 2): never promoted: none goes on from here")
    assert "is number" in policy.never_promoted(3)


def test_an_unlucky_trial_goes_on_when_the_rung_has_filled_up(record: StudyRecord) -> None:
    policy = PromotionAsha(record, (1, 3), 3)
    decisions = [report(record, policy, propose(record), 1, score) for score in (0.8, 0.9)]
    assert decisions == ["pauses", "pauses"]
    assert policy.promote() is None
    # of three one goes on: not the one that came last
    assert report(record, policy, propose(record), 1, 0.1) == "pauses"
    assert policy.promote() == 1
    record.running(1)
    assert policy.promote() is None
    # of six two go on: the better of those that wait, here the first of all
    for score in (0.2, 0.3, 0.4):
        report(record, policy, propose(record), 1, score)
    assert policy.promote() == 0
    # one that is among the best as it comes does not pause at all
    record.running(0)
    for _ in range(2):
        report(record, policy, propose(record), 1, 0.0)
    assert report(record, policy, propose(record), 1, 0.95) == "goes on"


def test_the_highest_rung_is_promoted_first(record: StudyRecord) -> None:
    policy = PromotionAsha(record, (1, 2), 2)
    for score in (0.8, 0.7, 0.6, 0.5):
        assert report(record, policy, propose(record), 1, score) == "pauses"
    for number, score in ((0, 0.6), (1, 0.5)):
        assert policy.promote() == number
        record.running(number)
        if number:
            report(record, policy, 0, 2, 0.6)
            assert report(record, policy, number, 2, score) == "pauses"
    # as good as it is, it lets the one of the higher rung go first
    for score in (0.1, 0.75):
        assert report(record, policy, propose(record), 1, score) == "pauses"
    assert policy.promote() == 0
    record.running(0)
    assert policy.promote() == 5


def test_a_study_of_few_trials_trains_its_best_to_the_end(record: StudyRecord) -> None:
    study_of(record, PromotionAsha(record, (1, 3, 9), 3), noisy, trials=2)
    assert max(entry.epochs for entry in record.entries.values()) == 27


def test_the_top_rung_of_243_epochs_is_there() -> None:
    """Ray computes it with logarithms and loses it to rounding."""
    spec = parse_spec(SPEC.replace("max_epochs: 27", "max_epochs: 243"), source="spec.yaml")
    assert spec.rungs() == (1, 3, 9, 27, 81)
    ray_asha = AsyncHyperBandScheduler(grace_period=1, max_t=243, reduction_factor=3)
    # 1, 3, ..., 243: six rungs with the full budget, of which Ray has five
    assert len(ray_asha._brackets[0]._rungs) == 5


def test_brackets_are_dealt_by_the_seed(record: StudyRecord) -> None:
    one, other = (PromotionAsha(record, (1, 3, 9), 3, brackets=3, seed=4) for _ in range(2))
    dealt = [one.bracket(number) for number in range(300)]
    assert dealt == [other.bracket(number) for number in reversed(range(300))][::-1]
    shares = np.bincount(dealt) / 300
    np.testing.assert_allclose(shares, np.array([9, 3, 1]) / 13, atol=0.08)
    third = next(number for number, bracket in enumerate(dealt) if bracket == 2)
    for _ in range(third + 1):
        propose(record)
    for epoch in range(1, 9):
        assert report(record, one, third, epoch, 0.0) == "goes on"
    assert report(record, one, third, 9, 0.0) == "pauses"


def test_pasha_stops_growing_once_rankings_agree(record: StudyRecord) -> None:
    policy = Pasha(record, (1, 3, 9), 3)
    study_of(record, policy, lambda number, epoch: number + epoch / 100, trials=27)
    # the ranking never changes, so only the two lowest rungs are used
    assert max(entry.epochs for entry in record.entries.values()) == 3


def test_pasha_grows_when_rankings_disagree(record: StudyRecord) -> None:
    policy = Pasha(record, (1, 3, 9), 3)

    def crossing(number: int, epoch: int) -> float:
        return float(number if epoch < 3 else -number)

    study_of(record, policy, crossing, trials=27)
    assert max(entry.epochs for entry in record.entries.values()) > 3


def test_median_stopping_by_hand(record: StudyRecord) -> None:
    policy = MedianStopping(record, grace_period=2, min_trials=3)
    for number, scores in enumerate(((0.1, 0.3), (0.4, 0.6), (0.7, 0.9))):
        propose(record)
        for epoch, score in enumerate(scores, 1):
            assert report(record, policy, number, epoch, score) == "goes on"
    propose(record)
    # averages of the others at epoch 2 are 0.2, 0.5 and 0.8
    assert report(record, policy, 3, 1, 0.0) == "goes on"
    assert report(record, policy, 3, 2, 0.49) == "stops"
    assert "median 0.5 of the averages of 3 other trials" in record.entries[3].reason
    propose(record)
    report(record, policy, 4, 1, 0.5)
    assert report(record, policy, 4, 2, 0.1) == "goes on"


def test_every_policy_is_in_the_suite() -> None:
    assert {variant(text).policy.name for text in VARIANTS} == set(POLICIES)
    assert set(Action) == {Action.CONTINUE, Action.STOP, Action.PAUSE}


def test_a_dead_worker_ends_its_trial_with_a_reason(record: StudyRecord) -> None:
    propose(record)
    trial = ray_trial(0, pickled_error_file=None)
    RecordScheduler(record, Policy(record)).on_trial_error(None, trial)  # type: ignore[arg-type]
    assert record.entries[0].state is TrialState.FAILED
    assert "worker process died" in record.entries[0].reason


def test_hyperband_equals_ray_where_brackets_are_full(record: StudyRecord) -> None:
    """Ray keeps one band of 17 trials; all are there from the start, and one epoch a turn."""
    brackets = hyperband_brackets(9, 3)
    assert [(b.size, b.milestones) for b in brackets] == [(3, (9,)), (5, (3, 9)), (9, (1, 3, 9))]
    policy = Hyperband(record, brackets, 3, planned=17)
    study_of(record, policy, noisy, trials=17, workers=17, epochs=9)

    ray_hyperband = HyperBandScheduler(
        time_attr="epoch", metric="score", mode="max", max_t=9, reduction_factor=3
    )
    trials = [
        SimulatedTrial(trial_id=str(number), status=Trial.PENDING, is_saving=False, epoch=0)
        for number in range(17)
    ]

    def end(trial: SimulatedTrial) -> None:
        if trial.status != Trial.TERMINATED:
            trial.status = Trial.TERMINATED
            ray_hyperband.on_trial_remove(controller, trial)

    controller: Any = SimpleNamespace(stop_trial=end)
    for trial in trials:
        ray_hyperband.on_trial_add(controller, trial)
    while (chosen := ray_hyperband.choose_trial_to_run(controller)) is not None:
        chosen.status, chosen.epoch = Trial.RUNNING, chosen.epoch + 1
        score = noisy(int(chosen.trial_id), chosen.epoch)
        result = {"epoch": chosen.epoch, "score": score}
        decision = ray_hyperband.on_trial_result(controller, chosen, result)
        if decision == TrialScheduler.STOP:
            chosen.status = Trial.TERMINATED
            ray_hyperband.on_trial_complete(controller, chosen, result)
        elif decision == TrialScheduler.PAUSE:
            chosen.status = Trial.PAUSED
        else:
            chosen.status = Trial.PENDING
    trained = [entry.epochs for entry in record.entries.values()]
    assert trained == [trial.epoch for trial in trials]
    assert sum(trained) == expected_epochs(brackets, 3, 17)


@settings(max_examples=200, deadline=None)
@given(max_epochs=st.integers(1, 400), factor=st.integers(2, 5))
def test_brackets_are_those_of_ray(max_epochs: int, factor: int) -> None:
    ray_hyperband = HyperBandScheduler(max_t=max_epochs, reduction_factor=factor)
    for halvings, bracket in enumerate(hyperband_brackets(max_epochs, factor)):
        assert abs(bracket.size - ray_hyperband._get_n0(halvings)) <= 1
        # Ray loses an epoch to rounding, of 243 epochs say
        assert bracket.milestones[0] - ray_hyperband._get_r0(halvings) in {0, 1}
        assert bracket.milestones[-1] == max_epochs
        assert list(bracket.milestones) == sorted(set(bracket.milestones))


def test_a_hyperband_round_waits_for_all_and_says_why_trials_end(record: StudyRecord) -> None:
    policy = Hyperband(record, (Bracket(4, (1, 4)),), 2, planned=6)
    for score in (0.1, 0.4, 0.3):
        assert report(record, policy, propose(record), 1, score) == "pauses"
        assert policy.promote() is None
    assert report(record, policy, propose(record), 1, math.nan) == "stops"
    assert policy.promote() == 1
    assert record.entries[0].state is TrialState.STOPPED
    assert "its score there, 0.1, is not among the best 2 of its round" in record.entries[0].reason
    record.running(1)
    assert policy.promote() == 2
    # of the last bracket the study has two only
    record.running(2)
    assert report(record, policy, propose(record), 1, 0.0) == "pauses"
    assert report(record, policy, propose(record), 1, 0.2) == "goes on"
    assert policy.promote() is None
    assert record.entries[4].state is TrialState.STOPPED


def test_a_trial_that_fails_does_not_hold_up_its_round(record: StudyRecord) -> None:
    policy = Hyperband(record, (Bracket(3, (2, 4)),), 3, planned=3)
    for score in (0.1, 0.4):
        number = propose(record)
        report(record, policy, number, 1, score)
        assert report(record, policy, number, 2, score) == "pauses"
    propose(record)
    assert policy.promote() is None
    record.finish(2, TrialState.FAILED, "an exception")
    assert policy.promote() == 1


def test_median_stopping_equals_ray(record: StudyRecord) -> None:
    """Scores over a level each, from the first epoch on, so that averages are over the same."""
    policy = MedianStopping(record, grace_period=1, min_trials=3)
    rule = MedianStoppingRule(
        time_attr="epoch", metric="score", mode="max", grace_period=1, min_samples_required=3
    )
    controller: Any = SimpleNamespace(get_live_trials=list)
    stopped = 0
    for number in range(30):
        propose(record)
        trial = SimulatedTrial(trial_id=str(number), status=Trial.RUNNING)
        for epoch in range(1, 8):
            score = noisy(number, epoch)
            ours = report(record, policy, number, epoch, score)
            result = {"epoch": epoch, "score": score}
            assert (ours == "stops") == (
                rule.on_trial_result(controller, trial, result) == TrialScheduler.STOP
            )
            if ours == "stops":
                stopped += 1
                break
    assert 3 < stopped < 27
