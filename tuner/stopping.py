"""What ends a study before its trials are done: the user, its time, a full disk."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ray.tune.stopper import Stopper

if TYPE_CHECKING:
    from tuner.record import StudyRecord


class StudyStopper(Stopper):  # type: ignore[misc]
    """Ends the study when its time is over or the user says so.

    Args:
        time_budget: Seconds that the study may take, None for no limit.
    """

    def __init__(self, time_budget: float | None) -> None:
        self._deadline = time.monotonic() + (math.inf if time_budget is None else time_budget)
        self.interrupted = False

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    def lift_time_budget(self) -> None:
        """Let what comes after the search take its time."""
        self._deadline = math.inf

    def stop_all(self) -> bool:
        """Whether all trials are to end now."""
        return self.interrupted or time.monotonic() >= self._deadline

    @property
    def reason(self) -> str:
        """Why trials that are still running were cut off."""
        return "interrupted by the user" if self.interrupted else "the time budget ended"


class HaltStopper(Stopper):  # type: ignore[misc]
    """Ends the study when something is in the way of all its trials.

    Args:
        record: The study's record.
    """

    def __init__(self, record: StudyRecord) -> None:
        self._record = record

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials are to end now."""
        return self._record.halted is not None or self._record.failure is not None


@contextmanager
def signals_stop(stopper: StudyStopper) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the study in order; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signal_number: int, frame: FrameType | None) -> None:
        if stopper.interrupted:
            raise KeyboardInterrupt
        stopper.interrupted = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
