"""What `tune check` prints: the space, its conditions, and what the search may cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.spec import StudySpec


def print_spec(console: Console, spec: StudySpec) -> None:
    """Print the space and the budget of a valid spec."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("field", "domain", "when"):
        table.add_column(column)
    for name, domain, condition in spec.space.describe():
        table.add_row(name, domain, condition)
    console.print(f"{spec.source} is valid: {spec.mode} {spec.metric}", markup=False)
    console.print()
    console.print(table)
    console.print()
    full = spec.search.num_trials * spec.max_epochs
    console.print(
        f"search    {spec.search.searcher}, {spec.search.num_trials} trials, "
        f"seed {spec.search.seed}",
        markup=False,
    )
    if spec.asha is None:
        console.print(f"budget    {full} epochs: every trial trains {spec.max_epochs}")
        return
    rungs = ", ".join(str(rung) for rung in spec.rungs())
    console.print(
        f"ASHA      compares at epochs {rungs}; about 1 in {spec.asha.reduction_factor} goes on"
    )
    expected = spec.expected_epochs()
    console.print(
        f"budget    about {expected:.0f} epochs; training every trial to epoch "
        f"{spec.max_epochs} would take {full} ({full / expected:.1f} times as many)"
    )
