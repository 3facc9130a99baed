"""Detects lost and hung workers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import ray
from ray.tune import Callback

from tuner.driver.ray_internals import actor_of
from tuner.trial.failures import ClusterLostError, TrialHungError, classify, end_trial
from tuner.trial.messages import TrialRequest

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.study.study import Study

SHUTDOWN_SECONDS = 2.0
"""Seconds for which the cluster is watched after a worker died: all of it may be shutting down."""

HEAD_TIMEOUT = 5.0
"""How long the head node of a cluster may take to answer before the cluster counts as lost."""


class LostWorkers(Callback):  # type: ignore[misc]
    """Ends the workers of trials that hang, and finds out why a worker is lost.

    A trial whose worker died is tried again, as `failures` of the spec says. When the whole
    cluster is gone, none can be: trials are interrupted, and the study ends, to be resumed.

    Args:
        study: The study.
        cluster_is_gone: Whether no worker can be started any more.
    """

    def __init__(self, study: Study, cluster_is_gone: Callable[[], bool]) -> None:
        self._study = study
        self._cluster_is_gone = cluster_is_gone
        self._heard: dict[Trial, float] = {}
        self._hung: set[int] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; there is nothing to keep."""
        return {}

    def lost(self, number: int, error: Exception) -> None:
        """End a trial whose worker is lost, or let it be tried again.

        Args:
            number: The trial.
            error: Why its worker is lost, as far as Ray knows.
        """
        if number in self._hung:
            self._hung.discard(number)
            error = TrialHungError(
                f"it hung: no epoch ended within {self._study.spec.failures.hang_timeout:g} s "
                "(failures.hang_timeout)"
            )
        elif self._cluster_is_gone():
            error = ClusterLostError("the Ray cluster went away")
        end_trial(self._study, number, classify(error))

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
        """Restart the clock."""
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
        limit = self._study.spec.failures.hang_timeout
        if limit is None:
            return
        now = time.monotonic()
        for trial in [trial for trial, heard in self._heard.items() if now - heard > limit]:
            del self._heard[trial]
            actor = actor_of(trial)
            if actor is not None:
                self._hung.add(TrialRequest.from_ray(trial.config).number)
                ray.kill(actor)


def head_is_gone() -> bool:
    """Whether the head node of the joined cluster is gone, or shutting down.

    The processes of a cluster that goes away do not end at the same moment: the first to be
    missed may be a worker.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    while time.monotonic() < deadline:
        try:
            with closing(socket.create_connection((host, int(port)), timeout=HEAD_TIMEOUT)):
                time.sleep(0.1)
        except OSError:
            return True
    return False
