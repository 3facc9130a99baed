"""Optuna's tables tell the same story as the study: read back by Optuna itself."""

from __future__ import annotations

import datetime
import itertools
import os
import shutil
import time
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from optuna.trial import FrozenTrial

from tuner.spec.domains import LogUniform
from tuner.spec.load import parse_spec
from tuner.spec.space import Space
from tuner.study.driver import close_if_not_driven, only_driver
from tuner.study.record import StudyRecord
from tuner.study.storage import TransactionalStorage
from tuner.study.study import Study
from tuner.study.trial_entry import Exploit, TrialState

SPACE = Space({"learning_rate": LogUniform(1e-5, 1e-1)})


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with Optuna's empty tables, which take a second to make."""
    path = tmp_path_factory.mktemp("tables") / "optuna.db"
    TransactionalStorage(path).close()
    return path


@pytest.fixture
def folder(tables: Path, tmp_path: Path) -> Path:
    """The folder of a study that begins."""
    shutil.copy(tables, tmp_path)
    return tmp_path


def add(record: StudyRecord, scores: list[float], state: TrialState = TrialState.RUNNING) -> int:
    """A trial that has scores and ends in a state."""
    number = record.propose({"learning_rate": 1e-3 * (len(record.entries) + 1)}, "test").number
    for epoch, score in enumerate(scores, start=1):
        record.report(number, epoch, score, {"val_dice": score}, 1.0)
    if state is TrialState.PAUSED:
        record.pause(number, "at rung 1")
    elif state is TrialState.INTERRUPTED:
        record.interrupt(number, "the budget is spent")
    elif state is not TrialState.RUNNING:
        record.finish(number, state, "why")
    return number


def as_optuna_reads(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'optuna.db'}")


def states(folder: Path) -> list[str]:
    return [trial.state.name for trial in as_optuna_reads(folder).trials]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize(
    "winner", [TrialState.STOPPED, TrialState.PAUSED, TrialState.INTERRUPTED, TrialState.RUNNING]
)
def test_the_winner_is_optunas_best_whatever_became_of_it(
    folder: Path, mode: str, winner: TrialState
) -> None:
    sign = 1 if mode == "max" else -1
    record = StudyRecord(folder, SPACE, mode)
    add(record, [sign * 0.5, sign * 0.6], TrialState.COMPLETED)
    add(record, [sign * 0.9, sign * 0.4], winner)
    add(record, [sign * 0.99], TrialState.DIVERGED)
    record.close_running("the time budget ended")
    best = record.best()
    study = as_optuna_reads(folder)
    assert best is not None
    assert study.best_trial.number == best.number == 1
    assert study.best_value == sign * 0.9
    assert study.best_trial.state.name == "COMPLETE"
    # what became of it is kept
    told = study.best_trial.user_attrs["state"]
    assert told == ("interrupted" if winner is TrialState.RUNNING else winner.value)


def test_of_equals_the_first_is_the_best_in_both(folder: Path) -> None:
    record = StudyRecord(folder, SPACE, "max")
    for state in (TrialState.STOPPED, TrialState.COMPLETED, TrialState.COMPLETED):
        add(record, [0.0, 0.0], state)
    record.close_running("")
    best = record.best()
    assert best is not None
    assert as_optuna_reads(folder).best_trial.number == best.number == 0


def test_none_is_running_in_a_study_that_nobody_runs(folder: Path) -> None:
    record = StudyRecord(folder, SPACE, "max")
    add(record, [0.5], TrialState.COMPLETED)
    for state in (TrialState.RUNNING, TrialState.PAUSED, TrialState.INTERRUPTED):
        add(record, [0.2, 0.4, 0.3], state)
        add(record, [], state)
        add(record, [float("nan")], state)
    add(record, [0.3], TrialState.STOPPED)
    add(record, [float("nan")], TrialState.STOPPED)
    for state in (TrialState.DIVERGED, TrialState.OUT_OF_MEMORY, TrialState.FAILED):
        add(record, [0.1], state)
    # while the study runs, those that may go on are as good as running
    assert states(folder)[1:10] == ["RUNNING"] * 9
    record.close_running("its driver is gone")
    trials = as_optuna_reads(folder).trials
    cut_off = ["PRUNED", "FAIL", "FAIL"] * 3
    names = ["COMPLETE", *cut_off, "PRUNED", "FAIL", "FAIL", "FAIL", "FAIL"]
    assert [trial.state.name for trial in trials] == names
    assert {trial.value for trial in trials if trial.state.name == "PRUNED"} == {0.4, 0.3}
    assert [trial.value for trial in trials if trial.state.name == "FAIL"] == [None] * 10
    assert not record.with_state(TrialState.RUNNING)
    assert len(record.unfinished()) == 6


def test_a_trial_that_goes_on_runs_again_and_may_end_otherwise(folder: Path) -> None:
    record = StudyRecord(folder, SPACE, "max")
    add(record, [0.9], TrialState.PAUSED)
    add(record, [0.5], TrialState.INTERRUPTED)
    record.close_running("")
    assert states(folder) == ["COMPLETE", "PRUNED"]
    again = StudyRecord(folder, SPACE, "max")
    for number in (0, 1):
        again.running(number)
    assert states(folder) == ["RUNNING", "RUNNING"]
    assert [trial.values for trial in as_optuna_reads(folder).trials] == [None, None]
    again.report(1, 2, 0.95, {}, 1.0)
    again.finish(1, TrialState.COMPLETED, "trained 2 epochs")
    again.finish(0, TrialState.STOPPED, "never promoted")
    again.close_running("")
    study = as_optuna_reads(folder)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "COMPLETE"]
    assert [trial.value for trial in study.trials] == [0.9, 0.95]
    assert (study.best_trial.number, study.best_value) == (1, 0.95)


