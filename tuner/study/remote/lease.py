"""Lets one process at a time write to a place on storage that has no locks.

The holder writes a file there again and again, so others see that it lives, by their own clocks.
Storage of this kind cannot compare and write at once: who takes the lease waits for what others
may have written in the same moment, and the last one has it.
"""

from __future__ import annotations

import json
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

from training.storage import Store, StoreError

BEAT_SECONDS = 5.0
"""How often the holder writes."""

SILENT_SECONDS = 25.0
"""A holder that has not written for so long is gone."""

SETTLE_SECONDS = 1.0
"""How long what another wrote in the same moment may take to be seen."""

POLL_SECONDS = 1.0


class LeaseHeldError(Exception):
    """Another process holds the lease."""

    def __init__(self, holder: Holder | None) -> None:
        self.holder = holder or "another process"
        super().__init__(f"{self.holder} holds it")


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        token: Drawn by the holder.
        host: Its machine.
        pid: Its process there.
        space: Where that number is of that process: this run of the machine, and its container.
        beat: How often it has written.
        released: Whether it has let go; it is then the last one that held it.
    """

    token: str
    host: str
    pid: int
    space: str
    beat: int = 0
    released: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended, since it was a process of this machine."""
        if self.space != _space() or not self.space:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False


def _sure_seconds() -> float:
    """How long a holder may write after it has seen that it is the holder."""
    return SILENT_SECONDS - 2 * BEAT_SECONDS


@cache
def _space() -> str:
    """Where a number is of one process; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


class Lease:
    """The right to write to a place on a store.

    Args:
        store: The store.
        name: The file of the lease there.
        lost: Called, by a thread, if another process has taken it.
    """

    def __init__(self, store: Store, name: str, lost: Callable[[], None]) -> None:
        self._store = store
        self._name = name
        self._lost = lost
        self._own = Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _space())
        self._confirmed = -math.inf
        self.taken = False
        """Whether another process has taken it since."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    @property
    def token(self) -> str:
        """What tells this holder from others."""
        return self._own.token

    def acquire(self) -> Holder | None:
        """Take the lease, from a holder that is gone if need be.

        Returns:
            Who held it last; None if nobody ever did.

        Raises:
            LeaseHeldError: if another process holds it.
            StoreError: if the storage does not answer.
        """
        begun = seen = time.monotonic()
        before = self.holder(self._store, self._name)
        while before is not None and not before.released and not before.is_gone:
            now = time.monotonic()
            if now - seen >= SILENT_SECONDS:
                break
            if seen > begun:
                # it has written meanwhile
                raise LeaseHeldError(before)
            time.sleep(POLL_SECONDS)
            there = self.holder(self._store, self._name)
            if there != before:
                before, seen = there, time.monotonic()
        self._write()
        time.sleep(SETTLE_SECONDS)
        self._begin()
        return before

    def take(self, leave: Callable[[], None]) -> None:
        """Take the lease from whoever holds it, and wait until that one does not write any more.

        Args:
            leave: Called while it waits; raises to give up.

        Raises:
            LeaseHeldError: if another process has taken it since.
            StoreError: if the storage does not answer.
        """
        before = self.holder(self._store, self._name)
        self._write()
        alive = before is not None and not before.released and not before.is_gone
        deadline = time.monotonic() + (_sure_seconds() if alive else SETTLE_SECONDS)
        while time.monotonic() < deadline:
            leave()
            time.sleep(min(POLL_SECONDS, SETTLE_SECONDS))
        self._begin()

    def _begin(self) -> None:
        """Hold it from now on, unless another process has taken it in the same moment."""
        there = self.holder(self._store, self._name)
        if there is None or there.token != self.token:
            raise LeaseHeldError(there)
        self._confirmed = time.monotonic()
        self._thread.start()

    @property
    def sure(self) -> bool:
        """Whether nobody else can have it now."""
        return not self.taken and time.monotonic() - self._confirmed < _sure_seconds()

    def abandon(self) -> None:
        """Write no more: others take it when it is silent."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def release(self, *, forget: bool = False) -> None:
        """Let go; what others see is who was the last, or nothing.

        Args:
            forget: Whether nobody needs to know that there was a holder.

        Raises:
            StoreError: if the storage does not answer.
        """
        self.abandon()
        if not self._held():
            return
        if forget:
            self._store.remove(self._name)
            return
        self._own = replace(self._own, released=True)
        self._write()

    @staticmethod
    def holder(store: Store, name: str) -> Holder | None:
        """Who holds a lease, or held it last; None if nobody ever did.

        Raises:
            StoreError: if the storage does not answer.
        """
        content = store.read(name)
        if not content:
            return None
        try:
            return Holder(**json.loads(content))
        except (ValueError, TypeError) as error:
            raise StoreError(f"{store.address}/{name} is not what segtune wrote") from error

    def _held(self) -> bool:
        there = self.holder(self._store, self._name)
        return there is not None and there.token == self.token

    def _write(self) -> None:
        self._own = replace(self._own, beat=self._own.beat + 1)
        self._store.write(self._name, json.dumps(asdict(self._own)).encode())

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            begun = time.monotonic()
            try:
                if not self._held():
                    self.taken = True
                    self._lost()
                    return
                self._write()
            except StoreError:
                # others cannot take it either, or they will be seen as soon as it answers
                continue
            self._confirmed = begun
