"""Folds as a fidelity: what goes on, what pauses, what stops where a fold ends."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from tuner.errors import SpecError
from tuner.search.policies import Action, FoldRace, Hyperband, Policy, build_policy
from tuner.search.policies.fold_race import PairedNoise, chance_ahead, paired_noise
from tuner.search.searchers.ranks import ranks_by_rung
from tuner.search.searchers.view import SearchView
from tuner.spec.brackets import Bracket
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import TrialState, epochs_spent
from tuner.testing.policies import report_to_record, simulate

EPOCHS, FOLDS, TRIALS = 9, 3, 12

POLICIES: list[Any] = [
    "none",
    "median",
    "pasha",
    "hyperband",
    {"name": "asha", "reduction_factor": 3, "promotion": True},
    {"name": "asha", "reduction_factor": 3, "promotion": False},
    {"name": "asha", "reduction_factor": 3, "brackets": 2},
]


def spec_of(policy: Any = "none", mode: str = "max", **search: Any) -> StudySpec:
    return StudySpec.from_dict(
        {
            "metric": "val_dice" if mode == "max" else "val_loss",
            "config": {"max_epochs": EPOCHS},
            "space": {"learning_rate": {"loguniform": [1e-5, 1e-2]}},
            "search": {"num_trials": TRIALS, "folds": FOLDS, **search},
            "policy": policy,
        }
    )


def record_of(spec: StudySpec, folder: Path | None = None) -> StudyRecord:
    storage = InMemoryStorage() if folder is None else None
    return StudyRecord(
        folder or Path("memory"), spec.space, spec.mode, storage, fold_epochs=spec.fold_epochs
    )


def curve(number: int, epoch: int) -> float:
    """A level of the trial, how hard the fold is, and a little noise of both."""
    fold, own = divmod(epoch - 1, EPOCHS)
    level = np.random.default_rng((number, 1)).uniform(0.6, 0.8)
    hard = np.random.default_rng((fold, 2)).normal(0, 0.1)
    noise = np.random.default_rng((number, fold, 3)).normal(0, 0.005)
    return float((level + hard + noise) * (1 - 0.2 / (own + 1)))


def add(record: StudyRecord, folds: list[float], state: TrialState | None = None) -> int:
    """A trial with such a score in every epoch of its folds."""
    number = record.propose({"learning_rate": 1e-3}, "test").number
    for epoch in range(1, EPOCHS * len(folds) + 1):
        record.report(number, epoch, folds[(epoch - 1) // EPOCHS], {}, 1.0)
    if state is TrialState.PAUSED:
        record.pause(number, "test")
    elif state is not None:
        record.finish(number, state, "test")
    return number


def race_of(record: StudyRecord, planned: int = TRIALS) -> FoldRace:
    return FoldRace(record, Policy(record), FOLDS, planned)


@pytest.mark.parametrize(("mode", "race"), [("max", True), ("min", True), ("max", False)])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_study_comes_to_its_end_and_its_winner_has_every_fold(
    policy: Any, mode: str, race: bool
) -> None:
    spec = spec_of(policy, mode, race=race)
    record, sign = record_of(spec), 1 if mode == "max" else -1
    built = build_policy(record, spec)
    simulate(record, built, lambda n, e: sign * curve(n, e), trials=TRIALS, epochs=spec.full_epochs)
    best = record.best()
    assert best is not None
    assert (best.state, best.finished_folds) == (TrialState.COMPLETED, FOLDS)
    assert len(record.entries) == TRIALS
    assert not record.with_state(TrialState.RUNNING)
    for entry in record.with_state(TrialState.PAUSED):
        assert built.never_promoted(entry.number)
    if not race and policy != "pasha":
        came = [entry for entry in record.entries.values() if entry.epochs >= EPOCHS]
        assert {entry.state for entry in came} <= {TrialState.COMPLETED}


def test_a_race_chooses_what_all_folds_would_have_chosen_for_fewer_epochs() -> None:
    spent, winners = [], []
    for race in (True, False):
        spec = spec_of(race=race)
        record = record_of(spec)
        simulate(record, build_policy(record, spec), curve, trials=TRIALS, epochs=spec.full_epochs)
        winner = record.best()
        assert winner is not None
        spent.append(epochs_spent(record.entries.values()))
        winners.append(winner.number)
    assert winners[0] == winners[1]
    assert spent[1] == TRIALS * FOLDS * EPOCHS
    assert spent[0] < 0.6 * spent[1]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_study_that_is_cut_off_anywhere_decides_alike(policy: Any, tmp_path: Path) -> None:
    """Reopened from the disk every few epochs, with a policy of its own each time."""
    spec = spec_of(policy, num_trials=5)
    traces = []
    for steps in (10_000, 7):
        folder, trace = tmp_path / str(steps), []
        folder.mkdir()
        while True:
            record = record_of(spec, folder)
            events = simulate(
                record,
                build_policy(record, spec),
                curve,
                trials=5,
                workers=1,
                epochs=spec.full_epochs,
                steps=steps,
            )
            record.close()
            trace += events
            if not events:
                break
        traces.append(trace)
    assert traces[0] == traces[1]


def test_trials_are_compared_on_the_folds_that_both_have() -> None:
    """The second fold is a hard one; the better trial is the one that is better on the same."""
    record = record_of(spec_of())
    add(record, [0.80, 0.50], TrialState.COMPLETED)
    ahead = add(record, [0.81])
    decision = race_of(record).judge(ahead, EPOCHS)
    assert decision.action is Action.CONTINUE
    assert decision.reason == (
        "by the race at the end of fold 1 of 3: 0.01 ahead of trial 0 on the fold that both have"
    )
    # a mean of all its folds would be 0.65, and this trial ahead of it
    behind = add(record, [0.79])
    assert race_of(record).judge(behind, EPOCHS).action is Action.PAUSE


def test_a_trial_that_is_behind_beyond_doubt_stops() -> None:
    record = record_of(spec_of())
    add(record, [0.80, 0.50, 0.70], TrialState.COMPLETED)
    add(record, [0.70, 0.401, 0.601], TrialState.COMPLETED)
    far, near = add(record, [0.7]), add(record, [0.7995])
    decision = race_of(record).judge(far, EPOCHS)
    assert decision.action is Action.STOP
    assert decision.reason == (
        "by the race at the end of fold 1 of 3: 0.1 behind trial 0 on the fold that both have, "
        "beyond doubt"
    )
    assert race_of(record).judge(near, EPOCHS).action is Action.PAUSE


def test_a_trial_that_is_behind_the_default_beyond_doubt_stops() -> None:
    """Though nobody can tell it from the best trial, which was worse on the fold that both have."""
    record = record_of(spec_of())
    default = record.propose({"learning_rate": 1e-2}, "default").number
    for epoch in range(1, EPOCHS + 1):
        record.report(default, epoch, 0.90, {}, 1.0)
    record.finish(default, TrialState.STOPPED, "test")
    add(record, [0.80, 0.85, 0.70], TrialState.COMPLETED)
    add(record, [0.70, 0.751, 0.601], TrialState.COMPLETED)
    behind = add(record, [0.7995])
    decision = race_of(record).judge(behind, EPOCHS)
    assert decision.action is Action.STOP
    assert decision.reason == (
        "by the race at the end of fold 1 of 3: 0.1005 behind trial 0 on the fold that both have, "
        "beyond doubt"
    )


def test_trials_within_doubt_go_on_when_no_new_one_is_left() -> None:
    record = record_of(spec_of())
    add(record, [0.80, 0.50, 0.70], TrialState.COMPLETED)
    add(record, [0.70, 0.41, 0.59], TrialState.COMPLETED)
    add(record, [0.795], TrialState.PAUSED)
    likely = add(record, [0.799], TrialState.PAUSED)
    hopeless = add(record, [0.6], TrialState.PAUSED)
    assert race_of(record).promote() is None
    assert race_of(record, planned=5).promote() == likely
    assert race_of(record).promote(last=True) == likely
    record.finish(likely, TrialState.FAILED, "test")
    record.finish(2, TrialState.FAILED, "test")
    assert race_of(record).promote(last=True) is None
    assert race_of(record).never_promoted(hopeless) == (
        "by the race after fold 1 of 3: 0.2 behind trial 0 on the fold that both have"
    )


def test_a_paused_trial_goes_on_as_soon_as_it_is_ahead() -> None:
    """Of what is the best trial now: the one that was ahead failed."""
    record = record_of(spec_of())
    leader = add(record, [0.9])
    add(record, [0.8], TrialState.PAUSED)
    add(record, [0.7], TrialState.PAUSED)
    assert race_of(record).promote() is None
    record.finish(leader, TrialState.FAILED, "test")
    assert race_of(record).promote() == 1


def test_scores_that_are_not_defined_lose_no_race() -> None:
    record = record_of(spec_of())
    add(record, [0.8, 0.8, 0.8], TrialState.COMPLETED)
    blank = add(record, [math.nan])
    assert race_of(record).judge(blank, EPOCHS).action is Action.CONTINUE
    assert record.best() is record.entries[0]


def test_the_noise_is_that_of_a_two_way_analysis_of_variance() -> None:
    """Where all have all folds: residuals of score = trial + fold, by the textbook."""
    rng = np.random.default_rng(3)
    table = rng.normal(0, 1, (6, 1)) + rng.normal(0, 1, (1, 4)) + rng.normal(0, 0.1, (6, 4))
    residuals = (
        table - table.mean(axis=1, keepdims=True) - table.mean(axis=0, keepdims=True) + table.mean()
    )
    noise = paired_noise(table.tolist())
    assert noise.freedom == 5 * 3
    assert noise.deviation == pytest.approx(math.sqrt((residuals**2).sum() / 15))


def test_the_noise_of_trials_with_few_folds_is_not_biased() -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        table = rng.normal(0, 1, (9, 1)) + rng.normal(0, 1, (1, 3)) + rng.normal(0, 0.1, (9, 3))
        rows = [row[: 1 + index % 3].tolist() for index, row in enumerate(table)]
        noise = paired_noise(rows)
        assert noise.freedom == (6 - 1) + (3 - 1)
        found.append(noise.deviation**2)
    assert np.mean(found) == pytest.approx(0.01, rel=0.05)
    assert math.isnan(paired_noise([[0.5], [0.4, 0.3]]).deviation)
    assert math.isnan(paired_noise([]).deviation)


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_the_chance_is_how_often_such_a_trial_is_ahead_in_the_end(shared: int) -> None:
    """By simulation, with no prior knowledge of how good either is."""
    rng, folds, spread = np.random.default_rng(shared), 5, 0.02
    # a level that could be anything, seen with noise; then the rest of the folds
    level = rng.uniform(-0.3, 0.3, 400_000)
    gaps = level[:, None] + math.sqrt(2) * spread * rng.normal(size=(len(level), folds))
    seen, final = gaps[:, :shared].mean(axis=1), gaps.mean(axis=1)
    for gap in (-0.03, -0.01, 0.01):
        alike = np.abs(seen - gap) < 0.001
        expected = float((final[alike] > 0).mean())
        chance = chance_ahead(gap, shared, folds, PairedNoise(spread, 10_000))
        assert chance == pytest.approx(expected, abs=0.03)


def test_without_an_estimate_of_the_noise_nothing_is_ruled_out() -> None:
    assert chance_ahead(-1.0, 1, 3, paired_noise([])) == 1.0


def test_the_best_trial_is_that_of_the_best_mean_over_most_folds() -> None:
    record = record_of(spec_of())
    add(record, [0.95], TrialState.STOPPED)
    add(record, [0.70, 0.80, 0.72], TrialState.COMPLETED)
    add(record, [0.71, 0.80, 0.70], TrialState.COMPLETED)
    best = record.best()
    assert best is not None
    assert best.number == 1
    assert best.best("max") == (27, pytest.approx(0.74))
    assert best.fold_scores("max") == [0.70, 0.80, 0.72]
    assert best.best_of_fold(1, "max") == (1, 0.80)


def test_metrics_of_a_trial_are_means_over_its_folds() -> None:
    spec = spec_of()
    record = record_of(spec)
    number = record.propose({"learning_rate": 1e-3}, "test").number
    for epoch in range(1, 2 * EPOCHS + 1):
        # the first fold is best at its third epoch, the second at its last
        score = 0.9 - 0.01 * abs(epoch - 3) if epoch <= EPOCHS else 0.01 * epoch
        record.report(number, epoch, score, {"val_dice": score, "val_iou": score / 2}, 1.0)
    entry = record.entries[number]
    assert entry.metrics == pytest.approx({"val_dice": (0.9 + 0.18) / 2, "val_iou": 0.27})


def test_searchers_rank_trials_by_folds_and_then_by_their_mean() -> None:
    spec = spec_of()
    record = record_of(spec)
    scores = [[0.9], [0.7, 0.5], [0.6, 0.62], [0.8]]
    for folds in scores:
        add(record, folds, TrialState.STOPPED)
    rungs = (*spec.rungs(), *spec.fold_ends)
    ranks = ranks_by_rung(SearchView(record, 4, 0, {}, rungs))
    ordered = sorted(ranks, key=lambda number: -ranks[number])
    assert ordered == [2, 1, 0, 3]
    assert all(ranks[one] > ranks[other] for one, other in pairwise(ordered))


def test_folds_that_ended_early_cost_what_they_trained() -> None:
    record = record_of(spec_of())
    number = record.propose({"learning_rate": 1e-3}, "test").number
    for epoch in (1, 2, EPOCHS, EPOCHS + 1, 2 * EPOCHS):
        report_to_record(record, Policy(record), number, epoch, 0.5)
    assert record.entries[number].finished_folds == 2
    assert epochs_spent(record.entries.values()) == 5


def test_a_round_of_hyperband_does_not_wait_for_a_fold_that_ended_early() -> None:
    record = record_of(spec_of("hyperband"))
    policy = Hyperband(record, [Bracket(3, (3, EPOCHS))], 3, planned=3)
    numbers = [record.propose({"learning_rate": 1e-3}, "test").number for _ in range(3)]
    for number, epochs in zip(numbers, [(1, 2, 3), (1, 2, EPOCHS), (1, 2)], strict=True):
        for epoch in epochs:
            record.report(number, epoch, 0.5, {}, 1.0)
    record.pause(0, "test")
    assert report_to_record(record, policy, 2, 3, 0.6) == "goes on"
    assert policy.promote() is None
    assert record.entries[0].state is TrialState.STOPPED


@pytest.mark.parametrize(
    ("config", "search", "policy", "words"),
    [
        ({"fold": 1}, {}, "asha", "remove fold, or set folds: 1"),
        ({"num_folds": 2}, {}, "asha", "folds=3 must not be above num_folds=2"),
        ({}, {}, "pbt", "folds=3 does not go with policy=pbt"),
        ({}, {}, "pb2", "folds=3 does not go with policy=pb2"),
    ],
)
def test_settings_that_do_not_go_with_folds(
    config: dict[str, Any], search: dict[str, Any], policy: str, words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        StudySpec.from_dict(
            {
                "config": {"max_epochs": EPOCHS, **config},
                "space": {"learning_rate": {"loguniform": [1e-5, 1e-2]}},
                "search": {"num_trials": TRIALS, "folds": FOLDS, **search},
                "policy": policy,
            }
        )


def test_folds_are_the_first_of_those_that_there_are() -> None:
    plain = spec_of().trial_config({}, 2)
    assert (plain.fold, plain.num_folds, plain.test_fraction) == (2, 3, 0.2)
    of_five = StudySpec.from_dict(
        {
            "config": {"max_epochs": 9, "num_folds": 5, "test_fraction": 0.0},
            "space": {"learning_rate": {"loguniform": [1e-5, 1e-2]}},
            "search": {"folds": 3},
        }
    ).trial_config({}, 1)
    assert (of_five.fold, of_five.num_folds, of_five.test_fraction) == (1, 5, 0.0)
    once = spec_of(folds=1)
    assert once.trial_config({}).fold is None
    assert (once.fold_epochs, once.fold_ends, once.full_epochs) == (None, (9,), 9)
