"""What follows when a trial's worker is gone: killed, out of memory, hung, its node lost."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.tune import Callback

from tuner.run.failures import WorkerLostError, WorkerOutOfMemoryError, end_trial
from tuner.study.trial_entry import TrialState
from tuner.trial.messages import TRIAL_NUMBER

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.spec.study_spec import StudySpec
    from tuner.study.record import StudyRecord

FAREWELL_SECONDS = 2.0
"""How long after a worker died its cluster is watched, to tell whether all of it ends."""

HEAD_SECONDS = 5.0
"""How long the head node of a cluster may take to answer before the cluster is taken for gone."""


@contextmanager
def lost_worker_ends_one_trial() -> Iterator[None]:
    """Let Tune take every way in which Ray loses a worker for a worker that died.

    Ray's `OutOfMemoryError` and the errors of lost objects are no `RayActorError`, and Tune
    (2.60) ends the whole study with "Caught unexpected exception" when it meets one.
    """
    original = RayActorManager._actor_task_failed

    def task_failed(
        manager: RayActorManager, tracked_actor_task: Any, exception: Exception
    ) -> None:
        # Ray gives both by name
        if isinstance(exception, RayError) and not isinstance(
            exception, RayActorError | RayTaskError
        ):
            out_of_memory = isinstance(exception, OutOfMemoryError)
            kind = WorkerOutOfMemoryError if out_of_memory else WorkerLostError
            exception = kind(str(exception).strip().splitlines()[0])
        original(manager, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = task_failed
    try:
        yield
    finally:
        RayActorManager._actor_task_failed = original


class WorkerDeaths(Callback):  # type: ignore[misc]
    """Ends the workers of trials that hang, and decides what follows when a worker is gone.

    A trial whose worker died is tried again, as `failures` of the spec says. When the whole
    cluster is gone, none can be: trials are interrupted, and the study ends, to be resumed.

    Args:
        record: The study's record.
        spec: The study's spec.
        cluster_is_gone: Whether no worker can be started any more.
    """

    def __init__(
        self, record: StudyRecord, spec: StudySpec, cluster_is_gone: Callable[[], bool]
    ) -> None:
        self._record = record
        self._spec = spec
        self._cluster_is_gone = cluster_is_gone
        self._heard: dict[Trial, float] = {}
        self._hung: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; there is nothing to keep."""
        return {}

    def died(self, number: int, state: TrialState, reason: str) -> None:
        """Decide about a trial whose worker is gone."""
        if number in self._hung:
            self._hung.discard(number)
            reason = (
                f"it hung: no epoch ended within {self._spec.failures.hang_timeout:g} s "
                "(failures.hang_timeout)"
            )
        elif self._cluster_is_gone():
            state, reason = TrialState.INTERRUPTED, "the Ray cluster went away"
        end_trial(self._record, self._spec, number, state, reason)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Start the clock of a trial."""
        self._heard[trial] = time.monotonic()

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Start the clock anew."""
        self._heard[trial] = time.monotonic()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Stop the clock."""
        self._heard.pop(trial, None)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Stop the clock."""
        self._heard.pop(trial, None)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """End the workers of trials that are silent for too long."""
        limit = self._spec.failures.hang_timeout
        if limit is None:
            return
        now = time.monotonic()
        for trial in [trial for trial, heard in self._heard.items() if now - heard > limit]:
            del self._heard[trial]
            actor = trial.temporary_state.ray_actor
            if actor is not None:
                self._hung.add(trial.config[TRIAL_NUMBER])
                ray.kill(actor)


def head_is_gone() -> bool:
    """Whether the head node of the joined cluster answers no more, or soon will not.

    The processes of a cluster that goes away do not end at the same moment: the first to be
    missed may be a worker.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    deadline = time.monotonic() + FAREWELL_SECONDS
    while time.monotonic() < deadline:
        try:
            with closing(socket.create_connection((host, int(port)), timeout=HEAD_SECONDS)):
                time.sleep(0.1)
        except OSError:
            return True
    return False
