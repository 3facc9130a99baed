"""Ends a study early: on a signal, by its time budget, or when its disk or cluster fails."""

from __future__ import annotations

import gc
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ray.tune.stopper import Stopper

from tuner.driver.cluster_watch import cluster_watch
from tuner.signals import ECHO_SECONDS
from tuner.study.budget import spent_budget
from tuner.trial.failures import ClusterLostError, halt_study, halted_message

if TYPE_CHECKING:
    from tuner.study.record import StudyRecord
    from tuner.study.study import Study

SHUTDOWN_TIMEOUT = 3.0
"""Seconds that trials may take to end after the first signal. Epochs that still run then are cut
off, since `docker stop` and the like kill the process after ten seconds."""

RAY_CALL_TIMEOUT = 8.0
"""Seconds that a call of Ray may take to return after its cluster was lost. After a minute Ray
would end the process without closing the record."""

CLUSTER_LOST_CODE = 2
"""Exit code of a process whose cluster was lost: that of all errors that a user can fix."""


class StudyStopper(Stopper):  # type: ignore[misc]
    """Ends the study when its time budget is spent or a signal arrives.

    Args:
        time_budget: Seconds that the study may take, None for no limit.
    """

    def __init__(self, time_budget: float | None) -> None:
        self._deadline = time.monotonic() + (math.inf if time_budget is None else time_budget)
        self.interrupted = False
        self.gave_up = False
        self._interrupted_at = -math.inf

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    @property
    def seconds_left(self) -> float:
        """Seconds of the time budget that are left; infinite without one."""
        return self._deadline - time.monotonic()

    def lift_time_budget(self) -> None:
        """Remove the time limit: it does not apply to what follows the search."""
        self._deadline = math.inf

    def stop_all(self) -> bool:
        """Whether all trials are to end now."""
        return self.interrupted or self.gave_up or time.monotonic() >= self._deadline

    @property
    def overdue(self) -> bool:
        """Whether the study still runs `SHUTDOWN_TIMEOUT` after a signal."""
        return self.interrupted and time.monotonic() - self._interrupted_at > SHUTDOWN_TIMEOUT

    def give_up(self, thread: threading.Thread) -> None:
        """Interrupt a thread that waits, if it is the main thread, which receives signals."""
        self.gave_up = True
        if thread is threading.main_thread() and thread.ident is not None:
            # a signal gets it out of a call into Ray
            signal.pthread_kill(thread.ident, signal.SIGTERM)

    def signal(self) -> None:
        """Handle a signal: the first one ends the study in order, a later one at once.

        Raises:
            KeyboardInterrupt: if it is not the first signal, or there is nothing to wait for.
                (Ray's calls pass on no other exception of a signal.)
        """
        if self.gave_up:
            raise KeyboardInterrupt
        if not self.interrupted:
            self.interrupted, self._interrupted_at = True, time.monotonic()
        elif time.monotonic() - self._interrupted_at > ECHO_SECONDS:
            raise KeyboardInterrupt

    @property
    def reason(self) -> str:
        """Why trials that are still running were cut off."""
        return "interrupted by the user" if self.interrupted else "the time budget ended"


class HaltStopper(Stopper):  # type: ignore[misc]
    """Ends the study when it was halted: something prevents all its trials.

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
    """Let Ctrl-C and SIGTERM end the study in order; a later one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signal_number: int, frame: FrameType | None) -> None:
        stopper.signal()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def leave_when_stuck(stopper: StudyStopper, record: StudyRecord) -> Iterator[None]:
    """Leave Tune when its cluster is lost or its trials do not end; used in `signals_stop`.

    When the cluster is gone, the study of the record is halted. A call into Ray that does not
    come back then (it can last for a minute, after which Ray ends the process) ends with the
    process, after the record was closed.
    """
    thread = threading.current_thread()
    ended = threading.Event()

    def lost(reason: str) -> None:
        halt_study(record, ClusterLostError(reason))
        stopper.give_up(thread)
        if not ended.wait(RAY_CALL_TIMEOUT):
            _end_process(record, reason)

    try:
        with cluster_watch(lost, ended), _leave_when_overdue(stopper, thread, ended):
            yield
    except KeyboardInterrupt:
        if not stopper.gave_up:
            raise
    if stopper.gave_up:
        # Tune's leftovers call a cluster that may be gone when they are collected, and wait for it
        gc.freeze()
        # it may have been in the middle of a transaction
        halted = record.halted
        record.reload()
        record.halted = halted


@contextmanager
def _leave_when_overdue(
    stopper: StudyStopper, thread: threading.Thread, ended: threading.Event
) -> Iterator[None]:
    """Leave Tune when a study still runs some time after a signal."""

    def watch() -> None:
        while not ended.wait(0.1):
            if stopper.overdue:
                stopper.give_up(thread)
                return

    watcher = threading.Thread(target=watch, name="overdue", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _end_process(record: StudyRecord, reason: str) -> None:
    """Close the record of a study whose main thread is stuck in Ray, and end the process."""
    try:
        afresh = type(record)(
            record.folder, record.space, record.mode, fold_epochs=record.fold_epochs
        )
        afresh.close_running(reason)
        afresh.close()
    finally:
        # also where the record cannot be written just now: Ray would end the process without it
        sys.stderr.write(f"\nerror: {halted_message(reason, record.folder)}\n")
        sys.stderr.flush()
        os._exit(CLUSTER_LOST_CODE)


class BudgetStopper(Stopper):  # type: ignore[misc]
    """Ends the search when a budget is spent; running trials are cut off, and can be resumed.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._study = study

    @property
    def reason(self) -> str | None:
        """Why the search ends, None while it goes on."""
        return spent_budget(self._study)

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Never stop a single trial."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials are to end now."""
        return self.reason is not None
