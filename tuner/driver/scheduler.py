"""Ray Tune scheduler that follows a policy: records a score, then applies the decision."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tuner.driver.ray_internals import lost_worker_error
from tuner.search.policies.policy import Action
from tuner.study.trial_entry import TrialState
from tuner.trial.failures import classify
from tuner.trial.messages import EpochReport, TrialRequest, TrialStart

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

    from tuner.driver.placement import FitNodes
    from tuner.driver.study_cluster import StudyCluster
    from tuner.search.policies.policy import Policy
    from tuner.study.record import StudyRecord


PLACED_WITHIN = 15.0
"""Seconds after which a trial that may not be on a node asks anew, where it may be there now."""

WORKER_STARTS_WITHIN = 60.0
"""Seconds after which a trial no longer waits for a worker process that is just starting."""


class _Waiting(NamedTuple):
    """A trial that waits for a worker: since when, and the nodes that it may not be on."""

    since: float
    trial: Trial
    avoids: frozenset[str]


class RecordScheduler(FIFOScheduler):  # type: ignore[misc]
    """Writes each score to the record first, then applies the decision of the policy.

    A trial that pauses ends for Tune, whose worker is free at once; when it is promoted, the
    searcher proposes it again, and it goes on from its last checkpoint.

    Args:
        record: The study's record.
        policy: What decides.
        on_lost: Takes the number of a trial whose worker is lost, and why; by default the trial
            ends.
        placement: Where Ray may place a trial; anywhere by default.
        cluster: The cluster of the study, whose nodes trials may fill; None where that is not to
            matter.
    """

    def __init__(
        self,
        record: StudyRecord,
        policy: Policy,
        on_lost: Callable[[int, Exception], None] | None = None,
        placement: FitNodes | None = None,
        cluster: StudyCluster | None = None,
    ) -> None:
        super().__init__()
        self._record = record
        self._policy = policy
        self._on_lost = on_lost or self._finish
        self._placement = placement
        self._cluster = cluster
        self._waiting: list[_Waiting] = []

    def __getstate__(self) -> dict[str, Any]:
        """The record is the state; there is nothing else to keep."""
        return {}

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        """Note that a trial waits for a worker, and where that may be."""
        avoids: frozenset[str] = frozenset()
        if self._placement is not None:
            gpus = TrialRequest.from_ray(trial.config).gpus
            trial.update_resources(self._placement.with_gpus(gpus) if gpus else self._placement)
            avoids = self._placement.avoided
        self._waiting.append(_Waiting(time.monotonic(), trial, avoids))

    def choose_trial_to_run(self, tune_controller: TuneController) -> Trial | None:
        """The newest trial that waits for a worker, or the oldest if it has waited for long.

        When a trial ends, Tune gives its worker to the trial that is chosen here. An older one
        may be waiting for a worker process that is just starting; Tune would end that process and
        start another for the newest, and where trials are shorter than the start of a process,
        all but one worker would never come up. One that has waited for longer than a process
        takes to start may wait for a node that is lost, and is given the next worker.
        """
        self._waiting = [each for each in self._waiting if each.trial.status == Trial.PENDING]
        if not self._waiting:
            return None
        oldest = self._waiting[0]
        waited = time.monotonic() - oldest.since
        number = TrialRequest.from_ray(oldest.trial.config).number
        shares = None if self._cluster is None else self._cluster.gpu_shares
        again = ""
        if (
            self._placement is not None
            and waited > PLACED_WITHIN
            and oldest.avoids - self._placement.avoided
        ):
            # what was asked of Ray leaves out a node that may be used now: it is asked again
            again = "it waited for a node, and others can be used now"
        elif shares is not None and waited > WORKER_STARTS_WITHIN:
            again = shares.waits_in_vain(number)
        if again:
            self._record.interrupt(number, again)
            tune_controller.stop_trial(oldest.trial)
            return None
        return oldest.trial if waited > WORKER_STARTS_WITHIN else self._waiting[-1].trial

    def on_trial_result(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> str:
        """Record the result, then decide whether the trial goes on."""
        number = TrialRequest.from_ray(trial.config).number
        start = TrialStart.from_ray(result)
        if start is not None:
            self._record.place(number, start.placement)
            if self._cluster is not None:
                self._cluster.begins(number, start)
        report = EpochReport.from_ray(result)
        if report is None:
            return str(TrialScheduler.CONTINUE)
        # a score and what follows from it are one commit: a study that is cut off between them
        # would never decide at this epoch again
        with self._record.transaction(durable=False):
            if report.note:
                self._record.decide(number, "fell back", report.note)
            if not report.add_to(self._record, number):
                return str(TrialScheduler.CONTINUE)
            if self._cluster is not None:
                self._cluster.reports(number, report)
            if report.undefined:
                self._record.decide(number, "undefined", report.undefined)
            goes_on = self._decide(number, report.epoch)
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)

    def _decide(self, number: int, epoch: int) -> bool:
        """Decide, by the policy and what else needs its place, whether a trial goes on."""
        decision = self._policy.judge(number, epoch)
        if decision.action is Action.STOP:
            self._record.finish(number, TrialState.STOPPED, decision.reason)
            return False
        if decision.action is not Action.CONTINUE:
            self._record.pause(number, decision.reason)
            return False
        why = "" if self._cluster is None else self._makes_way(self._cluster, number, epoch)
        if why:
            self._record.interrupt(number, f"after epoch {epoch}: {why}")
            return False
        if decision.reason:
            self._record.decide(number, "continued", decision.reason)
        return True

    def _makes_way(self, cluster: StudyCluster, number: int, epoch: int) -> str:
        """Why a trial is to pause, for others or for other GPUs; empty if it need not."""
        room = cluster.makes_room(number)
        if room or cluster.gpu_shares is None:
            return room
        return cluster.gpu_shares.change(number, epoch)

    def on_trial_complete(
        self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]
    ) -> None:
        """Count the memory of a trial no longer."""
        if self._cluster is not None:
            self._cluster.memory.ends(TrialRequest.from_ray(trial.config).number)

    def on_trial_error(self, tune_controller: TuneController, trial: Trial) -> None:
        """Close a trial whose worker process died, or let it be tried again."""
        number = TrialRequest.from_ray(trial.config).number
        self._on_lost(number, lost_worker_error(trial))
        if self._cluster is not None:
            self._cluster.memory.ends(number)

    def _finish(self, number: int, error: Exception) -> None:
        end = classify(error)
        self._record.finish(number, end.state, end.reason)
