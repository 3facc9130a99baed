"""Tables of trials and studies for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tuner.report.states import STYLES
from tuner.spec.grid import planned_trials
from tuner.study.commands import shown_name
from tuner.study.pareto import Objectives
from tuner.study.trial_entry import TrialState

if TYPE_CHECKING:
    from tuner.study.study import Study
    from tuner.study.trial_entry import TrialEntry


def front_rows(front: Iterable[TrialEntry], objectives: Objectives) -> list[list[str]]:
    """Trial and metrics of each trial of a front, as text."""
    return [
        [str(entry.number), *(f"{entry.metrics[name]:.4g}" for name, _ in objectives)]
        for entry in front
    ]


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of plain text, without lines."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        # an interval in brackets is no markup
        table.add_row(*(escape(cell) for cell in row))
    return table


def trials_table(entries: Iterable[TrialEntry], metric: str, mode: str) -> Table:
    """Every trial with its state, its score and the reason of its end."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column, justify in (
        ("trial", "right"),
        ("state", "left"),
        ("epochs", "right"),
        (f"best {metric}", "right"),
        ("time", "right"),
        ("why it ended", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for entry in entries:
        best = entry.best(mode)
        table.add_row(
            str(entry.number),
            f"[{STYLES[entry.state]}]{entry.state}[/]",
            str(entry.epochs),
            "" if best is None else f"{best[1]:.4f}",
            duration(entry.seconds),
            escape(entry.reason),
        )
    return table


def studies_table(studies: Iterable[Study]) -> Table:
    """One line a study: its trials, its best score, its folder."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("study", "trials", "best", "folder"):
        table.add_column(column)
    for study in studies:
        table.add_row(
            Text(shown_name(study.name)),
            state_counts(study),
            best_line(study),
            Text(shown_name(str(study.folder))),
        )
    return table


def state_counts(study: Study) -> str:
    """How many trials are in which state, and how many are still to come."""
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
    return f"{study.spec.metric} {best[1]:.4f} (trial {entry.number}, epoch {best[0]}{running})"


def duration(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short_values(values: dict[str, Any]) -> str:
    """Sampled values on one line, floats with three digits."""
    return "  ".join(f"{name}={short_value(value)}" for name, value in values.items())


def short_value(value: Any) -> str:
    """One value, floats with three digits."""
    if value is None:
        return "null"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
