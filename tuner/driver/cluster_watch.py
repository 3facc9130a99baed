"""Detects the loss of the Ray cluster of a study, before Ray ends the driver for it.

Without its GCS, Ray (2.60) ends a driver after a minute, and without the local raylet at the next
object that the driver needs: both in C++, with no message about the study or how to resume it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from subprocess import Popen

import ray

from tuner.driver.ray_internals import own_daemons

OWN_INTERVAL = 0.05
"""Seconds between two checks of the processes of our own cluster."""

JOINED_INTERVAL = 1.0
"""Seconds between two connections to the processes of a joined cluster."""

CALL_TIMEOUT = 5.0
"""Seconds that a process of a joined cluster may take to accept a connection."""

GCS_TIMEOUT = 20.0
"""Seconds that the GCS of a joined cluster may be unreachable: a cluster may restart it."""


@dataclass(frozen=True)
class Watched:
    """A process of Ray that every study needs.

    Attributes:
        name: What Ray calls it.
        alive: Whether it runs.
        timeout: Seconds that it may be away.
    """

    name: str
    alive: Callable[[], bool]
    timeout: float = 0.0


@contextmanager
def cluster_watch(on_lost: Callable[[str], None], ended: threading.Event) -> Iterator[None]:
    """Watch the cluster that this process is connected to.

    Args:
        on_lost: Called once, in a thread of its own, with the process of Ray that is gone.
        ended: Set to end the watch; at the latest when the block ends.
    """
    own = _own_processes()
    watched, interval = (own, OWN_INTERVAL) if own else (_joined_processes(), JOINED_INTERVAL)

    def watch() -> None:
        name = wait_for_loss(watched, ended, interval)
        if name is not None:
            on_lost(f"Ray's process {name} ended")

    thread = threading.Thread(target=watch, name="cluster-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_for_loss(
    watched: Sequence[Watched], ended: threading.Event, interval: float
) -> str | None:
    """Wait until a process is gone.

    Args:
        watched: The processes.
        ended: Set to end the watch.
        interval: Seconds between two looks.

    Returns:
        The name of the process that is gone, None if `ended` was set before.
    """
    seen = {process.name: time.monotonic() for process in watched}
    while not ended.wait(interval):
        for process in watched:
            if process.alive():
                seen[process.name] = time.monotonic()
            elif time.monotonic() - seen[process.name] >= process.timeout:
                return process.name
    return None


def _own_processes() -> list[Watched]:
    """Processes of the cluster that this process started; none if it joined one."""

    def alive(process: Popen[bytes]) -> Callable[[], bool]:
        return lambda: process.poll() is None

    return [Watched(name, alive(process)) for name, process in own_daemons()]


def _joined_processes() -> list[Watched]:
    """The GCS of the joined cluster, and the raylet of this host."""
    context = ray.get_runtime_context()
    here = context.get_node_id()
    host, _, port = context.gcs_address.rpartition(":")
    raylet = next(node for node in ray.nodes() if node["NodeID"] == here)
    return [
        Watched("gcs_server", lambda: accepts(host, int(port)), GCS_TIMEOUT),
        Watched("raylet", lambda: accepts(raylet["NodeManagerAddress"], raylet["NodeManagerPort"])),
    ]


def accepts(host: str, port: int) -> bool:
    """Whether a process accepts connections."""
    try:
        with closing(socket.create_connection((host, port), timeout=CALL_TIMEOUT)):
            return True
    except OSError:
        return False
