from __future__ import annotations

import socket
import subprocess
import sys
import threading
from contextlib import closing

from tuner.driver.cluster_watch import Watched, accepts, wait_for_loss


def test_the_process_that_ended_is_named() -> None:
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with (
        subprocess.Popen(waits, stdin=subprocess.PIPE) as lasting,
        subprocess.Popen(waits, stdin=subprocess.PIPE) as ended,
    ):
        watched = [
            Watched("gcs_server", lambda: lasting.poll() is None),
            Watched("raylet", lambda: ended.poll() is None),
        ]
        threading.Timer(0, ended.kill).start()
        assert wait_for_loss(watched, threading.Event(), 0.01) == "raylet"


def test_nothing_is_told_when_nobody_needs_to_know() -> None:
    ended = threading.Event()
    ended.set()
    assert wait_for_loss([Watched("raylet", lambda: False)], ended, 0.01) is None


def test_a_process_may_come_back_within_its_patience() -> None:
    ended = threading.Event()
    signs = iter([True, False, False, True])

    def alive() -> bool:
        sign = next(signs, None)
        if sign is None:
            ended.set()
        return bool(sign)

    assert wait_for_loss([Watched("gcs_server", alive, timeout=60)], ended, 0.001) is None


def test_a_port_accepts_as_long_as_its_process_listens() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        host, port = server.getsockname()
        assert accepts(host, port)
    assert not accepts(host, port)
