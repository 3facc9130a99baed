"""What a command costs, with all processes that it starts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

INTERVAL = 0.2
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Cost:
    """Cost of a command.

    Attributes:
        seconds: From its start to its end.
        cpu_seconds: Of all its processes.
        peak: Bytes that they held at most, shared pages counted once (PSS).
        output: What it printed.
    """

    seconds: float
    cpu_seconds: float
    peak: int
    output: str


def cost_of(command: Sequence[str], environment: Mapping[str, str]) -> Cost:
    """Run a command and measure it.

    Raises:
        RuntimeError: with its output, if it fails.
    """
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=dict(environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    peak, seen = 0, {}
    while process.poll() is None:
        held = 0
        for one in _tree(process.pid):
            try:
                # what is mapped from files is the page cache's, not the process's
                held += one.memory_full_info().pss
                seen[one.pid] = sum(one.cpu_times()[:2])
            except psutil.Error:
                continue
        peak = max(peak, held)
        time.sleep(INTERVAL)
    assert process.stdout is not None
    output = process.stdout.read()
    seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output}")
    return Cost(seconds, sum(seen.values()), peak, output)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []
