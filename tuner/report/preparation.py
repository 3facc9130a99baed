"""Shows the preparation of data: a bar in a terminal or notebook, lines in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tuner.report.picture import Pace, open_picture

if TYPE_CHECKING:
    from rich.console import Console

Show = tuple[Callable[[str], None], Callable[[str, int, int], None]]


@contextmanager
def preparation_view(console: Console | None) -> Iterator[Show]:
    """Show the preparation of data.

    Args:
        console: Where to show it; nowhere if None.

    Yields:
        `on_progress` and `on_case` of `training.data.prepare_dataset`.
    """
    if console is None:
        yield lambda line: None, lambda step, done, total: None
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    picture, pace = open_picture(console), Pace()
    bars = {}

    def advance(step: str, done: int, total: int) -> None:
        new = step not in bars
        if new:
            bars[step] = progress.add_task(step, total=total)
        progress.update(bars[step], completed=done)
        if picture is not None and (pace.due() or new or done == total):
            picture.update(progress.make_tasks_table(progress.tasks))

    try:
        yield lambda line: console.print(line, markup=False), advance
    finally:
        if picture is not None:
            picture.close()
