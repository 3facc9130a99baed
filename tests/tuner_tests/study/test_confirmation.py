"""What is confirmed, with which seeds, and what is made of it."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import t as student
from scipy.stats import ttest_ind, wilcoxon
from trial_messages import completed, epoch_result

from tuner.driver.confirm_searcher import ConfirmSearcher
from tuner.report.confirmation import confirm_rows, write_confirm_csv
from tuner.report.summary import goal_tables
from tuner.report.worth import did_it_pay
from tuner.spec.load import parse_spec
from tuner.spec.settings import ConfirmSettings
from tuner.spec.study_spec import StudySpec
from tuner.study.confirmation import (
    CASES,
    GRID,
    SEED,
    begin_confirmation,
    candidates,
    confirmed_configs,
    is_confirmed,
    missing,
    open_confirmation,
    plan_confirmation,
    seeds,
    verdict,
)
from tuner.study.record import StudyRecord
from tuner.study.statistics import compare, interval
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState
from tuner.trial.messages import TrialRequest

SPACE = """
config: {max_epochs: 3, seed: 5}
space:
  learning_rate: {loguniform: [1e-5, 1e-1]}
  optimizer: {choice: [adamw, sgd]}
confirm: {top: 2, seeds: 3}
"""


def spec_of(text: str = SPACE) -> StudySpec:
    return parse_spec(text, source="space.yaml")


@pytest.fixture
def record(tmp_path: Path) -> StudyRecord:
    """Trial 0 is the default; 2, 3 and 4 are better, and 3 and 4 the same config."""
    spec = spec_of()
    record = StudyRecord(tmp_path, spec.space, "max")
    good = {"learning_rate": 0.01, "optimizer": "adamw"}
    for values, score in (
        (spec.default_point(), 0.5),
        ({"learning_rate": 0.1, "optimizer": "sgd"}, math.nan),
        ({"learning_rate": 0.02, "optimizer": "sgd"}, 0.7),
        (good, 0.8),
        (good, 0.75),
        ({"learning_rate": 0.03, "optimizer": "sgd"}, 0.6),
    ):
        number = record.propose(values, "test").number
        record.report(number, 3, score, {"val_dice": score}, 1.0)
        state = TrialState.DIVERGED if math.isnan(score) else TrialState.COMPLETED
        record.finish(number, state, "done")
    return record


@pytest.fixture
def study(record: StudyRecord) -> Study:
    return Study(record.folder, spec_of(), record)


def confirm(folder: Path, study: Study, gain: float, trials: int = 99) -> Study:
    """Train what is missing: the score of a case grows with the seed and, by `gain`, with lr."""
    folder.mkdir(exist_ok=True)
    confirmation = Study(folder, study.spec, StudyRecord(folder, study.spec.space, "max"))
    searcher = ConfirmSearcher(confirmation, candidates(study))
    for number in range(trials):
        proposal = searcher.suggest(str(number))
        if not isinstance(proposal, dict):
            break
        entry = confirmation.record.entries[TrialRequest.from_ray(proposal).number]
        assert proposal["seed"] == entry.notes[SEED]
        better = gain * (entry.values["learning_rate"] == 0.01)
        score = 0.7 + better + 0.001 * proposal["seed"]
        cases = {f"case_{n}": score + 0.01 * n for n in range(8)}
        end = {**epoch_result(3, score), **completed(**{CASES: cases})}
        searcher.on_trial_complete(str(number), end)
    return confirmation


def test_the_best_configs_and_the_default_are_confirmed(study: Study) -> None:
    chosen = candidates(study)
    assert [candidate.name for candidate in chosen] == ["trial 3", "trial 2", "default"]
    assert chosen[-1].values == study.spec.default_point()
    # the default is not confirmed twice where it is one of the best
    all_of_them = replace(study, spec=spec_of(SPACE.replace("top: 2", "top: 9")))
    chosen = candidates(all_of_them)
    assert [candidate.trial for candidate in chosen] == [3, 2, 5, 0]
    assert [candidate.is_default for candidate in chosen] == [False, False, False, True]


def test_no_seed_is_that_of_the_search() -> None:
    assert seeds(spec_of()) == [6, 7, 8]


def test_a_confirmation_goes_on_where_it_was_cut_off(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "confirm"
    assert not is_confirmed(study, None)
    half = confirm(folder, study, 0.1, trials=4)
    assert not is_confirmed(study, half)
    before = {n: dict(entry.notes) for n, entry in half.record.entries.items()}
    half.record.close()
    whole = confirm(folder, study, 0.1)
    assert {
        n: dict(entry.notes) for n, entry in whole.record.entries.items() if n in before
    } == before
    assert len(whole.record.entries) == 9
    assert is_confirmed(study, whole)
    assert len({(str(e.values), e.notes[SEED]) for e in whole.record.entries.values()}) == 9
    # the search knows nothing of it
    assert len(study.record.entries) == 6


def test_a_better_config_is_told_apart(study: Study, tmp_path: Path) -> None:
    configs = confirmed_configs(study, confirm(tmp_path / "c", study, 0.1))
    assert configs[0].candidate.name == "trial 3"
    assert configs[0].test.mean == pytest.approx(0.8 + 0.007 + 0.035)
    against = configs[0].against_default
    assert against is not None
    assert against.difference.mean == pytest.approx(0.1)
    assert against.distinguishable
    assert "trial 3 wins and differs from the default config" in verdict(configs)
    # the best seed comes first: it is exported
    assert configs[0].trials[0].notes[SEED] == 8


def test_configs_that_were_measured_on_other_grids_are_not_compared(
    study: Study, tmp_path: Path
) -> None:
    confirmation = confirm(tmp_path / "c", study, 0.1)
    for number in confirmation.record.entries:
        confirmation.record.note(number, GRID, "file")
    configs = confirmed_configs(study, confirmation)
    assert {config.grid for config in configs} == {"file"}
    assert configs[0].against_default is not None
    assert "grid" not in str(confirm_rows(configs))
    default = next(config for config in configs if config.candidate.is_default)
    confirmation.record.note(default.trials[0].number, GRID, "preprocessed")
    configs = confirmed_configs(study, confirmation)
    assert {config.candidate.name: config.grid for config in configs}["default"] == "mixed"
    assert all(config.against_default is None for config in configs)
    assert "is not compared with the default config" in verdict(configs)
    write_confirm_csv(tmp_path / "confirm.csv", configs, study.spec)
    with (tmp_path / "confirm.csv").open() as file:
        grids = {row["config"]: row["test_grid"] for row in csv.DictReader(file)}
    assert grids == {"trial 3": "file", "trial 2": "file", "default": "mixed"}
    assert "(mixed grid)" in str(confirm_rows(configs))


def test_a_config_that_is_no_better_is_not(study: Study, tmp_path: Path) -> None:
    configs = confirmed_configs(study, confirm(tmp_path / "c", study, 1e-6))
    assert "trial 3 wins by validation, but is not distinguishable" in verdict(configs)
    rows = confirm_rows(configs)
    assert {len(row) for row in rows} == {7}
    write_confirm_csv(tmp_path / "confirm.csv", configs, study.spec)
    with (tmp_path / "confirm.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [row["config"] for row in written] == [config.candidate.name for config in configs]
    assert written[0]["distinguishable"] == "False"
    assert float(written[0]["metrics_test_dice"]) == configs[0].test.mean


def test_the_summary_names_what_did_not_complete(study: Study, tmp_path: Path) -> None:
    half = confirm(tmp_path / "confirm", study, 0.1, trials=4)
    entry = half.record.propose(candidates(study)[1].values, "confirm trial 2")
    half.record.note(entry.number, SEED, 7)
    half.record.finish(entry.number, TrialState.DIVERGED, "the training loss is nan")
    half.record.close()
    console = Console(width=200, record=True, file=io.StringIO())
    for shown in goal_tables(study):
        console.print(shown)
    text = console.export_text()
    assert "trial 2 with seed 7: diverged after 0 epochs, the training loss is nan" in text
    assert "trial 3  2 of 3" in text
    assert "confirm trial 3 wins" in text


AUTO = SPACE.replace("confirm: {top: 2, seeds: 3}", "confirm: auto")


@pytest.mark.parametrize(
    ("minutes", "workers", "planned"),
    [(math.inf, 1, 3), (60, 1, 2), (60, 2, 3), (24, 2, 2), (24, 1, None), (0, 4, None)],
)
def test_by_itself_it_has_as_many_seeds_as_there_is_time_for(
    record: StudyRecord, minutes: float, workers: int, planned: int | None
) -> None:
    """A training takes ten minutes and the margin; the winner and the default are trained."""
    for number in (0, 3):
        record.entries[number].seconds = 600.0
    study = Study(record.folder, spec_of(AUTO), record)
    why = plan_confirmation(study, minutes * 60, workers)
    if planned is None:
        assert why is not None
        assert "would take about" in why
        assert open_confirmation(study) is None
        # nothing is left to do
        assert is_confirmed(study, None)
        return
    assert why is None
    confirmation = begin_confirmation(study)
    assert len(seeds(confirmation.spec)) == planned
    assert len(missing(confirmation, candidates(study))) == 2 * planned
    assert not is_confirmed(study, confirmation)
    # what was planned stays so, however little time a later run has
    assert plan_confirmation(study, 0, 1) is None
    assert len(seeds(begin_confirmation(study).spec)) == planned


def test_by_itself_the_default_is_not_compared_with_itself(record: StudyRecord) -> None:
    record.entries[0].scores[2] = 0.9
    why = plan_confirmation(Study(record.folder, spec_of(AUTO), record), math.inf, 1)
    assert why is not None
    assert "the default config has the best score" in why


def test_auto_is_the_winner_and_the_default(record: StudyRecord) -> None:
    spec = spec_of(AUTO)
    assert spec.confirm == ConfirmSettings(auto=True, top=1, seeds=3)
    assert parse_spec(spec.to_yaml(), source="again.yaml").confirm == spec.confirm
    chosen = candidates(Study(record.folder, spec, record))
    assert [candidate.name for candidate in chosen] == ["trial 3", "default"]


@pytest.mark.parametrize(
    ("gain", "answer"),
    [
        (0.1, "Yes: trial 3 is better than the default config, +0.1000 ["),
        (1e-6, "Not distinguishable: trial 3 against the default config +0.0000 ["),
        (-0.1, "No: no config that was confirmed has a better validation score than the default"),
    ],
)
def test_the_first_line_says_whether_the_search_paid(
    record: StudyRecord, tmp_path: Path, gain: float, answer: str
) -> None:
    spec = spec_of(SPACE.replace("top: 2", "top: 1"))
    study = Study(record.folder, spec, record)
    confirm(tmp_path / "confirm", study, gain).record.close()
    shown = did_it_pay(study)
    assert shown.startswith(answer)
    assert "of training for the search and" in shown
    if gain == 0.1:
        assert "on 8 test cases that nothing was chosen by" in shown


def test_without_a_confirmation_the_first_line_says_what_is_known(record: StudyRecord) -> None:
    study = Study(record.folder, spec_of(), record)
    record.entries[4].seconds = 7200.0
    assert did_it_pay(study) == (
        "Not confirmed: val_dice 0.8000 of trial 3 against 0.5000 of the default config (trial 0), "
        "on the validation cases that chose the winner; 2 hours of training for the search"
    )
    # a default config that was paused early cannot be compared with a winner that trained on
    record.entries[0].state = TrialState.PAUSED
    epochs = record.entries[0].epochs
    assert did_it_pay(study).startswith(
        "Not known: val_dice 0.8000 of trial 3; the default config (trial 0) has trained "
        f"{epochs} epochs and had 0.5000 then, where trial 3 had 0.8000; "
    )
    record.entries[0].scores[2] = 0.9
    assert did_it_pay(study).startswith("No: the default config (trial 0) has the best")
    (record.folder / "new").mkdir()
    empty = StudyRecord(record.folder / "new", study.spec.space, "max")
    assert did_it_pay(Study(empty.folder, study.spec, empty)).startswith("Not known yet: no trial")


def test_nothing_is_said_before_anything_is_judged(study: Study) -> None:
    assert confirmed_configs(study, None) == []
    assert verdict([]) == "nothing is confirmed yet"


scores = st.integers(2, 4).flatmap(
    lambda seeds: st.lists(
        st.lists(st.floats(0, 1), min_size=7, max_size=7), min_size=seeds, max_size=seeds
    ).map(np.array)
)


@settings(deadline=None)
@given(scores, scores)
def test_a_comparison_turned_round_has_the_other_sign(one: np.ndarray, other: np.ndarray) -> None:
    there, back = compare(one, other), compare(other, one)
    assert there.difference.mean == pytest.approx(-back.difference.mean)
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.p_value == pytest.approx(back.p_value)
    assert there.distinguishable == back.distinguishable


@settings(deadline=None)
@given(scores)
def test_a_config_is_not_told_apart_from_itself(one: np.ndarray) -> None:
    assert not compare(one, one).distinguishable


def test_without_a_difference_between_cases_it_is_welchs_test() -> None:
    one = np.array([0.8, 0.83, 0.81])[:, None] + np.zeros(9)
    other = np.array([0.7, 0.78, 0.74, 0.75])[:, None] + np.zeros(9)
    welch = ttest_ind(one[:, 0], other[:, 0], equal_var=False)
    found = compare(one, other)
    assert found.p_value == pytest.approx(welch.pvalue)
    expected = welch.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx(tuple(expected))


def test_without_a_difference_between_seeds_it_is_the_t_interval() -> None:
    cases = np.array([0.7, 0.8, 0.85, 0.9, 0.6])
    low, high = student.interval(0.95, 4, cases.mean(), cases.std(ddof=1) / math.sqrt(5))
    found = interval(np.stack([cases, cases]))
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_luck_of_a_seed_is_no_difference() -> None:
    """Cases alone tell half of all equal configs apart; 5 % may be."""
    rng = np.random.default_rng(0)
    apart = by_cases = 0
    for _ in range(300):
        cases = rng.normal(0.85, 0.1, 30)

        def train(cases: np.ndarray = cases) -> np.ndarray:
            return cases + rng.normal(0, 0.01, (3, 1)) + rng.normal(0, 0.02, (3, 30))

        one, other = train(), train()
        found = compare(one, other)
        assert found.p_cases == wilcoxon(one.mean(axis=0) - other.mean(axis=0)).pvalue
        apart += found.distinguishable
        by_cases += found.p_cases < 0.05
    assert by_cases / 300 > 0.3
    # 5 % of 300, and three standard deviations
    assert apart <= 15 + 3 * math.sqrt(300 * 0.05 * 0.95)


def test_five_cases_are_too_few_for_wilcoxons_test() -> None:
    one = np.linspace(0.8, 0.81, 15).reshape(3, 5)
    assert not compare(one + 0.5, one).distinguishable


@pytest.mark.parametrize("cases", [6, 20])
def test_a_great_difference_is_told_apart(cases: int) -> None:
    one = np.random.default_rng(cases).normal(0.7, 0.01, (3, cases))
    assert compare(one + 0.3, one).distinguishable
