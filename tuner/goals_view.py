"""What the summary of a study says of its budgets, its Pareto front and its confirmation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from tuner.budget import budget_lines, spent_budget
from tuner.confirm import SEED, confirm_record, confirmed_configs, verdict
from tuner.confirm_report import confirm_columns, confirm_rows
from tuner.pareto import front_rows, pareto_front
from tuner.record import TrialState
from tuner.warm_start import read_imported

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tuner.record import StudyRecord
    from tuner.spec import StudySpec


def spending_lines(folder: Path, record: StudyRecord, spec: StudySpec) -> Iterator[str]:
    """Lines about budgets, and about trials that were learned from."""
    for line in budget_lines(record, spec):
        yield f"budget  {line}"
    reason = spent_budget(record, spec)
    if reason is not None:
        yield f"        {reason}"
    if learned := read_imported(folder, spec.space):
        yield f"learned from {len(learned)} trials of {', '.join(spec.search.warm_start)}"


def goal_tables(folder: Path, record: StudyRecord, spec: StudySpec) -> Iterator[RenderableType]:
    """The Pareto front and the confirmation, where the study has them."""
    if spec.further_metrics:
        front = pareto_front(record.entries.values(), spec.objectives)
        columns = ["front", *(f"{name} ({mode})" for name, mode in spec.objectives)]
        yield _table(columns, front_rows(front, spec.objectives))
    if spec.confirm is not None:
        confirmation = confirm_record(folder, spec)
        confirmed = confirmed_configs(record, confirmation, spec)
        if confirmed:
            yield _table(confirm_columns(spec), confirm_rows(confirmed, spec))
        yield escape(f"confirm {verdict(confirmed)}")
        for entry in confirmation.entries.values() if confirmation else ():
            if entry.state is not TrialState.COMPLETED:
                yield escape(
                    f"        {entry.proposed_by.removeprefix('confirm ')} with seed "
                    f"{entry.notes.get(SEED)}: {entry.state} after {entry.epochs} epochs, "
                    f"{entry.reason}"
                )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        # an interval in brackets is no markup
        table.add_row(*(escape(cell) for cell in row))
    return table
