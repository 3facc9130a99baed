from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from tuner.report.summary import print_summary
from tuner.spec.load import parse_spec
from tuner.study.failed_trials import failure_lines, most_failed
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

SPEC = parse_spec("space: {learning_rate: {loguniform: [1e-5, 1e-2]}}", source="space.yaml")

F, M, D = TrialState.FAILED, TrialState.OUT_OF_MEMORY, TrialState.DIVERGED
C, S, R = TrialState.COMPLETED, TrialState.STOPPED, TrialState.RUNNING


def record_of(folder: Path, states: list[TrialState], reasons: list[str]) -> StudyRecord:
    record = StudyRecord(folder, SPEC.space, "max")
    for state, reason in zip(states, reasons, strict=True):
        entry = record.propose({"learning_rate": 1e-3}, "a test")
        if state in (C, S):
            record.report(entry.number, 1, 0.5, {"val_dice": 0.5}, 1.0)
        if state is not R:
            record.finish(entry.number, state, reason)
    return record


@pytest.mark.parametrize(
    ("states", "most"),
    [
        ([], False),
        ([F], True),
        ([F, C], False),
        ([F, M, C], True),
        ([D, D, C], False),
        ([F, D, C], False),
        # what still runs is no success yet
        ([F, R, R], True),
        ([S, F, F, C], False),
    ],
)
def test_most_trials_failed(tmp_path: Path, states: list[TrialState], most: bool) -> None:
    assert most_failed(record_of(tmp_path, states, ["why"] * len(states))) is most


def test_reasons_are_grouped_and_counted(tmp_path: Path) -> None:
    reasons = [f"no room for {number} bytes" for number in range(4)]
    record = record_of(
        tmp_path, [F, F, M, F, D, C], [*reasons[:2], "out", "a fault", "nan", "trained"]
    )
    assert failure_lines(record) == [
        "4 of 6 trials failed:",
        "  2 x no room for 0 bytes (trials 0, 1)",
        "  1 x out (trial 2)",
        "  1 x a fault (trial 3)",
        "1 of 6 trials diverged:",
        "  1 x nan (trial 4)",
        "most trials failed: read the reasons before you use the best of the others",
    ]


def test_without_a_best_trial_nobody_is_sent_to_it(tmp_path: Path) -> None:
    record = record_of(tmp_path, [F, F, D], ["a fault", "a fault", "nan"])
    assert failure_lines(record) == [
        "2 of 3 trials failed:",
        "  2 x a fault (trials 0, 1)",
        "1 of 3 trials diverged:",
        "  1 x nan (trial 2)",
    ]


def test_the_summary_says_first_what_failed(tmp_path: Path) -> None:
    # torch's own words, which rich would take for its markup
    reason = "RuntimeError: [enforce fail at alloc_cpu.cpp:118] [/x] is no module"
    record = record_of(tmp_path, [F, C], [reason, "trained"])
    shown = io.StringIO()
    print_summary(Console(file=shown, width=160), Study(tmp_path, SPEC, record))
    lines = [line for line in shown.getvalue().splitlines() if line]
    assert lines[:2] == ["1 of 2 trials failed:", f"  1 x {reason} (trial 0)"]
    assert sum(reason in line for line in lines) == 2


def test_a_study_without_failures_says_nothing_of_them(tmp_path: Path) -> None:
    assert failure_lines(record_of(tmp_path, [C, S], ["trained"] * 2)) == []
