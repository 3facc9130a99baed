"""A trial of a study at an address, on the node that trains it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from training.storage import StoreError
from tuner.study.remote.lease import Lease, LeaseHeldError
from tuner.study.remote.place import remote_place
from tuner.study.remote.working_copy import Sender, WorkingCopy

LEASE = "trial.lease"
"""Whoever trains a trial writes this file at its address."""

EVENTS = "events.out.tfevents.*"
"""Files of TensorBoard, of which a run that goes on begins new ones."""


@contextmanager
def trained_here(
    folder: Path, leave: Callable[[], None], make_way: Callable[[], None]
) -> Iterator[None]:
    """Train a trial whose files are at an address, if they are.

    They are fetched first. What changes is sent while it trains, and the rest at its end; then
    the checkpoints here are removed: another node may train it next. A process that still trains
    it makes way.

    Args:
        folder: The trial's folder.
        leave: Called while it waits for such a process; raises if the trial must end.
        make_way: Called, by a thread, when another process has taken the trial.

    Raises:
        TimeoutError: if another process has taken it meanwhile.
        StoreError: if the storage does not answer.
    """
    place = remote_place(folder)
    if place is None:
        yield
        return
    lease = Lease(place.store, f"{place.prefix}/{LEASE}", make_way)
    try:
        lease.take(leave)
    except LeaseHeldError as error:
        raise TimeoutError(f"another process trains this trial: {error}") from None
    copy = WorkingCopy(place.store, folder, place.prefix)
    sender = Sender(copy.send, lease)
    try:
        # without it nothing is sent: what is here may be older
        copy.fetch(without=(EVENTS, f"*/{EVENTS}"))
        sender.start()
        try:
            yield
        finally:
            try:
                sender.finish()
                lease.release()
                copy.leave(["*.ckpt"])
            except StoreError:
                if not lease.taken:
                    raise
    finally:
        lease.abandon()


def fetch_from_trial(folder: Path, name: str) -> None:
    """Bring a file of another trial from its address, if it has one.

    Args:
        folder: The other trial's folder.
        name: The file; it need not be there.

    Raises:
        StoreError: if the storage does not answer.
    """
    place = remote_place(folder)
    if place is not None:
        WorkingCopy(place.store, folder, place.prefix).fetch_one(name)
