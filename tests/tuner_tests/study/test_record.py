from __future__ import annotations

import copy
import itertools
import math
import multiprocessing
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from tuner.driver.scheduler import RecordScheduler
from tuner.driver.searcher import build_searcher
from tuner.errors import StudyError
from tuner.search.policies import build_policy
from tuner.spec.domains import Uniform
from tuner.spec.load import parse_spec
from tuner.spec.space import Space
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.storage import TransactionalStorage
from tuner.study.study import Study
from tuner.study.trial_entry import DecisionEntry, TrialEntry, TrialState, epochs_spent
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest

SPACE = """
config: {max_epochs: 9}
space:
  learning_rate: {loguniform: [1e-5, 1e-2]}
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
  class_weights: {choice: [uniform, [1, 2, 5]]}
  train_batch_size: {randint: [1, 4]}
  foreground_fraction: {quniform: [0.25, 0.75, 0.25]}
"""


@pytest.fixture
def space() -> Space:
    return parse_spec(SPACE, source="space.yaml").space


@pytest.fixture
def reopen(tmp_path: Path, space: Space) -> Callable[[], StudyRecord]:
    return lambda: StudyRecord(tmp_path, space, "max")


def report_of(epoch: int, score: float, gpus: float = 0.0) -> EpochReport:
    return EpochReport(epoch, score, {"val_dice": score}, 2.0, gpus)


def propose(record: StudyRecord) -> None:
    values = record.space.sample(random.Random(len(record.entries)))
    record.propose(values, "test", generation=2)


