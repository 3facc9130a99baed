"""What a person sees while the data are prepared: a bar in a terminal, lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        bars = {}

        def advance(step: str, done: int, total: int) -> None:
            if step not in bars:
                bars[step] = progress.add_task(step, total=total)
            progress.update(bars[step], completed=done)

        yield lambda line: console.print(line, markup=False), advance
