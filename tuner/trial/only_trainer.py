"""Keeps two processes from training one trial: its driver may have left one behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tuner.study.files import LOCK_FILE, PLACEMENT_FILE

LOCK_SECONDS = 120.0
"""How long a trial waits for a process that still trains it; Ray ends one sooner than that."""


@contextmanager
def only_trainer(folder: Path, leave_if_closed: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a trial: a process that its driver left behind may still write there.

    Args:
        folder: The trial's folder.
        leave_if_closed: Called while it waits; raises if the trial must end.

    Raises:
        TimeoutError: if another process keeps the lock.
    """
    lock = FileLock(folder / LOCK_FILE)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            leave_if_closed()
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another process still trains this trial (see {folder / PLACEMENT_FILE})"
                ) from None
    try:
        yield
    finally:
        lock.release()
