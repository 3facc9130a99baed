"""Lets the last trials of a study go on with the GPUs of their node that nothing uses.

With `gpu: auto` a trial has one GPU. When no other trial is there to run, one that trains on pauses
after an epoch and goes on with twice as many, as long as its node has them; when another trial or
study wants them, it goes on with one again. Its batch is the same all the time, shared by its GPUs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from tuner.driver.ray_internals import node_of
from tuner.trial.messages import TrialRequest

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from tuner.driver.nodes import Nodes
    from tuner.driver.searcher import RecordSearcher
    from tuner.spec.settings import TrialResources
    from tuner.study.study import Study

SETTLED_SECONDS = 2.0
"""Seconds after which a GPU that is free is not about to be taken by the next trial."""

RESTART_SECONDS = 60.0
"""What a trial must save at least to be worth the start of its processes, and a further one when
another trial wants the GPUs."""

GAIN = 0.4
"""Share of its time that a trial saves on twice as many GPUs; a cautious estimate."""


class SpareGpus(Callback):  # type: ignore[misc]
    """Decides between two epochs how many GPUs a trial goes on with.

    Args:
        study: The study.
        nodes: The nodes of its cluster.
        searcher: What knows whether another trial is there to run.
        cases: Validation cases of a trial; each of its processes needs one.
    """

    def __init__(self, study: Study, nodes: Nodes, searcher: RecordSearcher, cases: int) -> None:
        self._study = study
        self._nodes = nodes
        self._searcher = searcher
        self._cases = cases
        self._share: dict[int, int] = {}
        self._node_of: dict[int, str] = {}
        self._blocked: set[int] = set()
        self._leaving = 0

    @classmethod
    def of(
        cls,
        study: Study,
        resources: TrialResources,
        nodes: Nodes,
        searcher: RecordSearcher,
        cases: int,
    ) -> SpareGpus | None:
        """What gives a study's last trials more GPUs; None if nothing may.

        Not where GPU-hours are counted, since several GPUs are never twice as fast, nor in a
        population, whose trials wait for each other.

        Args:
            study: The study.
            resources: The share of a trial.
            nodes: The nodes of its cluster.
            searcher: What knows whether another trial is there to run.
            cases: Validation cases of a trial.
        """
        spec = study.spec
        if spec.resources.gpu != "auto" or resources.gpu != 1:
            return None
        if spec.search.gpu_hours is not None or spec.population:
            return None
        return cls(study, nodes, searcher, cases)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; there is nothing to keep."""
        return {}

    def share(self, number: int) -> int:
        """GPUs of a trial, from its next start on."""
        return self._share.get(number, 1)

    def requested(self, number: int) -> int:
        """GPUs that a trial asks for in place of those of the study's trials; 0 for these."""
        return self._share.get(number, 0)

    def change(self, number: int, epoch: int) -> str:
        """Why a trial is to pause, to go on with other GPUs; empty if it need not.

        Args:
            number: The trial.
            epoch: The epoch that it has ended.
        """
        now = self.share(number)
        # those that run, and those that wait
        needed = sum(map(self.share, self._searcher.live_trials))
        wanted = needed > self._nodes.totals()["GPU"] or self._nodes.allowed is not None
        share = 1 if wanted else self._grown(number, epoch)
        if share == now:
            return ""
        self._leaving += 1
        if share == 1:
            del self._share[number]
            return "others want its GPUs; it goes on with 1"
        self._share[number] = share
        return f"no other trial is left to begin; it goes on with {share} GPUs of its node"

    def give_up(self, number: int) -> None:
        """Let a trial go on with one GPU from now on: no more could be had."""
        self._share.pop(number, None)
        self._blocked.add(number)

    def lets_go(self) -> bool:
        """Whether a worker whose trial pauses is given back; asked once for each."""
        if not self._leaving:
            return False
        self._leaving -= 1
        return True

    def idle(self) -> bool:
        """Whether workers without a trial are of no use: no other trial is there to run."""
        return self._searcher.idle_seconds >= SETTLED_SECONDS

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Note where a trial runs."""
        node = node_of(trial)
        if node is not None:
            self._node_of[TrialRequest.from_ray(trial.config).number] = node

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Count its GPUs no longer."""
        self._node_of.pop(TrialRequest.from_ray(trial.config).number, None)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Count its GPUs no longer."""
        self.on_trial_complete(iteration, trials, trial)

    def _grown(self, number: int, epoch: int) -> int:
        """GPUs that a trial could go on with."""
        share, entry = self.share(number), self._study.record.entries[number]
        node = self._node_of.get(number)
        if node is None or number in self._blocked:
            return share
        if self._searcher.idle_seconds < SETTLED_SECONDS:
            return share
        spec = self._study.spec
        last = epoch if spec.folds == 1 else epoch % spec.max_epochs
        left = (entry.ends_at or spec.max_epochs) - last
        if left * entry.epoch_seconds * GAIN < RESTART_SECONDS:
            return share
        here = sum(self.share(each) for each, found in self._node_of.items() if found == node)
        free = self._nodes.gpus.get(node, 0) - here
        batch = spec.trial_config(entry.trained_values).train_batch_size
        twice = 2 * share
        fits = share <= free and batch % twice == 0 and twice <= self._cases
        return twice if fits else share
