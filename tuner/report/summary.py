"""The summary of a study in the terminal: trials, best config, budgets, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from tuner.report import numbers
from tuner.report.confirmation import confirm_columns, confirm_rows
from tuner.report.tables import best_line, front_rows, plain_table, state_counts, trials_table
from tuner.report.worth import QUESTION, did_it_pay
from tuner.spec.grid import planned_trials
from tuner.study.budget import budget_lines, spent_budget
from tuner.study.commands import shown_name, study_command
from tuner.study.confirmation import (
    SEED,
    confirmed_configs,
    is_confirmed,
    open_confirmation,
    verdict,
)
from tuner.study.failed_trials import failure_lines
from tuner.study.files import REPORT, RESULTS
from tuner.study.lineage import schedule
from tuner.study.no_winner import no_winner, way_out
from tuner.study.nodes import left_out_lines, read_nodes
from tuner.study.pareto import pareto_front
from tuner.study.trial_entry import TrialEntry, TrialState, epochs_spent
from tuner.study.warm_start import read_imported

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tuner.study.record import StudyRecord
    from tuner.study.study import Study


def spending_lines(study: Study) -> Iterator[str]:
    """Lines about budgets, and about trials that were learned from."""
    for line in budget_lines(study):
        yield f"budget  {line}"
    reason = spent_budget(study)
    if reason is not None:
        yield f"        {reason}"
    if learned := read_imported(study.folder, study.spec.space):
        names = ", ".join(study.spec.search.warm_start)
        yield f"learned from {len(learned)} trials of {names}"


def goal_tables(study: Study) -> Iterator[RenderableType]:
    """The Pareto front and the confirmation, where the study has them."""
    spec = study.spec
    if spec.further_metrics:
        front = pareto_front(study.record.entries.values(), spec.objectives)
        columns = ["front", *(f"{name} ({mode})" for name, mode in spec.objectives)]
        yield plain_table(columns, front_rows(front, spec.objectives))
    if spec.confirm is not None:
        confirmation = open_confirmation(study)
        confirmed = confirmed_configs(study, confirmation)
        if confirmed:
            yield plain_table(confirm_columns(spec), confirm_rows(confirmed))
        yield escape(f"confirm {verdict(confirmed)}")
        for entry in confirmation.record.entries.values() if confirmation else ():
            if entry.state is not TrialState.COMPLETED:
                yield escape(
                    f"        {entry.proposed_by.removeprefix('confirm ')} with seed "
                    f"{entry.notes.get(SEED)}: {entry.state} after {entry.epochs} epochs, "
                    f"{entry.reason}"
                )


def print_summary(
    console: Console,
    study: Study,
    shown: Sequence[TrialEntry] | None = None,
    *,
    driven: bool = False,
) -> None:
    """Print a study: trials, best config, epochs against full training, what to type next.

    Args:
        console: Where to print it.
        study: The study.
        shown: The trials to list, in this order; all by number if None.
        driven: Whether another process runs the study now, so that it cannot be resumed.
    """
    record, spec = study.record, study.spec
    entries = sorted(record.entries.values(), key=lambda entry: entry.number)
    console.print()
    for line in failure_lines(record):
        console.print(line, markup=False)
    console.print(f"{QUESTION} {did_it_pay(study)}", markup=False)
    console.print(trials_table(entries if shown is None else shown, spec.metric, record.mode))
    spent = epochs_spent(entries)
    full = len(entries) * spec.full_epochs
    console.print()
    console.print("trials  " + state_counts(study))
    if full:
        times = f" ({numbers.times(full, spent)})" if spent else ""
        console.print(
            f"epochs  {spent}; training all {len(entries)} trials to the end would take "
            f"{full}{times}"
        )
    for line in spending_lines(study):
        console.print(line, markup=False)
    for line in left_out_lines(read_nodes(study.folder)):
        console.print(f"nodes   {line}", markup=False)
    console.print("best    " + best_line(study))
    for line in _best_value_lines(record):
        console.print(f"        {line}", markup=False)
    for table in goal_tables(study):
        console.print(table)
    files = [study.folder / name for name in (RESULTS, REPORT)]
    written = [str(path) for path in files if path.is_file()]
    if written:
        console.print(f"files   {', '.join(written)}", markup=False)
    for step in next_commands(study, driven=driven):
        console.print(f"next    {step}", markup=False)


def _best_value_lines(record: StudyRecord) -> list[str]:
    """The values that the best score was reached with, or why there is none."""
    best = record.best()
    if best is not None:
        return [f"  {stretch}" for stretch in _winning_schedule(record, best)]
    entries = record.entries.values()
    return [no_winner(record)] if entries and all(e.state.finished for e in entries) else []


def _winning_schedule(record: StudyRecord, best: TrialEntry) -> list[str]:
    """The values that the best score was reached with, by epochs if they changed."""
    score = best.best(record.mode)
    assert score is not None
    stretches = schedule(record.entries, best.number, score[0])
    if len(stretches) == 1:
        return [f"{name}: {numbers.value(v)}" for name, v in stretches[0].values.items()]
    return [
        f"epochs {s.first} to {s.last} (trial {s.trial}): {numbers.values(s.values)}"
        for s in stretches
    ]


def next_commands(study: Study, *, driven: bool = False) -> list[str]:
    """Commands to type next; none that is refused while another process runs the study."""
    folder, record, spec = study.folder, study.record, study.spec
    unfinished = record.unfinished() or len(record.entries) < planned_trials(spec)
    spent = spent_budget(study) is not None
    steps = []
    if driven:
        pass
    elif unfinished and spent:
        option = "--epoch-budget N" if spec.search.epoch_budget is not None else "--gpu-hours H"
        steps.append(f"{study_command('resume', folder)} {option}")
    elif unfinished or not is_confirmed(study, open_confirmation(study)):
        steps.append(study_command("resume", folder))
    elif record.entries and record.best() is None:
        steps.append(way_out(study))
    if record.best(running=False) is not None:
        steps.append(f"{study_command('export', folder)} -o bundle")
    if record.best() is not None:
        steps.append(f"tensorboard --logdir {shlex.quote(shown_name(str(folder / 'trials')))}")
    return steps
