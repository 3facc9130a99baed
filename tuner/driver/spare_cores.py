"""Lets trials without a GPU use the cores that no other trial uses, as the last of a study do."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from tuner.driver.ray_internals import actor_of
from tuner.spec.cores import alone

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.spec.settings import TrialResources
    from tuner.spec.study_spec import StudySpec

SETTLED_SECONDS = 2.0
"""Seconds after which a core that is free is not about to be taken by the next trial."""


class SpareCores(Callback):  # type: ignore[misc]
    """Shares the cores of this machine among the trials that run, anew after each epoch.

    Where nothing runs beside it, a trial has them all. Training with other numbers of threads
    rounds otherwise, so only studies that go by the clock anyway do this.

    Args:
        cores: Cores of the machine.
        share: Cores that a trial has in any case.
    """

    def __init__(self, cores: int, share: int) -> None:
        self._cores = cores
        self._share = share
        self._given: dict[str, int] = {}
        self._changed = time.monotonic()

    @classmethod
    def of(cls, spec: StudySpec, resources: TrialResources, cores: float) -> SpareCores | None:
        """What shares the cores for a study on a cluster of its own; None if nothing may.

        Args:
            spec: The study's spec.
            resources: The share of a trial.
            cores: Cores of this machine.
        """
        if spec.search.time_budget is None or spec.resources.cpu != "auto" or resources.gpu:
            return None
        return cls(int(cores), int(resources.cpu)) if cores >= 2 * resources.cpu else None

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; there is nothing to keep."""
        return {}

    @property
    def alone(self) -> tuple[int, float]:
        """Trials that train on at the end, and how long an epoch takes them, as a share."""
        return alone(self._cores, self._share)

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Count a trial that begins with its own share."""
        self._given[trial.trial_id] = self._share
        self._changed = time.monotonic()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Count it no longer."""
        if self._given.pop(trial.trial_id, None) is not None:
            self._changed = time.monotonic()

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Count it no longer."""
        self.on_trial_complete(iteration, trials, trial)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Tell a trial how many cores its next epoch has."""
        given = self._given.get(trial.trial_id)
        if given is None:
            return
        cores = max(self._share, self._cores // len(self._given))
        if cores == given:
            return
        settled = time.monotonic() - self._changed >= SETTLED_SECONDS
        actor = actor_of(trial)
        if actor is not None and (cores < given or settled):
            # it comes before the next epoch: an actor does what it is asked in order
            actor.use_cores.remote(cores)
            self._given[trial.trial_id] = cores
