"""Terminal output of `tune data check`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from training.data.statistics.findings import KINDS, Finding
from tuner.report.numbers import number_of

if TYPE_CHECKING:
    from rich.console import Console

    from training.data.statistics.check import DataCheck

SHOWN = 10
"""Warnings of one kind that are shown, unless all are asked for; errors are shown all."""

COLOURS = {"error": "red", "warning": "yellow"}


def print_data_check(out: Console, check: DataCheck, *, every: bool = False) -> None:
    """Print what a check found: by kind, with the way out of each.

    Args:
        out: Where.
        check: The check.
        every: Whether all warnings are shown.
    """
    for kind, members in groupby(check.findings, key=lambda finding: finding.kind):
        _print_kind(out, kind, list(members), every)
    out.print(summary_line(check), markup=False)


def summary_line(check: DataCheck) -> str:
    """What was checked, and how many errors and warnings there are."""
    found = f"{number_of(len(check.errors), 'error')}, {number_of(len(check.warnings), 'warning')}"
    if check.dataset is None:
        return f"{check.folder}: {found}"
    dataset = check.dataset
    what = "headers alone were read" if check.headers_only else "every voxel was read"
    return (
        f"{dataset.name}: {number_of(len(dataset.cases), 'case')}, channels "
        f"{', '.join(dataset.channels)}, labels {shown_names(dataset.labels)} ({what}): {found}"
    )


def shown_names(names: Sequence[str], most: int = 12) -> str:
    """The first names, and how many there are.

    Example:
        >>> shown_names(["a", "b", "c"], most=2)
        'a, b, ... (3)'
    """
    return ", ".join(names[:most]) + (f", ... ({len(names)})" if len(names) > most else "")


def _print_kind(out: Console, name: str, findings: list[Finding], every: bool) -> None:
    kind = KINDS[name]
    heading = Text(f"{kind.severity}: ", style=COLOURS[kind.severity])
    heading.append(f"{kind.title} ({len(findings)})", style="bold")
    out.print(heading)
    shown = findings if every or kind.severity == "error" else findings[:SHOWN]
    for finding in shown:
        # a message of several lines stays together
        out.print("  " + finding.message.replace("\n", "\n    "), markup=False)
    if len(shown) < len(findings):
        out.print(f"  ... and {len(findings) - len(shown)} more: --all shows them", markup=False)
    out.print(f"  -> {kind.way_out}", markup=False, style="dim")
