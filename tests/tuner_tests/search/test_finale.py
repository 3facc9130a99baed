"""The last part of a study whose time is short, which belongs to its best trials."""

from __future__ import annotations

from pathlib import Path

from planned_study import SECOND, SPEC, Planned

from tuner.search.policies import Action
from tuner.search.policies.finale import Finale
from tuner.spec.load import parse_spec
from tuner.spec.spec_values import FINALE_SHARE
from tuner.study.record import StudyRecord
from tuner.study.trial_entry import FINALIST, TrialState

TOTAL = 20.0
"""Seconds of a study: an epoch takes one, a full training 20."""

BEGINS = FINALE_SHARE * TOTAL


def three_trials(study: Planned) -> tuple[int, int, int]:
    """Two trials that wait at the first rung, and one that runs and is worse than the second."""
    return (
        study.trial(*[0.5] * 4),
        study.trial(*[0.7] * 4),
        study.trial(*[0.6] * 4, paused=False),
    )


def test_the_best_trial_has_the_last_part_to_itself() -> None:
    study = Planned(trials=30, total=TOTAL)
    worse, best, running = three_trials(study)
    assert study.report(running, 0.6, left=BEGINS + 0.1)[0] is Action.CONTINUE
    assert study.policy.may_start()
    action, reason = study.report(running, 0.6, left=BEGINS)
    assert action is Action.PAUSE
    assert reason == (
        f"makes room for trial {best}, the best so far, which trains on for the rest of the time"
    )
    assert not study.policy.may_start()
    assert study.plan.ending() == f"trial {best} trains on to the end, no new ones"
    assert study.policy.promote() == best
    study.record.running(best)
    assert study.policy.promote() is None
    (decision,) = (d for d in study.record.decisions if d.action == "finalist")
    assert (decision.trial, decision.reason) == (
        best,
        "trains on to the end, the best of the study so far: 12 s of the time budget are left",
    )
    # no rung stops it, whatever it scores there, and its schedule ends in time
    for left in range(11, 3, -1):
        assert study.report(best, 0.1, left=left + 0.5)[0] is Action.CONTINUE
    assert study.report(best, 0.1, left=3.5)[0] is Action.PAUSE
    assert study.record.entries[best].ends_at == 16
    assert study.policy.promote() == best
    assert study.record.entries[worse].state is TrialState.PAUSED


def test_the_search_goes_on_with_the_time_that_is_left() -> None:
    study = Planned(trials=30, total=TOTAL)
    _, best, running = three_trials(study)
    study.report(running, 0.6, left=BEGINS)
    study.record.running(best)
    for _ in range(16):
        study.record.report(best, study.record.entries[best].epochs + 1, 0.8, {}, SECOND / 4)
    study.record.finish(best, TrialState.COMPLETED, "trained")
    study.left = 8
    assert study.policy.may_start()


def test_a_study_that_has_a_better_one_already_needs_no_last_part() -> None:
    study = Planned(trials=30, total=TOTAL)
    study.record.finish(study.trial(*[0.8] * 20, paused=False), TrialState.COMPLETED, "trained")
    _, _, running = three_trials(study)
    assert study.report(running, 0.6, left=BEGINS)[0] is Action.CONTINUE


def test_it_begins_no_sooner_than_a_training_takes() -> None:
    study = Planned(trials=300, total=200)
    _, best, running = three_trials(study)
    # of twenty epochs the best has sixteen to go
    assert study.report(running, 0.6, left=16.1)[0] is Action.CONTINUE
    assert study.report(running, 0.6, left=16)[0] is Action.PAUSE
    assert study.policy.promote() == best


def test_with_cores_that_are_free_a_training_takes_less() -> None:
    study = Planned(trials=300, total=200, alone=(1, 0.5))
    _, best, running = three_trials(study)
    assert study.report(running, 0.6, left=8.1)[0] is Action.CONTINUE
    assert study.report(running, 0.6, left=8)[0] is Action.PAUSE
    assert study.policy.promote() == best


def test_a_worker_that_is_free_begins_it_where_that_is_nearer() -> None:
    """A new trial would take four seconds."""
    for sooner, promoted in ((2.1, False), (1.9, True)):
        study = Planned(trials=30, total=TOTAL)
        best = study.trial(*[0.7] * 4)
        study.left = BEGINS + sooner
        assert (study.policy.promote() == best) is promoted


def test_as_many_trials_as_there_are_places() -> None:
    study = Planned(trials=60, total=TOTAL, workers=2)
    worse, best, running = three_trials(study)
    assert study.report(running, 0.65, left=BEGINS)[0] is Action.CONTINUE
    assert study.policy.promote() == best
    study.record.running(best)
    assert study.policy.promote() is None
    noted = {n for n, entry in study.record.entries.items() if FINALIST in entry.notes}
    assert noted == {best, running}
    assert worse not in noted


def test_with_time_for_all_trials_there_is_none() -> None:
    study = Planned(trials=3, total=100)
    _, best, running = three_trials(study)
    assert study.report(running, 0.6, left=59)[0] is not Action.PAUSE
    assert FINALIST not in study.record.entries[best].notes


def test_a_resumed_study_knows_who_trains_on(tmp_path: Path) -> None:
    text = SPEC.format(scheduler="wsd", trials=30, promotion="true", metric="val_dice")
    space = parse_spec(text, source="s.yaml").space
    first = Planned(trials=30, total=TOTAL, record=StudyRecord(tmp_path, space, "max"))
    _, best, running = three_trials(first)
    first.report(running, 0.6, left=BEGINS)
    first.record.close()
    again = Planned(trials=30, total=1000, record=StudyRecord(tmp_path, space, "max"))
    assert [e.number for e in Finale(again.record, again.plan).finalists()] == [best]
    assert again.policy.promote() == best


def test_a_study_that_looks_for_several_kinds_of_best_trials_has_none() -> None:
    study = Planned(trials=30, total=TOTAL, metric="[val_dice, val_seconds_per_case]")
    _, _, running = three_trials(study)
    assert study.report(running, 0.6, left=BEGINS)[0] is Action.CONTINUE
