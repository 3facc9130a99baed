"""Studies with a time budget: what fits, who ends a schedule, and who makes room."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned_study import SECOND, SPEC, Planned
from ray.tune.search import Searcher

from training.config import ModelTrainingConfig
from tuner.search.deadline import MARGIN, SLACK, Ending, TimePlan, ending_of
from tuner.search.policies import Action
from tuner.spec.load import parse_spec
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "search"))

from deadlines import Scheduled, simulate_deadline
from problems import Hartmann


@pytest.mark.parametrize(
    ("fields", "epoch", "expected"),
    [
        ({"scheduler": "wsd"}, 8, Ending(20, 10)),
        ({"scheduler": "wsd"}, 17, Ending(20, 20)),
        ({"scheduler": "wsd", "decay_share": 0.5}, 4, Ending(20, 8)),
        ({"scheduler": "none"}, 8, Ending(20, 8)),
        ({"scheduler": "none", "warmup_epochs": 5}, 2, Ending(20, 6)),
        ({"scheduler": "step"}, 8, Ending(20, 8)),
        # not what it has followed so far, but it comes down
        ({"scheduler": "poly"}, 8, Ending(20, 10)),
        ({"scheduler": "cosine"}, 18, Ending(20, 20)),
    ],
)
def test_how_a_training_can_end(fields: dict[str, Any], epoch: int, expected: Ending) -> None:
    assert ending_of(ModelTrainingConfig(max_epochs=20, **fields), epoch) == expected


@pytest.mark.parametrize("name", ["wsd", "none", "plateau", "poly", "one_cycle"])
@given(epochs=st.integers(1, 50), warmup=st.integers(0, 5), data=st.data())
@settings(deadline=None, max_examples=30)
def test_an_end_is_ahead_and_within_the_full_budget(
    name: Any, epochs: int, warmup: int, data: Any
) -> None:
    config = ModelTrainingConfig(
        max_epochs=epochs, scheduler=name, warmup_epochs=min(warmup, epochs - 1)
    )
    epoch = data.draw(st.integers(0, epochs))
    ending = ending_of(config, epoch)
    assert epoch <= ending.shortest <= ending.planned == epochs
    assert ending.shortest > config.warmup_epochs


def test_a_trial_trains_on_until_it_must_end_its_schedule() -> None:
    study = Planned()
    number = study.trial(*[0.1] * 11, paused=False)
    assert study.report(number, 0.5, left=30)[0] is Action.CONTINUE
    # 14 epochs, and 3 more to end a schedule
    assert study.report(number, 0.5, left=4.01)[0] is Action.CONTINUE
    # 15 epochs, and 4 more
    action, reason = study.report(number, 0.5, left=4.9)
    assert action is Action.PAUSE
    assert "ends its schedule at epoch 18 instead of 20" in reason
    entry = study.record.entries[number]
    assert (entry.ends_at, entry.trained_values["max_epochs"]) == (18, 18)
    assert "max_epochs" not in entry.trained_values_at(14)
    # and goes on with that before anything else
    assert study.policy.promote() == number
    study.record.running(number)
    assert study.report(number, 0.6, left=3)[0] is Action.CONTINUE


def test_a_trial_whose_end_does_not_fit_makes_way() -> None:
    study = Planned()
    number = study.trial(*[0.1] * 11, paused=False)
    # it is all that there is
    assert study.report(number, 0.5, left=2)[0] is Action.CONTINUE
    study = Planned()
    study.record.finish(study.trial(*[0.1] * 20, paused=False), TrialState.COMPLETED, "trained")
    number = study.trial(*[0.1] * 11, paused=False)
    action, reason = study.report(number, 0.5, left=2)
    assert action is Action.PAUSE
    assert "its schedule cannot end within the time budget" in reason
    assert study.record.entries[number].ends_at is None
    # with less time than its end takes it stays where it is, with more it ends
    study.left = 2.9
    assert study.policy.promote() is None
    study.left = 3.01
    assert study.policy.promote() == number


def test_a_better_trial_that_waits_ends_in_place_of_one_that_runs() -> None:
    study = Planned()
    better = study.trial(*[0.8] * 8)
    running = study.trial(*[0.1] * 11, paused=False)
    action, reason = study.report(running, 0.5, left=3.9)
    assert action is Action.PAUSE
    assert f"makes room for trial {better}" in reason
    assert study.record.entries[better].ends_at == 11
    assert study.policy.promote() == better


def test_an_end_is_shortened_again_where_epochs_take_longer() -> None:
    study = Planned()
    number = study.trial(*[0.1] * 8)
    study.record.shorten(number, 20, "the time ends")
    study.record.running(number)
    assert study.report(number, 0.5, left=11.01)[0] is Action.CONTINUE
    action, reason = study.report(number, 0.5, left=5.01)
    assert action is Action.PAUSE
    assert "ends its schedule at epoch 15 instead of 20" in reason
    assert study.policy.promote() == number
    study.record.running(number)
    # it comes down by now, and no shorter schedule is the one that it has followed
    for left in (4.01, 3.01, 0.5):
        assert study.report(number, 0.5, left=left)[0] is Action.CONTINUE
    assert study.record.entries[number].ends_at == 15


def test_an_open_schedule_ends_at_any_epoch() -> None:
    study = Planned("none")
    number = study.trial(*[0.1] * 11, paused=False)
    assert study.report(number, 0.5, left=1.01)[0] is Action.CONTINUE
    action, reason = study.report(number, 0.5, left=0.9)
    assert action is Action.PAUSE
    assert reason == "ends after epoch 13: no further one fits into the time budget"


def test_a_schedule_with_a_fixed_end_ends_as_planned_where_that_fits() -> None:
    study = Planned("poly")
    number = study.trial(*[0.1] * 16, paused=False)
    assert study.report(number, 0.5, left=3.01)[0] is Action.CONTINUE
    assert study.record.entries[number].ends_at is None


def test_nothing_starts_that_could_not_end() -> None:
    """A new trial takes 4 epochs to its first rung and one to end from there."""
    study = Planned()
    assert study.policy.may_start()
    study.record.finish(study.trial(*[0.1] * 20, paused=False), TrialState.COMPLETED, "trained")
    study.left = 5.01
    assert study.policy.may_start()
    assert study.searcher.suggest("a") is not None
    study.left -= 0.1
    assert not study.policy.may_start()


def test_trials_that_found_no_time_stay_paused_for_a_run_with_more() -> None:
    study = Planned()
    number = study.trial(*[0.1] * 4)
    study.left = 0.9
    assert study.searcher.suggest("a") == Searcher.FINISHED
    assert study.record.entries[number].state is TrialState.PAUSED
    assert len(study.record.entries) == 1
    # new trials come, and its own end too
    study.left = 100
    assert study.searcher.suggest("b") is not None


def test_with_time_to_spare_paused_trials_end_as_ever() -> None:
    study = Planned(trials=3)
    for score in (0.5, 0.6, 0.1):
        study.trial(*[score] * 4)
    study.record.running(1)
    for epoch in range(5, 21):
        study.record.report(1, epoch, 0.7, {}, SECOND)
    study.record.finish(1, TrialState.COMPLETED, "trained")
    study.left = 10_000
    assert study.searcher.suggest("a") == Searcher.FINISHED
    assert {study.record.entries[n].state for n in (0, 2)} == {TrialState.STOPPED}


def test_the_best_trial_is_set_aside_rather_than_stopped_and_ends_its_schedule() -> None:
    study = Planned(trials=4, promotion=False)
    for score in (0.5, 0.6, 0.7):
        number = study.trial(*[score] * 4, paused=False)
        study.record.finish(number, TrialState.STOPPED, "by ASHA")
    # its best epoch was before the rung, where it is worst
    best = study.trial(0.1, 0.9, 0.1, paused=False)
    action, reason = study.report(best, 0.1, left=10_000)
    assert action is Action.PAUSE
    assert "set aside, since its score is the best of the study" in reason
    assert study.policy.promote() == best
    assert study.record.entries[best].ends_at == 20


def test_first_trials_wait_for_others_where_time_is_short() -> None:
    """ASHA that stops lets the first trial of a rung go on."""
    for left, action in ((10_000, Action.CONTINUE), (60, Action.PAUSE)):
        study = Planned(trials=8, promotion=False)
        number = study.trial(*[0.5] * 3, paused=False)
        assert study.report(number, 0.5, left=left)[0] is action


def test_a_resumed_study_plans_from_the_record(tmp_path: Path) -> None:
    text = SPEC.format(scheduler="wsd", trials=8, promotion="true", metric="val_dice")
    space = parse_spec(text, source="s.yaml").space
    first = Planned(record=StudyRecord(tmp_path, space, "max"))
    better, running = first.trial(*[0.8] * 8), first.trial(*[0.1] * 11, paused=False)
    first.report(running, 0.5, left=3.9)
    first.record.close()
    again = Planned(record=StudyRecord(tmp_path, space, "max"))
    again.left = 100
    assert again.policy.promote() == better
    assert again.record.entries[better].ends_at == 11
    # shorter still, where less time is left than it was promised
    again.left = 2.01
    assert again.policy.promote() == better
    assert again.record.entries[better].ends_at == 10
    decisions = [d.reason for d in again.record.decisions if d.action == "shortened"]
    assert len(decisions) == 2


def test_what_a_start_takes_is_measured() -> None:
    study = Planned()
    study.plan = TimePlan.of(
        Study(study.record.folder, study.spec, study.record), lambda: 1, lambda: 100.0
    )
    assert study.plan.pace() is None
    # it waits for the start of the worker's process
    study.trial()
    number = study.trial(paused=False)
    begun = study.record.decisions[-1].time
    for epoch in (1, 2):
        study.record.report(number, epoch, 0.5, {}, 10.0)
    assert study.plan.pace() == pytest.approx(10 * SLACK)
    study.record.decide(number, "paused", "", at=begun + 27)
    assert study.plan.startup == pytest.approx(7)


def test_the_margin_is_a_share_of_the_time_and_at_most_half_a_minute() -> None:
    study = Planned()
    for budget, kept in ((100.0, MARGIN[0] * 100), (36_000.0, MARGIN[1])):
        plan = TimePlan(
            study.record, study.spec.trial_config, rungs=(), trials=1, workers=lambda: 1,
            seconds_left=lambda budget=budget: budget,
        )  # fmt: skip
        assert plan.left == budget - kept


def test_the_forecast_is_told_in_words() -> None:
    study = Planned(workers=2)
    assert (study.plan.capacity(), study.plan.ending()) == ("", "")
    study.trial(*[0.1] * 12, paused=False)
    study.left = 50
    assert study.plan.capacity() == "about 5.0 trainings of 20 epochs fit into it"
    assert study.plan.ending() == ""
    study.left = 4
    assert study.plan.ending() == "no new ones"
    study.record.shorten(0, 15, "the time ends")
    text = "1 of the 1 running trials end their schedules, no new ones"
    assert study.plan.ending() == text


@pytest.mark.parametrize("scheduler", ["wsd", "poly"])
@pytest.mark.parametrize(
    ("promotion", "trials", "trainings"),
    [(True, 24, 3.0), (True, 60, 8.0), (False, 24, 4.5), (False, 8, 3.0)],
)
def test_no_trial_is_cut_off_and_the_winner_is_annealed(
    scheduler: str, promotion: bool, trials: int, trainings: float
) -> None:
    for seed in range(3):
        found = simulate_deadline(
            Scheduled(Hartmann(3), scheduler), planned_end=True, promotion=promotion,
            trials=trials, workers=2 + seed, full_trainings=trainings, seed=seed,
        )  # fmt: skip
        assert found["cut"] == 0
        assert found["annealed"]
        # and the workers are not idle for it
        assert found["unused"] < 0.2


def test_more_trials_are_tried_than_without_a_plan() -> None:
    """The first trials of ASHA that stops would take the time of all others."""
    with_plan, without = (
        simulate_deadline(
            Scheduled(Hartmann(3), "wsd"), planned_end=planned_end, promotion=False,
            trials=24, workers=2, full_trainings=4.5, seed=0,
        )
        for planned_end in (True, False)
    )  # fmt: skip
    assert without["cut"] > 0
    assert with_plan["tried"] == 24 > without["tried"]
    assert with_plan["score"] > without["score"]
