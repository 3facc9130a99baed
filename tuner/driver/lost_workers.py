"""Detects lost and hung workers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import ray
from ray.tune import Callback

from tuner.driver.cluster_watch import accepts
from tuner.driver.ray_internals import actor_of, node_of
from tuner.trial.failures import (
    ClusterLostError,
    NodeLostError,
    TrialHungError,
    WorkerLostError,
    WorkerOutOfMemoryError,
    classify,
    end_trial,
    move_trial,
)
from tuner.trial.messages import EpochReport, TrialRequest
from tuner.trial.node_faults import NodeUnfitError

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.driver.study_cluster import StudyCluster
    from tuner.study.study import Study

SHUTDOWN_SECONDS = 2.0
"""Seconds for which the cluster is watched after a worker died: all of it may be shutting down."""

HEAD_TIMEOUT = 5.0
"""How long the head node of a cluster may take to answer before the cluster counts as lost."""


class LostWorkers(Callback):  # type: ignore[misc]
    """Ends the workers of trials that hang, and finds out why a worker is lost.

    A trial whose worker died is tried again, as `failures` of the spec says. One whose node is
    lost or unfit goes on elsewhere, and that is no failure of its own; where the cluster is this
    machine alone, there is no elsewhere, and the study ends, to be resumed. So it does when the
    whole cluster is gone.

    Args:
        study: The study.
        cluster_is_gone: Whether no worker can be started any more.
        cluster: The cluster of the study; None where there is no other node than this one.
        node_lives: Whether a node of Ray's name still lives.
    """

    def __init__(
        self,
        study: Study,
        cluster_is_gone: Callable[[], bool],
        cluster: StudyCluster | None = None,
        node_lives: Callable[[str], bool] = lambda node_id: True,
    ) -> None:
        self._study = study
        self._cluster_is_gone = cluster_is_gone
        self._cluster = cluster
        self._node_lives = node_lives
        self._node_of: dict[int, str] = {}
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
        node_id = self._node_of.pop(number, None)
        where = ""
        too_many = (
            self._cluster is not None
            and isinstance(error, WorkerOutOfMemoryError)
            and self._cluster.memory.killed(number)
        )
        if too_many:
            reason = f"too many trials at once for the memory of their node: {error}"
            move_trial(self._study, number, reason, "when there is room")
            return
        if self._cluster is not None and self._cluster.joined:
            if isinstance(error, NodeLostError):
                node_id = node_id or error.node_id
            node = self._cluster.nodes.name(node_id)
            where = f", on node {node}"
            if isinstance(error, NodeUnfitError):
                reason = str(error)
                if f"node {node.partition(' (')[0]} " not in reason:
                    reason = f"node {node}: {reason}"
                self._cluster.failed(node_id, reason)
                move_trial(self._study, number, reason)
                return
            died = isinstance(error, WorkerLostError) and number not in self._hung
            if died and not self._cluster_is_gone() and self._is_lost(node_id, error):
                move_trial(self._study, number, f"its node {node} was lost: {error}")
                return
            if isinstance(error, WorkerLostError):
                error = type(error)(f"{error}{where}")
        if number in self._hung:
            self._hung.discard(number)
            error = TrialHungError(
                f"it hung: no epoch ended within {self._study.spec.failures.hang_timeout:g} s "
                f"(failures.hang_timeout){where}"
            )
        elif self._cluster_is_gone():
            error = ClusterLostError("the Ray cluster went away")
        end_trial(self._study, number, classify(error))

    def _is_lost(self, node_id: str | None, error: Exception) -> bool:
        """Whether a worker died with its node, as far as the error or the node says."""
        if isinstance(error, NodeLostError):
            return True
        if isinstance(error, WorkerOutOfMemoryError) or node_id is None:
            return False
        return not self._node_lives(node_id)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Start the clock of a trial, and note where it runs."""
        self._heard[trial] = time.monotonic()
        if self._cluster is not None and self._cluster.joined:
            node_id = node_of(trial)
            if node_id is not None:
                self._node_of[TrialRequest.from_ray(trial.config).number] = node_id

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Restart the clock; a node on which an epoch was finished works."""
        self._heard[trial] = time.monotonic()
        if self._cluster is not None and EpochReport.from_ray(result) is not None:
            number = TrialRequest.from_ray(trial.config).number
            self._cluster.nodes.works(self._node_of.get(number))

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


def raylet_answers(node_id: str) -> bool:
    """Whether a node of the cluster lives: Ray says so, and its raylet accepts a connection.

    Args:
        node_id: Ray's name of it.
    """
    node = next((node for node in ray.nodes() if node["NodeID"] == node_id), None)
    if node is None or not node["Alive"]:
        return False
    return accepts(node["NodeManagerAddress"], node["NodeManagerPort"])
