"""Keeps two processes from training one trial: the one that was started last trains it.

A process that its driver lost may train on: its host cannot be reached, or it was the driver's
host that failed, and Ray takes up to 100 s to end it. So whoever begins a trial claims it, by a
file in its folder, and whoever trained it before looks there every `LOOK_SECONDS` and makes way.
The new one waits for the lock, which ends with its holder.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.durable_write import write_durably
from tuner.study.files import CLAIM_FILE, LOCK_FILE

LOOK_SECONDS = 2.0
"""Seconds between two looks at who claims a trial."""

SEEN_SECONDS = 60.0
"""How long shared storage may show an old file: the longest that NFS caches its attributes."""

LEASE_SECONDS = 90.0
"""After which an NFS server drops the locks of a host that it does not hear of any more."""

LOCK_SECONDS = LOOK_SECONDS + SEEN_SECONDS + LEASE_SECONDS
"""How long a trial waits at most. Who keeps its lock for longer does not run: its host is off and
the storage keeps the lock, or it is stuck in the kernel; and it makes way when it runs again."""


@contextmanager
def only_trainer(
    folder: Path, leave_if_closed: Callable[[], None], make_way: Callable[[], None]
) -> Iterator[None]:
    """Claim a trial and hold its lock.

    Args:
        folder: The trial's folder.
        leave_if_closed: Called while it waits; raises if the trial must end.
        make_way: Called, in a thread of its own, when another process has claimed the trial since;
            it ends the training.
    """
    claim = uuid.uuid4().hex
    write_durably(folder / CLAIM_FILE, claim)
    with _watched(folder / CLAIM_FILE, claim, make_way):
        lock = _locked(folder / LOCK_FILE, leave_if_closed)
        try:
            yield
        finally:
            lock.release()


@contextmanager
def _watched(path: Path, claim: str, make_way: Callable[[], None]) -> Iterator[None]:
    """Look whether another process claims the trial."""
    ended, ending = threading.Event(), threading.Lock()

    def watch() -> None:
        while not ended.wait(LOOK_SECONDS):
            if _claim_at(path) in {None, claim}:
                continue
            with ending:
                if not ended.is_set():
                    make_way()
            return

    # not waited for: storage that hangs never answers
    threading.Thread(target=watch, name="claim", daemon=True).start()
    try:
        yield
    finally:
        with ending:
            ended.set()


def _claim_at(path: Path) -> str | None:
    """Who claims the trial; None if that cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return None


def _locked(path: Path, leave_if_closed: Callable[[], None]) -> FileLock:
    """The lock of a trial, waited for."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            leave_if_closed()
            if time.monotonic() > deadline:
                # the next attempt makes a new one, and the old lock is that of no name
                path.unlink(missing_ok=True)
        else:
            return lock
