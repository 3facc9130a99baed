"""What the summary of a study says of its budgets, its Pareto front and its confirmation."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from tuner.report.confirmation import confirm_columns, confirm_rows
from tuner.report.tables import (
    best_line,
    front_rows,
    plain_table,
    short_value,
    short_values,
    state_counts,
    trials_table,
)
from tuner.spec.grid import planned_trials
from tuner.study.budget import budget_lines, spent_budget
from tuner.study.commands import shown_name, study_command
from tuner.study.confirmation import SEED, confirm_record, confirmed_configs, is_confirmed, verdict
from tuner.study.failed_trials import failure_lines
from tuner.study.files import REPORT, RESULTS
from tuner.study.lineage import schedule
from tuner.study.no_winner import no_winner, way_out
from tuner.study.pareto import pareto_front
from tuner.study.trial_entry import TrialEntry, TrialState, epochs_spent
from tuner.study.warm_start import read_imported

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tuner.spec.study_spec import StudySpec
    from tuner.study.record import StudyRecord


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
        yield plain_table(columns, front_rows(front, spec.objectives))
    if spec.confirm is not None:
        confirmation = confirm_record(folder, spec)
        confirmed = confirmed_configs(record, confirmation, spec)
        if confirmed:
            yield plain_table(confirm_columns(spec), confirm_rows(confirmed, spec))
        yield escape(f"confirm {verdict(confirmed)}")
        for entry in confirmation.entries.values() if confirmation else ():
            if entry.state is not TrialState.COMPLETED:
                yield escape(
                    f"        {entry.proposed_by.removeprefix('confirm ')} with seed "
                    f"{entry.notes.get(SEED)}: {entry.state} after {entry.epochs} epochs, "
                    f"{entry.reason}"
                )


def print_summary(
    console: Console, folder: Path, record: StudyRecord, spec: StudySpec, *, driven: bool = False
) -> None:
    """A study: trials, best config, epochs against full training, what to type.

    Args:
        console: Where to print it.
        folder: The study's folder.
        record: Its record.
        spec: Its spec.
        driven: Whether another process runs the study now, so that it cannot be resumed.
    """
    entries = sorted(record.entries.values(), key=lambda entry: entry.number)
    console.print()
    for line in failure_lines(record):
        console.print(line, markup=False)
    console.print(trials_table(entries, spec.metric, record.mode))
    spent = epochs_spent(entries)
    full = len(entries) * spec.max_epochs
    console.print()
    console.print("trials  " + state_counts(record, planned_trials(spec)))
    if full:
        times = f" ({full / spent:.1f} times as many)" if spent else ""
        console.print(
            f"epochs  {spent}; training all {len(entries)} trials to the end would take "
            f"{full}{times}"
        )
    for line in spending_lines(folder, record, spec):
        console.print(line, markup=False)
    console.print("best    " + best_line(record, spec.metric))
    for line in _about_the_best(record):
        console.print(f"        {line}", markup=False)
    for table in goal_tables(folder, record, spec):
        console.print(table)
    written = [str(folder / name) for name in (RESULTS, REPORT) if (folder / name).is_file()]
    if written:
        console.print(f"files   {', '.join(written)}", markup=False)
    for step in next_commands(folder, record, spec, driven=driven):
        console.print(f"next    {step}", markup=False)


def _about_the_best(record: StudyRecord) -> list[str]:
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
        return [f"{name}: {short_value(v)}" for name, v in stretches[0].values.items()]
    return [
        f"epochs {s.first} to {s.last} (trial {s.trial}): {short_values(dict(s.values))}"
        for s in stretches
    ]


def next_commands(
    folder: Path, record: StudyRecord, spec: StudySpec, *, driven: bool = False
) -> list[str]:
    """What a person would type next; nothing that is refused while another process runs it."""
    unfinished = record.unfinished() or len(record.entries) < planned_trials(spec)
    spent = spent_budget(record, spec) is not None
    steps = []
    if driven:
        pass
    elif unfinished and spent:
        option = "--epoch-budget N" if spec.search.epoch_budget is not None else "--gpu-hours H"
        steps.append(f"{study_command('resume', folder)} {option}")
    elif unfinished or not is_confirmed(record, confirm_record(folder, spec), spec):
        steps.append(study_command("resume", folder))
    elif record.entries and record.best() is None:
        steps.append(way_out(record, folder))
    if record.best(running=False) is not None:
        steps.append(f"{study_command('export', folder)} -o bundle")
    if record.best() is not None:
        steps.append(f"tensorboard --logdir {shlex.quote(shown_name(str(folder / 'trials')))}")
    return steps
