"""The front of several metrics, and the searcher that seeks it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import InMemoryStorage

from tuner.driver.checkpoint_keeper import CheckpointKeeper
from tuner.driver.searcher import build_searcher
from tuner.report.plots import front_plot
from tuner.search.policies import Policy
from tuner.search.searchers import SEARCHERS, SearchView
from tuner.spec.load import parse_spec
from tuner.spec.study_spec import StudySpec
from tuner.study.files import trial_folder
from tuner.study.pareto import pareto_front
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialEntry, TrialState

OBJECTIVES = (("val_dice", "max"), ("val_seconds_per_case", "min"))

values = st.tuples(st.integers(0, 5), st.integers(0, 5))


def entry(number: int, dice: float, seconds: float, state: str = "completed") -> TrialEntry:
    metrics = {"val_dice": dice, "val_seconds_per_case": seconds}
    return TrialEntry(number, {}, TrialState(state), scores={1: dice}, metrics=metrics)


@given(st.lists(values, max_size=12))
def test_the_front_is_that_of_optuna(points: list[tuple[int, int]]) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials([optuna.create_trial(values=[float(a), float(b)]) for a, b in points])
    front = pareto_front([entry(n, a, b) for n, (a, b) in enumerate(points)], OBJECTIVES)
    assert {one.number for one in front} == {trial.number for trial in study.best_trials}


def test_the_front_is_ordered_and_leaves_out_what_cannot_win() -> None:
    entries = [
        entry(0, 0.7, 1.0),
        entry(1, 0.9, 3.0),
        entry(2, 0.6, 2.0),
        entry(3, 0.99, 0.1, "infeasible"),
        entry(4, math.nan, 0.1),
        entry(5, 0.8, 2.0, "stopped"),
    ]
    front = pareto_front(entries, OBJECTIVES)
    assert [one.number for one in front] == [1, 5, 0]
    picture = front_plot(entries, front, OBJECTIVES)
    assert picture.count("<circle") == 4
    assert picture.count("fill='#0e7490'") == 3


def test_the_front_keeps_its_checkpoints_while_it_is_one(tmp_path: Path) -> None:
    spec = spec_of(
        "[val_dice, val_seconds_per_case]", "checkpoints: {keep: 1}\nexport: {ensemble: 1}"
    )
    record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
    keeper = CheckpointKeeper(Study(tmp_path, spec, record))
    kept = []
    for number, (dice, seconds) in enumerate([(0.9, 5), (0.6, 2), (0.7, 3), (0.5, 4), (0.8, 1)]):
        record.propose({"learning_rate": 0.1, "foreground_fraction": 0.5}, "")
        record.report(number, 9, dice, {"val_dice": dice, "val_seconds_per_case": seconds}, 1.0)
        record.finish(number, TrialState.COMPLETED, "done")
        trial_folder(tmp_path, number).mkdir(parents=True)
        (trial_folder(tmp_path, number) / "best.ckpt").touch()
        keeper.prune()
        kept.append({int(path.parent.name) for path in tmp_path.glob("trials/*/best.ckpt")})
    # the last one is better and faster than all but the winner
    assert kept == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2}, {0, 4}]


def spec_of(metric: str, more: str = "") -> StudySpec:
    return parse_spec(
        f"""
metric: {metric}
config: {{max_epochs: 9}}
space:
  learning_rate: {{uniform: [0.001, 1]}}
  foreground_fraction: {{uniform: [0, 1]}}
search: {{searcher: nsga2, num_trials: 96, default_first: false}}
policy: none
{more}
""",
        source="space.yaml",
    )


def late_proposals(spec: StudySpec) -> np.ndarray:
    """Dice grows with the learning rate, and so does the cost; off 0.5, it is only worse."""
    record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
    searcher = build_searcher(Study(record.folder, spec, record), Policy(record))
    for number in range(96):
        proposal = searcher.suggest(str(number))
        assert isinstance(proposal, dict)
        benefit, off = proposal["learning_rate"], abs(proposal["foreground_fraction"] - 0.5)
        metrics = {"val_dice": benefit - off, "val_seconds_per_case": benefit + off}
        record.report(number, 9, benefit - off, metrics, 1.0)
        record.finish(number, TrialState.COMPLETED, "done")
    return np.array(
        [
            (one.values["learning_rate"], abs(one.values["foreground_fraction"] - 0.5))
            for one in list(record.entries.values())[64:]
        ]
    )


def test_nsga2_seeks_the_whole_front() -> None:
    front = late_proposals(spec_of("[val_dice, val_seconds_per_case]"))
    best = late_proposals(spec_of("val_dice"))
    # the median of uniform draws is 0.25 off
    assert np.median(front[:, 1]) < 0.15
    # one metric alone drives to the greatest benefit, two keep the cheap ones as well
    assert np.median(best[:, 0]) > 0.7
    assert np.median(front[:, 0]) < 0.6


@pytest.mark.parametrize("name", sorted(set(SEARCHERS) - {"grid", "nsga2"}))
def test_other_searchers_go_by_the_first_metric(name: str) -> None:
    proposals = []
    for metric in ("val_dice", "[val_dice, val_seconds_per_case]"):
        spec = spec_of(metric)
        record = StudyRecord(Path("memory"), spec.space, spec.mode, InMemoryStorage())
        for number in range(8):
            record.propose({"learning_rate": 0.1 + 0.1 * number, "foreground_fraction": 0.2}, "")
            seconds = {"val_seconds_per_case": 9.0 - number}
            record.report(number, 9, number / 10, seconds, 1.0)
            record.finish(number, TrialState.COMPLETED, "done")
        view = SearchView(record, 8, 0, spec.default_point(), (9,), spec.further_metrics)
        proposals.append(SEARCHERS.resolve(name)(view))
    assert proposals[0] == proposals[1]
