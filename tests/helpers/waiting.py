"""Waits for what another process or thread does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def wait_for(
    condition: Callable[[], object], *drivers: subprocess.Popen[str], seconds: float
) -> None:
    """Wait until something is so; fails if a driver ends before, or it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        for driver in drivers:
            assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
