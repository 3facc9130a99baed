"""An S3 server, and two machines that reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, s3_server

from tuner.study.remote import lease, place, working_copy


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server, reached within this test."""
    # its connections are to the server of another test
    place._store.cache_clear()
    with s3_server(monkeypatch) as started:
        yield started
    place._store.cache_clear()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases and senders look often; a holder that lives has the time of a slow machine."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(lease, "SILENT_SECONDS", 60.0)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(working_copy, "INTERVAL", 0.05)
    monkeypatch.setattr(working_copy, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(working_copy, "FLUSH_SECONDS", 2.0)


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Path]:
    """Goes to a machine by its name: its cache is its own; where it works on the studies."""

    def go(name: str) -> Path:
        monkeypatch.setenv("SEGTUNE_CACHE", str(tmp_path / name))
        return place.local_studies_dir(S3Server.address)

    return go
