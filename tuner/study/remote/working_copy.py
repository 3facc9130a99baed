"""Keeps a folder of this machine and one on storage alike: fetches it, and sends what changes.

A file is the same on both sides where size and time agree: a fetched one gets the time that the
storage has, and so does one that was sent.
"""

from __future__ import annotations

import fnmatch
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from training.durable_write import PARTIAL
from training.storage import Store, Stored, StoreError
from tuner.study.remote.lease import Lease

INTERVAL = 1.0
"""Seconds between two looks at what has changed."""

LONGEST_PAUSE = 15.0
"""Seconds between two tries where storage does not answer."""

FLUSH_SECONDS = 120.0
"""How long what is left is tried to be sent before it is an error."""


class WorkingCopy:
    """A folder here and on a store.

    Args:
        store: The store.
        folder: The folder here.
        prefix: Its name there.
        without: Patterns of names, from the folder on, that are neither fetched nor sent.
    """

    def __init__(
        self, store: Store, folder: Path, prefix: str, without: Sequence[str] = ()
    ) -> None:
        self.store = store
        self.folder = folder
        self.prefix = prefix
        self._without = (*without, f"*{PARTIAL}", "*.lock", "*.lease", "*.claim")
        self._there: dict[str, Stored] = {}
        self._sent: set[str] = set()

    def look(self) -> None:
        """See what the storage has.

        Raises:
            StoreError: if it does not answer.
        """
        start = len(self.prefix) + 1
        found = self.store.listing(self.prefix)
        self._there = {full[start:]: stored for full, stored in found.items()}

    def fetch(self, only: Sequence[str] = ("*",), without: Sequence[str] = ()) -> None:
        """Make the files here those of the storage; files that it does not have stay.

        Args:
            only: Patterns of names of those that are fetched.
            without: Patterns of those that are not.

        Raises:
            StoreError: if the storage does not answer.
            OSError: if they cannot be written here.
        """
        self.look()
        for name, stored in self._there.items():
            wanted = _matches(name, only) and not _matches(name, (*self._without, *without))
            if wanted:
                self.store.bring(f"{self.prefix}/{name}", stored, self.folder / name)

    def fetch_one(self, name: str) -> None:
        """Make one file here that of the storage, without a look at all others.

        Args:
            name: The file; it need not be there.

        Raises:
            StoreError: if the storage does not answer.
            OSError: if it cannot be written here.
        """
        stored = self.store.find(f"{self.prefix}/{name}")
        if stored is not None:
            self.store.bring(f"{self.prefix}/{name}", stored, self.folder / name)

    def changed(self) -> list[str]:
        """Names of files here that the storage does not have like this, checkpoints last."""
        found = []
        for folder, folders, names in os.walk(self.folder):
            place = os.path.relpath(folder, self.folder)
            start = "" if place == "." else f"{place}/"
            folders[:] = [n for n in folders if not _matches(f"{start}{n}/", self._without)]
            found += [
                start + name
                for name in names
                if not _matches(start + name, self._without) and not self._has(start + name)
            ]
        return sorted(found, key=lambda name: (name.endswith(".ckpt"), name))

    def send(self) -> None:
        """Send what has changed, and remove there what was sent and is here no more.

        Raises:
            StoreError: if it cannot be written there.
        """
        for name in sorted(self._sent):
            if not (self.folder / name).exists():
                self.store.remove(f"{self.prefix}/{name}")
                self._sent.discard(name)
                self._there.pop(name, None)
        for name in self.changed():
            # it may be removed meanwhile
            with suppress(FileNotFoundError):
                self._send(name)

    def _has(self, name: str) -> bool:
        """Whether the storage has a file as it is here."""
        stored = self._there.get(name)
        return stored is not None and stored.is_like(self.folder / name)

    def leave(self, patterns: Sequence[str]) -> None:
        """Remove files here that the storage has."""
        for name, stored in self._there.items():
            path = self.folder / name
            if _matches(name, patterns) and stored.is_like(path):
                path.unlink()
                self._sent.discard(name)

    def _send(self, name: str) -> None:
        path = self.folder / name
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            self.store.upload(file, f"{self.prefix}/{name}")
            stored = self.store.find(f"{self.prefix}/{name}")
            if stored is None:
                return
            # of the file that was sent, which another may have replaced, or which was written on
            now = os.fstat(file.fileno())
            if (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns):
                os.utime(file.fileno(), ns=(stored.written, stored.written))
        self._there[name] = stored
        self._sent.add(name)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


class Sender:
    """A thread that sends what changes, and tells if it cannot.

    Args:
        send: Sends what has changed.
        lease: The right to write there.
        tell: Takes a sentence when the storage does not answer, and when it does again.
    """

    def __init__(
        self,
        send: Callable[[], None],
        lease: Lease,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._send = send
        self._lease = lease
        self._tell = tell
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._failed = ""
        self._thread = threading.Thread(target=self._run, name="sender", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def finish(self) -> None:
        """Send all that is left, and end.

        Raises:
            StoreError: if the storage has not taken it for `FLUSH_SECONDS`, or another process has
                taken the lease.
        """
        self._ended.set()
        deadline = time.monotonic() + FLUSH_SECONDS
        while True:
            try:
                if self._lease.sure:
                    with self._lock:
                        self._send()
                    return
                error: StoreError = StoreError("this process may not write there any more")
            except StoreError as failed:
                error = failed
            if self._lease.taken or time.monotonic() > deadline:
                raise error
            time.sleep(INTERVAL)

    def _run(self) -> None:
        pause = INTERVAL
        while not self._ended.wait(pause):
            if not self._lease.sure:
                continue
            try:
                with self._lock:
                    self._send()
            except StoreError as error:
                pause = min(2 * pause, LONGEST_PAUSE)
                if not self._failed:
                    self._failed = str(error)
                    self._tell(f"{error}: the study goes on here, and it is tried again")
                continue
            except OSError:
                # a file was replaced meanwhile
                continue
            pause = INTERVAL
            if self._failed:
                self._failed = ""
                self._tell("the storage has all files of the study again")