def test_what_is_right_already_is_not_written_again(folder: Path) -> None:
    record = StudyRecord(folder, SPACE, "max")
    add(record, [0.9])
    record.close_running("")
    record.close()
    before = (folder / "optuna.db").read_bytes()
    again = StudyRecord(folder, SPACE, "max")
    again.close_running("once more")
    again.close()
    assert (folder / "optuna.db").read_bytes() == before
    assert again.entries[0].reason == ""


def test_values_that_changed_while_training_are_told_with_the_score(folder: Path) -> None:
    """Optuna's parameters are those that a trial was proposed with."""
    record = StudyRecord(folder, SPACE, "max")
    add(record, [0.5], TrialState.COMPLETED)
    add(record, [0.6])
    record.pause(1, "weak")
    record.exploit(1, Exploit(1, 0, {"learning_rate": 0.05}, {}), "")
    record.running(1)
    record.report(1, 2, 0.7, {}, 1.0)
    record.finish(1, TrialState.COMPLETED, "")
    record.close_running("")
    trials = as_optuna_reads(folder).trials
    assert trials[1].params == {"learning_rate": 0.002}
    assert trials[1].user_attrs["notes"]["best_values"] == {"learning_rate": 0.05}
    assert "notes" not in trials[0].user_attrs


@pytest.fixture
def opened(folder: Path) -> Study:
    """A study whose driver was killed while two trials ran."""
    spec = parse_spec("space: {learning_rate: {loguniform: [1e-5, 1e-1]}}", source="s.yaml")
    (folder / "spec.resolved.yaml").write_text(spec.to_yaml())
    (folder / "confirm").mkdir()
    shutil.copy(folder / "optuna.db", folder / "confirm")
    for where in (folder, folder / "confirm"):
        record = StudyRecord(where, spec.space, "max")
        add(record, [0.5])
        add(record, [0.6])
        record.close()
    return Study(folder, spec, StudyRecord(folder, spec.space, "max"))


def test_who_looks_at_a_study_that_nobody_runs_puts_it_right(opened: Study) -> None:
    """Also its confirmation."""
    assert close_if_not_driven(opened)
    for where in (opened.folder, opened.folder / "confirm"):
        assert states(where) == ["PRUNED", "COMPLETE"]
    entry = opened.record.entries[0]
    assert entry.state is TrialState.INTERRUPTED
    assert "the process that ran the study ended unexpectedly" in entry.reason


def test_a_study_that_somebody_runs_is_left_alone(opened: Study) -> None:
    with FileLock(opened.folder / "driver.lock"):
        assert not close_if_not_driven(opened)
    assert states(opened.folder) == ["RUNNING", "RUNNING"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_study_that_ends_by_an_error_has_no_running_trial(
    opened: Study, error: type[BaseException]
) -> None:
    def fail() -> None:
        add(opened.record, [0.7])
        assert states(opened.folder)[2] == "RUNNING"
        raise error

    with pytest.raises(error), only_driver(opened):
        fail()
    assert states(opened.folder) == ["PRUNED", "PRUNED", "COMPLETE"]
    assert "by an error" in opened.record.entries[2].reason


def bounds(trial: FrozenTrial) -> tuple[datetime.datetime, datetime.datetime]:
    assert trial.datetime_start is not None
    assert trial.datetime_complete is not None
    return trial.datetime_start, trial.datetime_complete


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Tokyo"])
def test_the_timeline_is_in_local_time_and_ends_with_the_driver(
    folder: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    """A trial that a killed driver left ends there, not when somebody next looks."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        begun = datetime.datetime.now()
        clock = itertools.count(time.time())
        monkeypatch.setattr("tuner.study.record.time.time", lambda: next(clock))
        record = StudyRecord(folder, SPACE, "max")
        stopped = add(record, [0.5], TrialState.STOPPED)
        left = add(record, [0.4])
        record.close()
        killed = begun.timestamp() + 100
        os.utime(folder / "optuna.db", (killed, killed))
        StudyRecord(folder, SPACE, "max").close_running("its driver is gone")
        trials = as_optuna_reads(folder).trials
        minute = datetime.timedelta(minutes=1)
        for number in (stopped, left):
            assert abs(bounds(trials[number])[0] - begun) < minute
        assert bounds(trials[stopped])[1] - begun < minute
        assert bounds(trials[left])[1] == datetime.datetime.fromtimestamp(killed)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_study_says_what_it_is(folder: Path) -> None:
    record = StudyRecord(folder, SPACE, "max")
    record.describe("val_dice_2", {"data": "Task04", "spec": "space: {}"})
    add(record, [0.5], TrialState.COMPLETED)
    record.describe("val_dice_2", {"data": "moved/Task04"})
    study = as_optuna_reads(folder)
    assert study.metric_names == ["val_dice_2"]
    assert study.user_attrs == {"data": "moved/Task04", "spec": "space: {}"}
    frame = study.trials_dataframe()
    assert frame["value_val_dice_2"].tolist() == [0.5]
    assert frame["params_learning_rate"].tolist() == [1e-3]
