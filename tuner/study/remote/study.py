"""A study at an address, on the machine that runs it or shows it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from training.storage import StoreError
from tuner.errors import StudyError
from tuner.study.files import (
    CONFIRM_FOLDER,
    DATABASE,
    DRIVER_LOCK,
    LOCK_FILE,
    RAY_FOLDER,
    RESOLVED_SPEC,
    TRIALS_FOLDER,
)
from tuner.study.remote.lease import SILENT_SECONDS, Lease
from tuner.study.remote.place import RemotePlace, remote_place
from tuner.study.remote.working_copy import Sender, WorkingCopy

LEASE = "driver.lease"
"""Whoever runs a study writes this file at its address."""

TOKENS = ".last"
"""Folder, beside the studies, of what this machine held last of each."""

DATABASES = (DATABASE, f"{CONFIRM_FOLDER}/{DATABASE}")

WORKERS_OWN = (f"{TRIALS_FOLDER}/*", f"{CONFIRM_FOLDER}/{TRIALS_FOLDER}/*")
"""What trials send themselves."""

NOT_KEPT = (f"{RAY_FOLDER}/*", f"{CONFIRM_FOLDER}/{RAY_FOLDER}/*", f"*{DATABASE}*")

EVENTS = ("events.out.tfevents.*", "*/events.out.tfevents.*")


def fetch_study(folder: Path) -> None:
    """Bring what is shown of a study from its address, if it has one.

    A study that runs on this machine is left alone: what is here is newer.

    Raises:
        StudyError: if the storage does not answer.
    """
    place = remote_place(folder)
    if place is None:
        return
    with _told():
        if place.store.find(f"{place.prefix}/{RESOLVED_SPEC}") is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / DRIVER_LOCK).acquire(timeout=0):
                _fetch(place, folder)
        except Timeout:
            return


def fetch_checkpoints(folder: Path) -> None:
    """Bring what the trials of a study have written from its address, if it has one.

    A trial that trains on this machine is left alone: what is here is newer.

    Args:
        folder: The study's folder, or that of a trial.

    Raises:
        StudyError: if the storage does not answer.
    """
    place = remote_place(folder)
    if place is None:
        return
    only = ("*",) if folder.parent.name == TRIALS_FOLDER else WORKERS_OWN
    with _told():
        copy = WorkingCopy(place.store, folder, place.prefix, NOT_KEPT)
        copy.fetch(only, (*EVENTS, *_busy(folder)))


def _busy(folder: Path) -> list[str]:
    """Patterns of the files of trials that a process of this machine trains."""
    found = []
    for lock in folder.rglob(LOCK_FILE):
        try:
            with FileLock(lock).acquire(timeout=0):
                continue
        except Timeout:
            place = lock.parent.relative_to(folder).as_posix()
            found.append("*" if place == "." else f"{place}/*")
    return found


def remote_studies(studies_dir: Path) -> list[str]:
    """Names of the studies at an address; none for a folder of this machine.

    Raises:
        StudyError: if the storage does not answer.
    """
    place = remote_place(studies_dir / TOKENS)
    if place is None:
        return []
    with _told():
        return [
            name for name in place.store.folders() if place.store.find(f"{name}/{RESOLVED_SPEC}")
        ]


def driven_elsewhere(folder: Path) -> bool:
    """Whether a process of another machine runs a study at an address.

    Raises:
        StudyError: if the storage does not answer.
    """
    place = remote_place(folder)
    if place is None:
        return False
    with _told():
        name = f"{place.prefix}/{LEASE}"
        holder = Lease.holder(place.store, name)
        if holder is None or holder.released or holder.token == _last_token(place):
            return False
        stored = place.store.find(name)
        # by the storage's clock: that of this machine must be right to some seconds
        age = time.time() - stored.written / 1e9 if stored is not None else SILENT_SECONDS
        return age < 2 * SILENT_SECONDS


@contextmanager
def driven_here(
    folder: Path,
    lost: Callable[[str], None],
    tell: Callable[[str], None],
) -> Iterator[None]:
    """Run a study, or change it, at its address if it has one; the lock here is held.

    What the storage has is fetched first, unless this machine wrote it; what changes is sent.

    Args:
        folder: The study's folder.
        lost: Called if another machine has taken the study over.
        tell: Takes a sentence when the storage does not answer.

    Raises:
        LeaseHeldError: if another machine runs it.
        StudyError: if the storage does not answer.
    """
    place = remote_place(folder)
    if place is None:
        yield
        return
    told = f"another machine has taken the study {folder.name!r} over"
    lease = Lease(place.store, f"{place.prefix}/{LEASE}", lambda: lost(told))
    with _told():
        last = _last_token(place)
        before = lease.acquire()
        copy = WorkingCopy(place.store, folder, place.prefix, (*WORKERS_OWN, *NOT_KEPT))
        try:
            if before is None or before.token != last or not (folder / DATABASE).is_file():
                _fetch(place, folder)
            copy.look()
        except BaseException:
            lease.abandon()
            raise
    _note_token(place, lease.token)
    databases = _Databases(place, folder)

    def send() -> None:
        # a decision before what follows from it
        databases.send()
        copy.send()

    sender = Sender(send, lease, tell)
    sender.start()
    try:
        yield
    finally:
        try:
            sender.finish()
            if (folder / DATABASE).is_file():
                lease.release()
            else:
                lease.release(forget=True)
                _withdraw(place)
        except StoreError as error:
            if not lease.taken:
                raise StudyError(
                    f"{error}: all of the study is in {folder} on this machine, and is sent from "
                    "here when it goes on"
                ) from error
        finally:
            lease.abandon()


class _Databases:
    """Sends the records of a study: what SQLite has committed, as one file."""

    def __init__(self, place: RemotePlace, folder: Path) -> None:
        self._place = place
        self._folder = folder
        self._sent: dict[str, object] = {}

    def send(self) -> None:
        """Send those that have changed.

        Raises:
            StoreError: if they cannot be written there.
        """
        for name in DATABASES:
            path = self._folder / name
            state = [_state(path.with_name(path.name + suffix)) for suffix in ("", "-wal")]
            if state == self._sent.get(name):
                continue
            content = None if state[0] is None else _committed(path)
            if content is not None:
                self._place.store.write(f"{self._place.prefix}/{name}", content)
                self._sent[name] = state


def _withdraw(place: RemotePlace) -> None:
    """Remove what a start that came to nothing has sent; a study with trials stays."""
    sent = place.store.listing(place.prefix)
    if not any(name.startswith(f"{place.prefix}/{TRIALS_FOLDER}/") for name in sent):
        for name in sent:
            place.store.remove(name)


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _committed(path: Path) -> bytes | None:
    """The content of a database, as one file; None where it cannot be read just now."""
    try:
        with (
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(":memory:")) as copy,
        ):
            source.backup(copy)
            return copy.serialize()
    except sqlite3.Error:
        return None


def _fetch(place: RemotePlace, folder: Path) -> None:
    """Bring all but the large files; the records only if another machine wrote them last."""
    copy = WorkingCopy(place.store, folder, place.prefix, NOT_KEPT)
    copy.fetch(without=("*.ckpt", *EVENTS, *_busy(folder)))
    holder = Lease.holder(place.store, f"{place.prefix}/{LEASE}")
    if holder is not None and holder.token == _last_token(place) and (folder / DATABASE).is_file():
        return
    for name in DATABASES:
        path = folder / name
        stored = place.store.find(f"{place.prefix}/{name}")
        if stored is None:
            continue
        for suffix in ("-wal", "-shm"):
            # of the file that is replaced
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        place.store.download(f"{place.prefix}/{name}", path)


def _last_token(place: RemotePlace) -> str | None:
    try:
        return (place.root / TOKENS / place.study).read_text()
    except OSError:
        return None


def _note_token(place: RemotePlace, token: str) -> None:
    path = place.root / TOKENS / place.study
    path.parent.mkdir(exist_ok=True)
    path.write_text(token)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise StudyError(str(error)) from error
