"""Memory that a trial takes of its node: that of its process and of all that it has started.

Ray ends a process of a node whose memory is nearly full, so the driver wants to know how many
trials fit. What counts is what Ray counts: memory that belongs to processes, and not the pages of
files that the kernel keeps for them, such as those of the cache of preprocessed data.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

SAMPLE_SECONDS = 0.25
"""Seconds between two looks, as often as Ray's own monitor looks."""

PROC = Path("/proc")
"""Where Linux has a folder for each process (proc(5))."""

OWN_MEMORY = ("RssAnon:", "RssShmem:")
"""What of a process's memory is no page of a file, in `/proc/PID/status`."""


@dataclass(frozen=True)
class GpuUse:
    """What a trial takes of its GPU.

    Attributes:
        peak: The most memory that its process held there since the trial began, in bytes.
        total: The memory of the GPU, in bytes.
        busy: Share of the time in which the GPU computed since the last report, for whomever;
            None if that is not known.
    """

    peak: float
    total: float
    busy: float | None = None


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a trial and of its node, in bytes.

    Attributes:
        node: Ray's name of the node.
        peak: The most that the trial's processes held at a time since it began there.
        mean: What they held on average since the last report.
        used: What all processes of the node held on average, as Ray counts it.
        limit: What they may hold before Ray ends one of them.
        gpu: What the trial takes of its GPU; None without one.
    """

    node: str
    peak: float
    mean: float
    used: float
    limit: float
    gpu: GpuUse | None = None


class MemoryMeter:
    """Looks several times a second what this process and those that it has started hold.

    Args:
        node: Ray's name of this node.
        node_memory: Bytes that are used on this node, and that may be.
        gpu: What this process takes of its GPU just now; None without one.
    """

    def __init__(
        self,
        node: str,
        node_memory: Callable[[], tuple[float, float]],
        gpu: Callable[[], GpuUse | None] = lambda: None,
    ) -> None:
        self._node = node
        self._node_memory = node_memory
        self._gpu = gpu
        self._busy: list[float] = []
        self._lock = threading.Lock()
        self._peak = self._sum = self._used = self._limit = 0.0
        self._looks = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Measure the next trial of this process."""
        with self._lock:
            self._peak = self._sum = self._used = 0.0
            self._looks = 0
            self._busy.clear()

    def report(self) -> MemoryUse | None:
        """What was held since the last report; None where there is no /proc."""
        if not (PROC / "self" / "status").is_file():
            return None
        gpu = self._look()
        with self._lock:
            looks, self._looks = self._looks, 0
            total, self._sum = self._sum, 0.0
            used, self._used = self._used, 0.0
            busy, self._busy = self._busy, []
            if gpu is not None and busy:
                gpu = replace(gpu, busy=sum(busy) / len(busy))
            mean, used_mean = total / looks, used / looks
            return MemoryUse(self._node, self._peak, mean, used_mean, self._limit, gpu)

    def close(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._look()

    def _look(self) -> GpuUse | None:
        held = sum(map(own_memory, processes_of(os.getpid())))
        used, limit = self._node_memory()
        gpu = self._gpu()
        with self._lock:
            if gpu is not None and gpu.busy is not None:
                self._busy.append(gpu.busy)
            self._peak = max(self._peak, held)
            self._sum += held
            self._used += used
            self._limit = limit
            self._looks += 1
        return gpu


def processes_of(process: int) -> Iterator[int]:
    """A process, those that it has started, those that they have, and so on."""
    yield process
    # one may end meanwhile
    with suppress(OSError):
        for thread in (PROC / str(process) / "task").iterdir():
            with suppress(OSError):
                for child in (thread / "children").read_text().split():
                    yield from processes_of(int(child))


def own_memory(process: int) -> int:
    """Bytes in memory that belong to a process; 0 for one that has ended."""
    try:
        status = (PROC / str(process) / "status").read_text()
    except OSError:
        return 0
    return 1024 * sum(
        int(line.split()[1]) for line in status.splitlines() if line.startswith(OWN_MEMORY)
    )
