"""Trials of earlier studies: which fit, what is kept of them, who learns from them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.storages import InMemoryStorage

from tuner.driver.searcher import RecordSearcher, build_searcher
from tuner.search.policies import Policy
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import Exploit, TrialState
from tuner.study.warm_start import fitting_values, import_trials, read_imported, write_imported
from tuner.trial.messages import TrialRequest

EARLIER = """
config: {max_epochs: 9, loss: dice_ce}
space:
  learning_rate: {loguniform: [1e-5, 1e-1]}
  optimizer: {choice: [adamw, sgd]}
  momentum: {uniform: [0.8, 0.99], when: {optimizer: sgd}}
  class_weights: {choice: {plain: uniform, tumour: [1, 1, 5]}}
policy: none
"""


def spec_of(text: str = EARLIER, search: str = "{}") -> StudySpec:
    return parse_spec(f"{text}\nsearch: {search}\n", source="space.yaml")


SGD = {"learning_rate": 0.01, "optimizer": "sgd", "momentum": 0.9, "class_weights": [1, 1, 5]}
BEST = math.log10(0.03)

ADAM = {"learning_rate": 0.01, "optimizer": "adamw", "class_weights": "uniform"}


@pytest.mark.parametrize(
    ("change", "values", "expected"),
    [
        ({}, SGD, (SGD, [])),
        ({}, ADAM, (ADAM, [])),
        # the domain has become narrower
        ({"[1e-5, 1e-1]": "[1e-5, 1e-3]"}, ADAM, None),
        # a field that is fixed now: the same optimizer fits, another does not
        (
            {"  optimizer: {choice: [adamw, sgd]}\n": "", ", when: {optimizer: sgd}": ""}
            | {"loss: dice_ce": "loss: dice_ce, optimizer: sgd"},
            SGD,
            ({k: v for k, v in SGD.items() if k != "optimizer"}, []),
        ),
        (
            {"  optimizer: {choice: [adamw, sgd]}\n": "", ", when: {optimizer: sgd}": ""}
            | {"loss: dice_ce": "loss: dice_ce, optimizer: sgd"},
            ADAM,
            None,
        ),
        # a number that differs is told
        ({"max_epochs: 9": "max_epochs: 12"}, ADAM, (ADAM, ["max_epochs", "warmup_epochs"])),
        ({"loss: dice_ce": "loss: focal"}, ADAM, None),
        # what varies here was fixed there
        (
            {"space:": "space:\n  train_batch_size: {randint: [1, 4]}"},
            ADAM,
            ({"train_batch_size": 2, **ADAM}, []),
        ),
        ({"space:": "space:\n  train_batch_size: {randint: [3, 4]}"}, ADAM, None),
        (
            {"space:": "space:\n  loss: {choice: [focal, dice_ce]}", ", loss: dice_ce": ""},
            ADAM,
            ({"loss": "dice_ce", **ADAM}, []),
        ),
    ],
)
def test_what_fits(change: dict[str, str], values: dict[str, Any], expected: Any) -> None:
    text = EARLIER
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    assert fitting_values(values, spec_of(), spec_of(text)) == expected


def earlier_study(folder: Path, number: int = 24) -> Study:
    """Trials all over the space; the best have a learning rate of 0.03, far from the default."""
    spec = spec_of()
    folder.mkdir()
    record = StudyRecord(folder, spec.space, "max")
    for index, rate in enumerate(np.geomspace(1e-5, 1e-1, number)):
        record.propose({**ADAM, "learning_rate": float(rate)}, "test")
        score = -abs(math.log10(rate) - BEST)
        record.report(index, 9, score, {"val_dice": score}, 1.0)
        record.finish(index, TrialState.COMPLETED, "done")
    for state in (TrialState.DIVERGED, TrialState.FAILED, TrialState.OUT_OF_MEMORY):
        record.propose(SGD, "test")
        record.finish(len(record.entries) - 1, state, "broken")
    record.propose(SGD, "test")
    record.report(len(record.entries) - 1, 3, -9.0, {}, 1.0)
    record.close_running("the time budget ended")
    return Study(folder, spec, record)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    spec = spec_of(search="{warm_start: [old]}")
    kept, imported = import_trials(earlier_study(tmp_path / "old"), spec)
    # completed ones, the diverged one and the one that was cut off
    assert (imported.used, imported.total) == (26, 28)
    assert imported.describe() == "26 of 28 trials of old fit this space"
    write_imported(tmp_path, kept)
    entries = read_imported(tmp_path, spec.space)
    assert sorted(entries) == list(range(-26, 0))
    assert entries[-1].values == {**ADAM, "learning_rate": 1e-5}
    assert entries[-1].scores == {9: pytest.approx(-5 - BEST)}
    assert entries[-25].state is TrialState.DIVERGED
    assert entries[-25].values["class_weights"] == [1, 1, 5]
    assert (entries[-26].state, entries[-26].scores) == (TrialState.STOPPED, {3: -9.0})
    assert entries[-26].proposed_by == "old, trial 27"


def test_of_a_trial_that_took_over_another_its_own_epochs_are_kept() -> None:
    spec = spec_of()
    record = StudyRecord(Path("memory"), spec.space, "max", InMemoryStorage())
    for _ in range(2):
        number = record.propose(ADAM, "test").number
        for epoch in (1, 2):
            record.report(number, epoch, 0.1 * epoch, {}, 1.0)
    record.exploit(1, Exploit(2, 0, {**ADAM, "learning_rate": 0.02}, {}), "")
    for number in (0, 1):
        record.report(number, 3, 0.3, {}, 1.0)
        record.finish(number, TrialState.COMPLETED, "")
    kept, _ = import_trials(Study(Path("old"), spec, record), spec)
    assert [trial["scores"].keys() for trial in kept] == [{"1", "2", "3"}, {"1", "2"}]
    assert [trial["state"] for trial in kept] == ["completed", "stopped"]


def test_of_several_folds_the_scores_of_the_first_are_kept() -> None:
    spec = spec_of()
    record = StudyRecord(Path("memory"), spec.space, "max", InMemoryStorage(), fold_epochs=2)
    record.propose(ADAM, "test")
    for epoch in (1, 2, 3, 4):
        record.report(0, epoch, 0.1 * epoch, {}, 1.0)
    record.finish(0, TrialState.COMPLETED, "")
    ((trial,), _) = import_trials(Study(Path("old"), spec, record), spec)
    assert trial["scores"] == {"1": 0.1, "2": 0.2}
    assert trial["state"] == "completed"


def searcher_of(folder: Path, spec: StudySpec) -> tuple[RecordSearcher, StudyRecord]:
    record = StudyRecord(folder, spec.space, "max")
    return build_searcher(Study(record.folder, spec, record), Policy(record)), record


@pytest.mark.parametrize("name", ["tpe", "gp", "priorband", "cmaes", "nsga2"])
def test_the_first_proposals_know_of_the_earlier_study(name: str, tmp_path: Path) -> None:
    off: dict[bool, list[float]] = {True: [], False: []}
    kept, _ = import_trials(earlier_study(tmp_path / "old"), spec_of())
    for warm, seed in itertools.product((True, False), range(4)):
        search = f"{{searcher: {name}, num_trials: 8, default_first: false, seed: {seed}"
        spec = spec_of(search=search + (", warm_start: [old]}" if warm else "}"))
        folder = tmp_path / f"{warm}{seed}"
        folder.mkdir()
        write_imported(folder, kept)
        searcher, record = searcher_of(folder, spec)
        for number in range(8):
            proposal = searcher.suggest(str(number))
            assert isinstance(proposal, dict)
            off[warm].append(abs(math.log10(proposal["learning_rate"]) - BEST))
            record.report(number, 9, -off[warm][-1], {}, 1.0)
            record.finish(number, TrialState.COMPLETED, "done")
        assert sorted(record.entries) == list(range(8))
        record.close()
    assert np.mean(off[True]) < 0.9 * np.mean(off[False])


def test_a_resumed_study_proposes_the_same_without_the_earlier_one(tmp_path: Path) -> None:
    spec = spec_of(search="{num_trials: 6, warm_start: [old]}")
    kept, _ = import_trials(earlier_study(tmp_path / "old"), spec)
    proposals: list[list[Any]] = []
    for folder, runs in ((tmp_path / "one", [6]), (tmp_path / "three", [2, 2, 2])):
        folder.mkdir()
        write_imported(folder, kept)
        proposals.append([])
        for run in runs:
            searcher, record = searcher_of(folder, spec)
            for _ in range(run):
                proposal = searcher.suggest(str(len(record.entries)))
                assert isinstance(proposal, dict)
                number = TrialRequest.from_ray(proposal).number
                record.report(number, 9, -abs(math.log10(proposal["learning_rate"])), {}, 1.0)
                record.finish(number, TrialState.COMPLETED, "done")
                proposals[-1].append(proposal)
            record.close()
    assert proposals[0] == proposals[1]


def test_no_trial_of_another_study_can_win(tmp_path: Path) -> None:
    spec = spec_of(search="{warm_start: [old]}")
    kept, _ = import_trials(earlier_study(tmp_path / "old"), spec)
    write_imported(tmp_path, kept)
    _, record = searcher_of(tmp_path, spec)
    assert record.best() is None
    assert not record.entries
