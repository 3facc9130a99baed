"""Terminal output of `tune fields`: help for what can be written in a search space."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from tuner.spec.reference import FieldHelp


def print_fields(out: Console, rows: Iterable[FieldHelp]) -> None:
    """Print one line a field, under the heading of its group."""
    for (section, group), members in groupby(rows, key=lambda row: (row.section, row.group)):
        heading = group if section == "config" else f"section {section}"
        out.print(Text(heading, style="bold"))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(no_wrap=True, max_width=24, overflow="ellipsis")
        table.add_column()
        for row in members:
            table.add_row(Text(row.key), Text(row.default), Text(_readers(row) + row.summary))
        out.print(Padding(table, (0, 0, 1, 2), expand=False))


def print_field(out: Console, row: FieldHelp) -> None:
    """Print everything that is known of one field."""
    out.print(Text(row.key, style="bold cyan"))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column()
    place = "a field of config or space" if row.domain else "a field of config"
    if row.section != "config":
        place = f"a setting of the section {row.section}"
    table.add_row("where", place)
    table.add_row("type", Text(row.kind))
    table.add_row("default", Text(row.default))
    if row.read_by:
        table.add_row("read by", Text(", ".join(row.read_by)))
    if row.section == "config":
        searched = row.domain or "it is the same for all trials of a study"
        table.add_row("search", Text(searched))
    table.add_row("set", Text(f"--set {row.key}=VALUE"))
    out.print(Padding(table, (0, 0, 0, 2), expand=False))
    width = min(out.width, 100) - 2
    for paragraph in row.text.split("\n\n"):
        lines = textwrap.fill(" ".join(paragraph.split()), width, break_on_hyphens=False)
        out.print(Text("\n" + textwrap.indent(lines, "  ")))


def _readers(row: FieldHelp) -> str:
    return f"({', '.join(row.read_by)}) " if row.read_by else ""
