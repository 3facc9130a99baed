from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from tuner.errors import StudyError
from tuner.record import StudyRecord, TrialState, epochs_spent
from tuner.searchers import SEARCHERS, RecordSearcher, report_result
from tuner.space import Space
from tuner.spec import SearchSettings, parse_spec

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


def result(epoch: int, score: float, **more: Any) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "score": score,
        "metrics/val_dice": score,
        "epoch_seconds": 2.0,
        **more,
    }


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_every_searcher_proposes_values_of_the_space(
    name: str, reopen: Callable[[], StudyRecord], space: Space
) -> None:
    record = reopen()
    seen = set()
    for number in range(12):
        entry = record.propose(lambda n: SEARCHERS[name](n))
        for field, value in entry.values.items():
            domain = dict(space.items())[field]
            assert domain.contains(value), f"{field}={value}"
        assert ("momentum" in entry.values) == (entry.values["optimizer"] == "sgd")
        seen.add(entry.values["learning_rate"])
        record.report(number, 1, entry.values["learning_rate"], {}, 1.0)
        record.finish(number, TrialState.COMPLETED, "done")
    assert len(seen) == 12


@pytest.mark.parametrize("name", sorted(SEARCHERS))
def test_proposals_depend_on_the_record_alone(name: str, tmp_path: Path, space: Space) -> None:
    settings = SearchSettings(searcher=name, num_trials=14, seed=7)

    def propose(folder: Path, *, restart_every: int) -> list[dict[str, Any]]:
        folder.mkdir()
        proposals: list[dict[str, Any]] = []
        searcher = None
        for number in range(14):
            if searcher is None or number % restart_every == 0:
                record = StudyRecord(folder, space, "max")
                searcher = RecordSearcher(record, settings)
            proposal = searcher.suggest(f"ray-{number}")
            assert isinstance(proposal, dict)
            proposals.append(proposal)
            searcher.on_trial_complete(
                f"ray-{number}",
                result(1, proposal["learning_rate"], outcome="completed", reason=""),
            )
        return proposals

    assert propose(tmp_path / "a", restart_every=100) == propose(tmp_path / "b", restart_every=3)


def test_neighbouring_seeds_share_no_trial(tmp_path: Path, space: Space) -> None:
    proposals = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        settings = SearchSettings(searcher="random", num_trials=8, seed=seed)
        searcher = RecordSearcher(StudyRecord(tmp_path / str(seed), space, "max"), settings)
        found = [searcher.suggest(str(number)) for number in range(8)]
        proposals.append({values["learning_rate"] for values in found})  # type: ignore[index]
    assert not proposals[0] & proposals[1]


def test_a_reopened_record_knows_everything(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    for number in range(4):
        record.propose(SEARCHERS["random"])
        record.report(number, 1, 0.5 + number / 10, {"val_dice": 0.5}, 3.0)
    record.report(1, 2, 0.9, {"val_dice": 0.9}, 3.0)
    record.finish(0, TrialState.STOPPED, "weak")
    record.finish(1, TrialState.COMPLETED, "trained 2 epochs")
    record.finish(2, TrialState.DIVERGED, "loss is nan")
    record.interrupt_running("interrupted by the user")
    again = reopen()
    assert again.entries == record.entries
    assert again.entries[3].state is TrialState.INTERRUPTED
    assert [entry.number for entry in again.unfinished()] == [3]
    best = again.best()
    assert best is not None
    assert (best.number, best.best("max"), best.seconds) == (1, (2, 0.9), 6.0)
    assert epochs_spent(again.entries.values()) == 5


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
        record.propose(SEARCHERS["random"])
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


def test_a_cut_off_trial_goes_on_with_its_number_and_values(
    reopen: Callable[[], StudyRecord],
) -> None:
    settings = SearchSettings(searcher="random", num_trials=2, seed=0)
    first = RecordSearcher(reopen(), settings)
    proposal = first.suggest("a")
    searcher = RecordSearcher(reopen(), settings)
    assert searcher.suggest("b") == proposal
    following = searcher.suggest("c")
    assert isinstance(following, dict)
    assert following["trial_number"] == 1
    assert searcher.suggest("d") == "FINISHED"


def test_an_epoch_is_counted_once(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    record.propose(SEARCHERS["random"])
    assert report_result(record, 0, result(1, 0.5))
    assert not report_result(record, 0, result(1, 0.7))
    assert not report_result(record, 0, {"done": True})
    assert record.entries[0].scores == {1: 0.5}
    assert record.entries[0].seconds == 2.0


def test_nan_never_wins_and_the_first_ending_stands(reopen: Callable[[], StudyRecord]) -> None:
    record = reopen()
    for number, score in enumerate((math.nan, 0.1, math.inf)):
        record.propose(SEARCHERS["random"])
        record.report(number, 1, score, {}, 1.0)
    best = record.best()
    assert best is None or best.number == 1
    record.finish(1, TrialState.COMPLETED, "done")
    record.finish(1, TrialState.FAILED, "late")
    assert record.entries[1].state is TrialState.COMPLETED
    record.finish(0, TrialState.COMPLETED, "done")
    assert record.entries[0].state is TrialState.FAILED
    assert "without reporting a score" in record.entries[0].reason


def test_a_moved_study_folder_keeps_its_trials(tmp_path: Path, space: Space) -> None:
    before = tmp_path / "before"
    before.mkdir()
    record = StudyRecord(before, space, "max")
    record.propose(SEARCHERS["random"])
    del record
    shutil.move(before, tmp_path / "after")
    assert len(StudyRecord(tmp_path / "after", space, "max").entries) == 1


def test_a_damaged_record_is_named(tmp_path: Path, space: Space) -> None:
    (tmp_path / "optuna.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(StudyError, match=r"optuna\.db cannot be read"):
        StudyRecord(tmp_path, space, "max")
