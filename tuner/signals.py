"""Signals that end a command: SIGTERM acts as Ctrl-C, and a quick repeat is ignored."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ECHO_SECONDS = 1.0
"""A signal within this time of the first one counts as a repeat of it: `timeout`, SLURM and
launchers send it to a process and to its whole group."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise `KeyboardInterrupt`, as Ctrl-C does; once, when it comes twice.

    Without it, SIGTERM ends a process where it stands: no file is closed, no message is printed.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    first: float | None = None

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is not None and now - first < ECHO_SECONDS:
            return
        first = now
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for SIGINT and SIGTERM after the block instead of inside it.

    For code that forks and starts threads: an exception that is raised there may be swallowed, in a
    hook of Python's own, and the wish be lost. Another signal, later than an echo, is not waited
    for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: float | None = None

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is not None and now - first >= ECHO_SECONDS:
            raise KeyboardInterrupt
        first = now if first is None else first

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if first is not None:
        raise KeyboardInterrupt