def test_a_reopened_record_knows_everything(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    for number in range(4):
        propose(record)
        record.report(number, 1, 0.5 + number / 10, {"val_dice": 0.5}, 3.0)
    record.report(1, 2, 0.9, {"val_dice": 0.9}, 3.0)
    record.finish(0, TrialState.STOPPED, "weak")
    record.finish(1, TrialState.COMPLETED, "trained 2 epochs")
    record.finish(2, TrialState.DIVERGED, "loss is nan")
    record.close_running("interrupted by the user")
    propose(record)
    record.report(4, 1, 0.2, {}, 3.0)
    record.pause(4, "at rung 1")
    again = reopen()
    assert again.entries == record.entries
    assert again.entries[3].state is TrialState.INTERRUPTED
    assert [entry.number for entry in again.unfinished()] == [3]
    best = again.best()
    assert best is not None
    assert (best.number, best.best("max"), best.seconds) == (1, (2, 0.9), 6.0)
    assert again.entries[4].state is TrialState.PAUSED
    assert again.entries[4].generation == 2
    assert again.scores_at(1) == {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.8, 4: 0.2}
    assert epochs_spent(again.entries.values()) == 6


def test_every_kind_of_value_comes_back_as_it_was(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    for _ in range(20):
        propose(record)
    assert {type(v["class_weights"]) for v in (e.values for e in record.entries.values())} == {
        str,
        list,
    }
    assert reopen().entries == record.entries


def test_trials_are_told_to_optuna_as_what_they_are(
    reopen: Callable[[], StudyRecord], tmp_path: Path
) -> None:
    record = reopen()
    endings = [
        TrialState.COMPLETED,
        TrialState.STOPPED,
        TrialState.DIVERGED,
        TrialState.OUT_OF_MEMORY,
        TrialState.FAILED,
    ]
    for number, state in enumerate(endings):
        propose(record)
        record.report(number, 1, 0.4, {}, 1.0)
        record.report(number, 2, 0.3, {}, 1.0)
        record.finish(number, state, "why")
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{tmp_path / 'optuna.db'}")
    assert [trial.state.name for trial in study.trials] == [
        "COMPLETE",
        "PRUNED",
        "FAIL",
        "FAIL",
        "FAIL",
    ]
    assert study.trials[0].value == 0.4
    assert study.trials[1].intermediate_values == {1: 0.4, 2: 0.3}


def test_an_epoch_is_counted_once(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    propose(record)
    assert report_of(1, 0.5).add_to(record, 0)
    assert not report_of(1, 0.7).add_to(record, 0)
    assert record.entries[0].scores == {1: 0.5}
    assert record.entries[0].seconds == 2.0


def test_nan_never_wins_and_the_first_ending_stands(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    for number, score in enumerate((math.nan, 0.1, math.inf)):
        propose(record)
        record.report(number, 1, score, {}, 1.0)
    best = record.best()
    assert best is None or best.number == 1
    record.finish(1, TrialState.COMPLETED, "done")
    record.finish(1, TrialState.FAILED, "late")
    assert record.entries[1].state is TrialState.COMPLETED
    # one that had scores, of which none is defined, has trained; one that reported none has not
    record.finish(0, TrialState.COMPLETED, "done")
    assert record.entries[0].state is TrialState.COMPLETED
    assert record.entries[0].reason == "done; its score was not defined in any epoch"
    propose(record)
    record.finish(3, TrialState.COMPLETED, "done")
    assert record.entries[3].state is TrialState.FAILED
    assert "without reporting a score" in record.entries[3].reason
    loaded = reopen()
    assert loaded.entries[0].state is TrialState.COMPLETED
    assert loaded.best() is not None


def test_a_moved_study_folder_keeps_its_trials(tmp_path: Path, space: Space) -> None:
    before = tmp_path / "before"
    before.mkdir()
    record = StudyRecord(before, space, "max")
    propose(record)
    del record
    shutil.move(before, tmp_path / "after")
    assert len(StudyRecord(tmp_path / "after", space, "max").entries) == 1


def test_a_damaged_record_is_named(tmp_path: Path, space: Space) -> None:
    (tmp_path / "optuna.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StudyError, match=r"optuna\.db cannot be read"):
        StudyRecord(tmp_path, space, "max")


def history(record: StudyRecord, snapshot: Callable[[], None]) -> None:
    """A study of three trials, with a snapshot after every commit."""
    for number in range(3):
        propose(record)
        snapshot()
        for epoch in (1, 2):
            record.report(number, epoch, 0.1 * epoch + number, {"val_dice": 0.1}, 1.0)
            snapshot()
        record.finish(number, TrialState.COMPLETED, "trained 2 epochs")
        snapshot()


def state_of(record: StudyRecord) -> tuple[dict[int, TrialEntry], list[DecisionEntry]]:
    return copy.deepcopy(record.entries), list(record.decisions)


def test_a_power_loss_leaves_a_beginning_of_what_was_committed(
    tmp_path: Path, space: Space
) -> None:
    """Whatever part of SQLite's log a disk has lost, what is read was once the whole record."""
    study = tmp_path / "study"
    study.mkdir()
    record = StudyRecord(study, space, "max")
    known = [state_of(record)]
    history(record, lambda: known.append(state_of(record)))
    log = (study / "optuna.db-wal").read_bytes()
    kept = set()
    for size in (*range(0, len(log), 4000), len(log)):
        lost = tmp_path / f"lost {size}"
        lost.mkdir()
        shutil.copy(study / "optuna.db", lost)
        (lost / "optuna.db-wal").write_bytes(log[:size])
        kept.add(known.index(state_of(StudyRecord(lost, space, "max"))))
    assert len(kept) > 5
    assert max(kept) == len(known) - 1


def test_a_decision_is_synced_and_a_score_alone_is_not(tmp_path: Path, space: Space) -> None:
    """SQLite (synchronous = FULL) syncs its log with a commit that decides something."""
    record = StudyRecord(tmp_path, space, "max")
    storage = record._storage
    assert isinstance(storage, TransactionalStorage)
    statements: list[str] = []
    storage._open_writer().set_trace_callback(statements.append)

    level = ""

    def syncs() -> list[str]:
        """The level that each commit had."""
        nonlocal level
        levels = []
        for line in statements:
            if line.startswith("PRAGMA synchronous = "):
                level = line.rpartition(" ")[2]
            elif line == "COMMIT":
                levels.append(level)
        statements.clear()
        return levels

    durable, later = ["FULL"], ["NORMAL"]
    propose(record)
    assert syncs() == durable
    record.report(0, 1, 0.5, {"val_dice": 0.5}, 1.0)
    assert syncs() == later
    assert report_of(3, 0.5, gpus=0.5).add_to(record, 0)
    assert syncs() == later
    with record.transaction(durable=False):
        record.report(0, 2, 0.5, {"val_dice": 0.5}, 1.0)
        record.pause(0, "weak")
    assert syncs() == durable
    record.running(0)
    record.retry(0, "it died", {})
    record.finish(0, TrialState.FAILED, "it died")
    assert syncs() == durable * 3
    assert storage._open_writer().execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_lost_record_is_never_begun_anew(tmp_path: Path, space: Space) -> None:
    record = StudyRecord(tmp_path, space, "max")
    propose(record)
    record.close()
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    path = tmp_path / "optuna.db"
    whole = path.read_bytes()
    for harm in (lambda: path.write_bytes(b""), path.unlink):
        harm()
        with pytest.raises(StudyError, match="it is gone or empty, but the study has trials"):
            StudyRecord(tmp_path, space, "max")
        assert not path.is_file() or path.stat().st_size == 0
    path.write_bytes(whole)
    assert len(StudyRecord(tmp_path, space, "max").entries) == 1


def test_a_record_damaged_inside_is_left_as_it_is(tmp_path: Path, space: Space) -> None:
    record = StudyRecord(tmp_path, space, "max")
    for _ in range(30):
        propose(record)
    record.close()
    path = tmp_path / "optuna.db"
    damaged = bytearray(path.read_bytes())
    for page in range(4, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 200] = b"\xff" * 200
    path.write_bytes(damaged)
    with pytest.raises(StudyError, match="nothing was changed: put back a copy"):
        StudyRecord(tmp_path, space, "max")
    assert path.read_bytes() == damaged


def propose_many(record: StudyRecord, number: int) -> None:
    for _ in range(number):
        propose(record)


def test_a_full_disk_is_named_and_the_record_stays_whole(tmp_path: Path, space: Space) -> None:
    record = StudyRecord(tmp_path, space, "max")
    propose(record)
    storage = record._storage
    assert isinstance(storage, TransactionalStorage)
    # SQLite's own way to be out of room
    storage._open_writer().execute("PRAGMA max_page_count = 1")
    with pytest.raises(StudyError, match=r"disk is full.*make room.*tune resume"):
        propose_many(record, 200)
    assert record.failure is not None
    written = len(StudyRecord(tmp_path, space, "max").entries)
    assert 1 <= written < len(record.entries)
    # nothing is decided any more that could not be written
    with pytest.raises(StudyError, match="disk is full"):
        record.finish(0, TrialState.STOPPED, "weak")


def test_a_record_that_was_closed_is_one_file(tmp_path: Path, space: Space) -> None:
    record = StudyRecord(tmp_path, space, "max")
    propose(record)
    assert (tmp_path / "optuna.db-wal").is_file()
    record.close()
    assert [path.name for path in tmp_path.iterdir()] == ["optuna.db"]


def test_a_retry_is_recorded_with_its_reason(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    propose(record)
    record.retry(0, "its worker died", {"train_batch_size": 1})
    again = reopen()
    entry = again.entries[0]
    assert (entry.state, entry.failures) == (TrialState.INTERRUPTED, 1)
    assert entry.trained_values == {**entry.values, "train_batch_size": 1}
    assert again.decisions == record.decisions
    assert [decision.action for decision in again.decisions] == ["proposed", "retried"]


class KilledError(BaseException):
    """The end of the driver."""


VARIANTS = (
    "policy: {name: asha, reduction_factor: 2}",
    "policy: {name: asha, reduction_factor: 2, promotion: true}",
)


def drive(
    spec: StudySpec, folder: Path, checkpoints: dict[int, int], die_at: int, *, written: bool
) -> StudyRecord:
    """A driver with one worker, whose trials have checkpoints, until it ends or dies.

    Args:
        spec: The study.
        folder: Its folder.
        checkpoints: Last epoch on the disk by trial.
        die_at: The commit at which the driver is killed.
        written: Whether that commit is written before.
    """
    record = StudyRecord(folder, spec.space, spec.mode)
    storage: Any = record._storage
    commit = storage._commit
    count = itertools.count()

    def commit_or_die() -> None:
        doomed = next(count) == die_at
        if doomed and not written:
            raise KilledError
        commit()
        if doomed:
            raise KilledError

    storage._commit = commit_or_die
    policy = build_policy(record, spec)
    searcher = build_searcher(Study(record.folder, spec, record), policy)
    scheduler = RecordScheduler(record, policy)
    for turn in itertools.count():
        config = searcher.suggest(str(turn))
        if config == "FINISHED":
            return record
        assert isinstance(config, dict)
        request = TrialRequest.from_ray(config)
        number, values = request.number, request.values
        trial: Any = SimpleNamespace(config=config)
        last = TrialEnd(TrialState.COMPLETED, "trained").to_ray()
        for epoch in range(1, spec.max_epochs + 1):
            checkpoints[number] = max(checkpoints.get(number, 0), epoch)
            score = epoch * math.sin(100 * values["learning_rate"])
            told = report_of(epoch, score).to_ray()
            if scheduler.on_trial_result(None, trial, told) == "STOP":  # type: ignore[arg-type]
                last = told
                break
        searcher.on_trial_complete(str(turn), result=last)
    raise AssertionError


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_driver_killed_at_any_commit_decides_the_same(tmp_path: Path, variant: str) -> None:
    """Every commit of a study is the last one of a driver, both written and not."""
    spec = parse_spec(
        f"config: {{max_epochs: 4}}\nspace: {{learning_rate: {{uniform: [0.01, 0.1]}}}}\n"
        f"search: {{searcher: random, num_trials: 4}}\n{variant}\n",
        source="s.yaml",
    )

    def trace(record: StudyRecord) -> list[Any]:
        return [(d.trial, d.epoch, d.action, d.reason) for d in record.decisions]

    calm = tmp_path / "calm"
    calm.mkdir()
    expected = drive(spec, calm, {}, -1, written=True)
    actions = {decision.action for decision in expected.decisions}
    assert actions > {"proposed", "completed"}
    assert actions & {"continued", "promoted"}
    killed = 0
    for die_at, written in itertools.product(range(100), (False, True)):
        folder = tmp_path / f"{die_at} {written}"
        folder.mkdir()
        checkpoints: dict[int, int] = {}
        try:
            drive(spec, folder, checkpoints, die_at, written=written)
        except KilledError:
            killed += 1
        else:
            break
        resumed = drive(spec, folder, checkpoints, -1, written=True)
        assert trace(resumed) == trace(expected), (die_at, written)
        assert resumed.entries == expected.entries
    assert killed > 15


def open_record(folder: Path, barrier: Any) -> None:
    """In a process of its own: open the record at the same moment as others."""
    space = Space({"x": Uniform(0, 1)})
    barrier.wait()
    record = StudyRecord(folder, space, "max")
    assert not record.entries
    record.close()


def test_processes_that_open_a_new_study_at_once_find_one_record(tmp_path: Path) -> None:
    """`tune status` may look at a study that `tune run` is just making."""
    spawn = multiprocessing.get_context("fork")
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        barrier = spawn.Barrier(4)
        others = [spawn.Process(target=open_record, args=(folder, barrier)) for _ in range(4)]
        for process in others:
            process.start()
        for process in others:
            process.join()
        assert [process.exitcode for process in others] == [0] * 4
        assert [path.name for path in folder.iterdir()] == ["optuna.db"]
