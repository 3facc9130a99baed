"""Prints a valid spec: its space, its search and its budget."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.report import numbers
from tuner.report.tables import terminal_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from tuner.spec.study_spec import StudySpec


def print_spec(console: Console, spec: StudySpec) -> None:
    """Print the space and the budget of a valid spec."""
    table = terminal_table(["field", "domain", "when"], spec.space.describe())
    aims = ", ".join(f"{mode} {name}" for name, mode in spec.objectives)
    console.print(f"{spec.source} is valid: {aims}", markup=False)
    console.print()
    console.print(table)
    console.print()
    trials = _planned(spec)
    full = trials * spec.full_epochs
    console.print(
        f"search    {spec.search.searcher}, {spec.search.num_trials} trials, "
        f"seed {spec.search.seed}",
        markup=False,
    )
    for line in (*_grid_lines(spec), *_target_lines(spec)):
        console.print(line, markup=False)
    decides = spec.policy.describe(spec.max_epochs)
    if decides:
        console.print(f"policy    {spec.policy.name}: {decides}", markup=False)
    if spec.folds > 1:
        race = (
            "a trial that is behind beyond doubt gets no further one"
            if spec.search.race
            else ("each trial that ends the first one gets all")
        )
        console.print(f"folds     {spec.folds}: {race}")
    if not spec.rungs() and not (spec.folds > 1 and spec.search.race):
        most = "at most " if spec.policy.stops_trials else ""
        console.print(f"budget    {most}{full} epochs: every trial trains {most}{spec.full_epochs}")
        return
    on_all = " on every fold" if spec.folds > 1 else ""
    expected = spec.expected_epochs() * trials / spec.search.num_trials
    console.print(
        f"budget    about {expected:.0f} epochs; training every trial to epoch "
        f"{spec.max_epochs}{on_all} would take {full} ({numbers.times(full, expected)})"
    )


def _planned(spec: StudySpec) -> int:
    """Trials of the study; those of a grid are counted with Ray's searchers, which load slowly."""
    if spec.search.searcher != "grid":
        return spec.search.num_trials
    from tuner.spec.grid import planned_trials

    return planned_trials(spec)


def _grid_lines(spec: StudySpec) -> Iterator[str]:
    """A line about the size of a grid."""
    if spec.search.searcher != "grid":
        return
    from tuner.spec.grid import grid_points, trials_of_grid

    points, trials = len(grid_points(spec.space)), trials_of_grid(spec)
    beside = f", {trials} trials with those to try first" if trials > points else ""
    if trials > spec.search.num_trials:
        end = f"num_trials={spec.search.num_trials} ends the search before all are tried"
    else:
        end = f"the search ends when all are tried, after {trials} trials"
    yield f"grid      {points} points{beside}: {end}"


def _target_lines(spec: StudySpec) -> Iterator[str]:
    """Lines about metrics, budgets and constraints, where the file sets them."""
    search, limits = spec.search, spec.constraints
    budgets = [
        f"{search.epoch_budget} epochs" if search.epoch_budget is not None else "",
        f"{search.gpu_hours:g} GPU-hours" if search.gpu_hours is not None else "",
        f"{search.time_budget:g} s a run" if search.time_budget is not None else "",
    ]
    if any(budgets):
        yield f"at most   {', '.join(budget for budget in budgets if budget)}"
    if search.warm_start:
        yield f"learns    from the studies {', '.join(search.warm_start)}"
    kept = [
        f"{limits.max_parameters:,} parameters" if limits.max_parameters is not None else "",
        f"{limits.max_memory.human_readable(decimal=True)} of memory"
        if limits.max_memory is not None
        else "",
    ]
    if any(kept):
        yield f"networks  of at most {', '.join(limit for limit in kept if limit)}"
    if spec.confirm is not None:
        most = (spec.confirm.top + 1) * spec.confirm.seeds
        yield (
            f"confirm   the best {spec.confirm.top} and the default config, "
            f"{spec.confirm.seeds} seeds each: after the search, up to {most * spec.max_epochs} "
            f"epochs {'in what is left of' if spec.confirm.auto else 'beside'} its budget"
        )
