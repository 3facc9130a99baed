"""One process at a time writes to a place."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import pytest
import waiting
from s3_server import S3Server

from training.storage import Store
from tuner.study.remote.lease import Lease, LeaseHeldError

NAME = "liver/driver.lease"


def lease(store: Store, lost: list[str] | None = None) -> Lease:
    return Lease(store, NAME, lambda: (lost if lost is not None else []).append("lost"))


wait_for = partial(waiting.wait_for, seconds=20)


def test_a_lease_goes_from_one_to_the_next(server: S3Server) -> None:
    store = Store(server.address)
    assert Lease.holder(store, NAME) is None
    first, second = lease(store), lease(store)
    assert first.acquire() is None
    assert first.sure
    with pytest.raises(LeaseHeldError, match=r"process \d+ on "):
        second.acquire()
    first.release()
    before = second.acquire()
    assert before is not None
    assert (before.token, before.released) == (first.token, True)
    second.release(forget=True)
    assert Lease.holder(store, NAME) is None


def test_of_those_that_come_at_once_one_has_it(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    # longer than a busy machine may keep a thread from what it has begun
    monkeypatch.setattr("tuner.study.remote.lease.SETTLE_SECONDS", 4.0)
    store = Store(server.address)
    results: list[str] = []

    def take() -> None:
        try:
            lease(store).acquire()
        except LeaseHeldError:
            results.append("held")
        else:
            results.append("taken")

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "held", "held", "taken"]


def test_a_holder_that_is_silent_loses_it_and_learns_so(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(server.address)
    told: list[str] = []
    first, second = lease(store, told), lease(store)
    first.acquire()
    monkeypatch.setattr("tuner.study.remote.lease.SILENT_SECONDS", 1.0)
    # its network is cut: it does not write, and neither sees nor harms what others write
    cut, write = threading.Event(), first._write
    monkeypatch.setattr(first, "_held", lambda: cut.wait(20) and Lease._held(first))
    monkeypatch.setattr(first, "_write", lambda: write() if not cut.is_set() else None)
    before = second.acquire()
    assert before is not None
    assert not before.released
    assert not first.sure
    cut.set()
    wait_for(lambda: told)
    second.release()


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(server: S3Server) -> None:
    store = Store(server.address)
    first, second = lease(store), lease(store)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    first._own = replace(first._own, pid=ended.pid)
    first._write()
    second.acquire()
    # one of another machine may be anything
    elsewhere = replace(first._own, space="another")
    assert first._own.is_gone
    assert not elsewhere.is_gone
    second.release()


def test_who_waits_can_leave(server: S3Server) -> None:
    store = Store(server.address)
    first, second = lease(store), lease(store)
    first.acquire()

    def leave() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        second.take(leave)
    first.abandon()


def test_a_lease_is_taken_from_one_that_lives_when_it_writes_no_more(
    server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(server.address)
    told: list[str] = []
    first, second = lease(store, told), lease(store)
    first.acquire()
    monkeypatch.setattr("tuner.study.remote.lease.SILENT_SECONDS", 1.0)
    second.take(lambda: None)
    assert second.sure
    assert not first.sure
    wait_for(lambda: told)
    # and what it does at its end is not in the way
    first.release()
    holder = Lease.holder(store, NAME)
    assert holder is not None
    assert holder.token == second.token
    second.release()
