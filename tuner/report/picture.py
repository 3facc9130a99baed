"""A picture that changes in place: in a terminal, or in the output of a notebook's cell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

from rich.live import Live

if TYPE_CHECKING:
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table

REFRESH_SECONDS = 0.5
"""How often a picture is drawn at most."""


class Picture(Protocol):
    """A picture that can be replaced by a newer one."""

    def update(self, shown: Panel | Table) -> None:
        """Show this in place of what was shown."""

    def close(self) -> None:
        """End the picture."""


class TerminalPicture:
    """A picture below the lines of a terminal, which is gone when it is closed.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def update(self, shown: Panel | Table) -> None:
        """Draw the picture anew."""
        self._live.update(shown, refresh=True)

    def close(self) -> None:
        """Remove the picture."""
        self._live.stop()


class NotebookPicture:
    """A picture in the output of a notebook's cell, which stays there when it is closed."""

    def __init__(self) -> None:
        self._handle: Any = None

    def update(self, shown: Panel | Table) -> None:
        """Replace the picture."""
        # a notebook has IPython; nothing else needs it
        from IPython.display import display

        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def close(self) -> None:
        """Leave the picture as it is."""


def open_picture(console: Console) -> Picture | None:
    """A picture where one can change in place, None for a log or where nothing is shown."""
    if console.quiet:
        return None
    if console.is_jupyter:
        return NotebookPicture()
    return TerminalPicture(console) if console.is_terminal else None


class Pace:
    """Limits how often a picture is drawn."""

    def __init__(self) -> None:
        self._drawn = 0.0

    def due(self) -> bool:
        """Whether it is time to draw again; if so, the interval starts anew."""
        now = time.monotonic()
        if now - self._drawn <= REFRESH_SECONDS:
            return False
        self._drawn = now
        return True
