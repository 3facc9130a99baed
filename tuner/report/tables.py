"""Tables for the terminal and for the report: of trials, of studies, of a front, of test scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from rich.table import Column, Table
from rich.text import Text

from tuner.report.numbers import decimals, duration, mean_of_folds, metric, number_of, score
from tuner.report.placement import PLACE_COLUMNS, place_cells, places_differ
from tuner.report.states import STYLES
from tuner.spec.grid import planned_trials
from tuner.study.commands import shown_name
from tuner.study.pareto import Objectives
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry

SENTENCE = 40
"""Characters above which a cell of a web page gets a minimum width."""


def terminal_table(
    columns: Sequence[Column | str],
    rows: Iterable[Sequence[str | Text]],
    caption: str | None = None,
) -> Table:
    """A table without lines; cells are plain text, so brackets are not markup.

    Args:
        columns: Headings, or rich's columns where one is not aligned to the left.
        rows: A cell a column.
        caption: A sentence below.
    """
    table = Table(*columns, box=None, padding=(0, 2, 0, 0), caption=caption)
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def html_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a web page; cells are plain text."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _html_cell(text: str) -> str:
    kind = " class='sentence'" if len(text) > SENTENCE else ""
    return f"<td{kind}>{escape(text)}</td>"


def plain_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose cells are never wrapped."""
    return terminal_table([Column(heading, no_wrap=True) for heading in columns], rows)


def front_rows(front: Iterable[TrialEntry], objectives: Objectives) -> list[list[str]]:
    """Trial and metrics of each trial of a front, as text."""
    return [
        [str(entry.number), *(metric(entry.metrics[name]) for name, _ in objectives)]
        for entry in front
    ]


def trials_table(entries: Iterable[TrialEntry], metric: str, mode: str) -> Table:
    """Every trial with its state, its score, where it ran and the reason of its end."""
    entries = list(entries)
    placed = places_differ(entries)
    columns: list[Column | str] = [
        Column("trial", justify="right"),
        "state",
        Column("epochs", justify="right"),
        Column(f"best {metric}", justify="right"),
        Column("time", justify="right"),
        *(PLACE_COLUMNS if placed else ()),
        "why it ended",
    ]
    rows: list[list[str | Text]] = [
        [
            str(entry.number),
            Text(entry.state, style=STYLES[entry.state]),
            str(entry.epochs),
            best_score(entry, mode),
            duration(entry.seconds),
            *(place_cells(entry) if placed else ()),
            entry.reason,
        ]
        for entry in entries
    ]
    return terminal_table(columns, rows)


def best_score(entry: TrialEntry, mode: str) -> str:
    """The best score of a trial, "" without one; of several folds their mean."""
    if not entry.finished_folds:
        best = entry.best(mode)
        return "" if best is None else score(best[1])
    scores = entry.fold_scores(mode)
    return f"{mean_of_folds(scores)} ({number_of(len(scores), 'fold')})"


def studies_table(studies: Iterable[Study]) -> Table:
    """One line a study: its trials, its best score, its folder."""
    rows: list[list[str | Text]] = [
        [
            shown_name(study.name),
            Text.from_markup(state_counts(study)),
            best_line(study),
            shown_name(str(study.folder)),
        ]
        for study in studies
    ]
    return terminal_table(["study", "trials", "best", "folder"], rows)


def state_counts(study: Study) -> str:
    """The number of trials in each state, and of those not started yet."""
    parts = [
        f"[{STYLES[state]}]{len(entries)} {state}[/]"
        for state in TrialState
        if (entries := study.record.with_state(state))
    ]
    waiting = planned_trials(study.spec) - len(study.record.entries)
    if waiting > 0:
        parts.append(f"{waiting} to come")
    return " · ".join(parts)


def best_line(study: Study) -> str:
    """The best score, with its trial and epoch."""
    entry = study.record.best()
    if entry is None or (best := entry.best(study.record.mode)) is None:
        return "none yet"
    running = ", still running" if entry.state is TrialState.RUNNING else ""
    if entry.finished_folds:
        scores = entry.fold_scores(study.record.mode)
        where = f"trial {entry.number}, mean of {number_of(len(scores), 'fold')}{running}"
        return f"{study.spec.metric} {mean_of_folds(scores)} ({where})"
    where = f"trial {entry.number}, epoch {best[0]}{running}"
    return f"{study.spec.metric} {score(best[1])} ({where})"


def case_scores_table(scores: Mapping[str, Sequence[float]], tolerance: float, grid: str) -> Table:
    """Test scores of each class and their means.

    Args:
        scores: Dice, NSD, HD95, ASSD, and the number of cases without a distance, by class.
        tolerance: Tolerance of the normalised surface Dice, in mm.
        grid: What they were measured on; `file` goes without saying.
    """
    headings = ["Dice", f"NSD {tolerance:g} mm", "HD95 mm", "ASSD mm", "missing"]
    where = "" if grid == "file" else f" (grid: {grid})"
    places = (4, 4, 2, 2, 0)
    return terminal_table(
        [f"test cases{where}", *(Column(heading, justify="right") for heading in headings)],
        (
            [name, *(decimals(value, each) for value, each in zip(numbers, places, strict=True))]
            for name, numbers in scores.items()
        ),
        caption="missing: cases without a distance",
    )
