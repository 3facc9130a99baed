"""The console that a study is shown on: a terminal, a notebook, or a log."""

from __future__ import annotations

from rich.console import Console

LOG_WIDTH = 140
"""Columns of a table outside a terminal."""


def output_console() -> Console:
    """The standard output; outside a terminal no line is wrapped."""
    console = Console(highlight=False)
    if console.is_terminal or console.is_jupyter:
        return console
    return Console(highlight=False, width=LOG_WIDTH, soft_wrap=True)


def progress_console(progress: bool | Console) -> Console | None:
    """Where progress is shown: a console, the standard output for True, nowhere for False."""
    if isinstance(progress, Console):
        return progress
    return output_console() if progress else None
