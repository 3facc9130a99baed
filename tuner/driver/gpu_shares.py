"""How many GPUs, or what part of one, each trial of a study with `gpu: auto` has.

A trial begins with one GPU. When there are more trials than GPUs, and one is measured to leave
enough of its GPU (`GpuFit`), it goes on with a part of it, and others of its kind begin with one.
When no other trial is there to run, one that trains on goes on with a whole GPU again, and then
with twice as many, as long as its node has them; when another trial or study wants them, it goes
on with one. Its batch is the same all the time, shared by its GPUs. It changes between two epochs:
it pauses, and goes on in another worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.tune import Callback

from tuner.driver.gpu_fit import MOST, GpuFit, kind_of
from tuner.driver.ray_internals import node_of
from tuner.trial.messages import EpochReport, TrialRequest, TrialStart

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

    from training.config import ModelTrainingConfig
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

ROUNDING = 1e-6
"""By what sums of parts of a GPU may differ from whole ones."""


@dataclass
class _Place:
    """Where a trial runs.

    Attributes:
        node: Ray's name of the node.
        gpus: Its GPUs there; none until it has begun.
        beside: The trials that were on its GPU too when it last reported; None until it has.
    """

    node: str
    gpus: tuple[str, ...] = ()
    beside: frozenset[int] | None = None


class GpuShares(Callback):  # type: ignore[misc]
    """Decides between two epochs how many GPUs a trial goes on with.

    Args:
        study: The study.
        nodes: The nodes of its cluster.
        searcher: What knows whether another trial is there to run.
        cases: Validation cases of a trial; each of its processes needs one.
        grows: Whether trials may have several GPUs.
        parts: Whether trials may have a part of one.
    """

    def __init__(
        self,
        study: Study,
        nodes: Nodes,
        searcher: RecordSearcher,
        cases: int,
        *,
        grows: bool = True,
        parts: bool = True,
    ) -> None:
        self._study = study
        self._nodes = nodes
        self._searcher = searcher
        self._cases = cases
        self._grows = grows
        self._fit = GpuFit(MOST if parts else 1)
        self._share: dict[int, float] = {}
        self._before: dict[int, float] = {}
        self._places: dict[int, _Place] = {}
        self._blocked: set[int] = set()
        self._decided: set[int] = set()
        self._leaving = 0

    @classmethod
    def of(
        cls,
        study: Study,
        resources: TrialResources,
        nodes: Nodes,
        searcher: RecordSearcher,
        cases: int,
    ) -> GpuShares | None:
        """What shares the GPUs among a study's trials; None where each has what is configured.

        Nor in a population, whose trials wait for each other. Where GPU-hours are counted none has
        several, which are never as many times as fast; where the cores of a trial are configured
        none has a part.

        Args:
            study: The study.
            resources: The share of a trial.
            nodes: The nodes of its cluster.
            searcher: What knows whether another trial is there to run.
            cases: Validation cases of a trial.
        """
        spec = study.spec
        if spec.resources.gpu != "auto" or resources.gpu != 1 or spec.population:
            return None
        grows, parts = spec.search.gpu_hours is None, spec.resources.cpu == "auto"
        return cls(study, nodes, searcher, cases, grows=grows, parts=parts)

    def __getstate__(self) -> dict[str, Any]:
        """Ray pickles its callbacks; there is nothing to keep."""
        return {}

    def share(self, number: int) -> float:
        """GPUs of a trial, from its next start on."""
        return self._share.get(number, 1)

    def requested(self, number: int) -> float:
        """GPUs that a trial asks for in place of those of the study's trials; 0 for these."""
        share = self.share(number)
        if number in self._decided:
            self._decided.discard(number)
        elif share <= 1 and number not in self._blocked:
            # a whole one as long as there is one
            whole = self._free() + share >= 1 - ROUNDING or self._nodes.allowed is not None
            self._have(number, 1 if whole else 1 / self._at_once(number))
        return self._share.get(number, 0)

    @property
    def places(self) -> int:
        """Trials that the GPUs hold at once just now, those that run included.

        Those that have several give them back.
        """
        shares = [min(1, self.share(number)) for number in self._searcher.live_trials]
        free = self._nodes.totals()["GPU"] - sum(shares)
        return len(shares) + max(0, int(free * self._fit.most + ROUNDING))

    @property
    def at_once(self) -> int:
        """Trials that share a GPU at most, of the kind that takes the least."""
        return self._fit.most

    def reports(self, number: int, report: EpochReport) -> None:
        """Take over what a trial took of its GPU until the end of an epoch."""
        place = self._places.get(number)
        use = None if report.memory is None else report.memory.gpu
        if place is None or use is None:
            return
        beside = frozenset(self._beside(number))
        same, place.beside = beside == place.beside, beside
        if not same or self.share(number) > 1:
            # the first epoch also finds the fastest kernels, and fills caches
            return
        kind = self._kind(number)
        if beside:
            self._fit.together(kind, len(beside) + 1, use, report.seconds)
        else:
            self._fit.alone(kind, use, report.seconds)

    def change(self, number: int, epoch: int) -> str:
        """Why a trial is to pause, to go on with other GPUs; empty if it need not.

        Args:
            number: The trial.
            epoch: The epoch that it has ended.
        """
        now = self.share(number)
        share, why = self._better(number, epoch)
        if share == now:
            return ""
        self._leaving += 1
        self._before[number] = now
        self._decided.add(number)
        self._have(number, share)
        return why

    def waits_in_vain(self, number: int) -> str:
        """Why a trial that has waited for long goes on with the GPUs that it had.

        Empty where it waits for no more than it had, or for one.
        """
        share, before = self.share(number), self._before.get(number, 1)
        if share <= 1 or share <= before:
            return ""
        self._have(number, before)
        self._blocked.add(number)
        return f"{share:g} GPUs of a node are not to be had; it goes on with {before:g}"

    def outgrows(self, number: int) -> str:
        """Why a trial that was out of memory goes on with a whole GPU; empty if it had one."""
        share = self.share(number)
        if share >= 1:
            return ""
        self._fit.outgrown(self._kind(number), round(1 / share))
        self._have(number, 1)
        self._blocked.add(number)
        return f"it needs more than its part of a GPU ({share:.2g}); it goes on with a whole one"

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
        """Note on which node a trial runs."""
        node = node_of(trial)
        if node is not None:
            self._places[TrialRequest.from_ray(trial.config).number] = _Place(node)

    def begins(self, number: int, start: TrialStart) -> None:
        """Note which GPUs a trial has."""
        place = self._places.get(number)
        if place is not None:
            place.gpus = start.placement.gpus

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Count its GPUs no longer."""
        self._places.pop(TrialRequest.from_ray(trial.config).number, None)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Count its GPUs no longer."""
        self.on_trial_complete(iteration, trials, trial)

    def _better(self, number: int, epoch: int) -> tuple[float, str]:
        """What a trial is to go on with, and why."""
        now = self.share(number)
        if now > 1:
            if self._free() < -ROUNDING or self._nodes.allowed is not None:
                return 1, "others want its GPUs; it goes on with 1"
        elif now < 1:
            at_once = self._at_once(number)
            if round(1 / now) > at_once and number != min({number, *self._beside(number)}):
                return 1, "trials that share its GPU train no more together; it goes on with one"
        if self._searcher.idle_seconds >= SETTLED_SECONDS:
            return self._grown(number, epoch)
        return self._shrunk(number, epoch)

    def _shrunk(self, number: int, epoch: int) -> tuple[float, str]:
        """What a trial goes on with where others are there to run: a part, if that is enough."""
        now, at_once = self.share(number), self._at_once(number)
        if now != 1 or at_once == 1 or number in self._blocked or self._free() >= 1 - ROUNDING:
            return now, ""
        if self._nodes.allowed is not None or self._left(number, epoch) < 2 * RESTART_SECONDS:
            return now, ""
        if self._nodes.places() <= len(self._searcher.live_trials) or not self._searcher.has_more:
            return now, ""
        why = self._fit.describe(self._kind(number))
        return 1 / at_once, f"{why}; it goes on with a part, beside others ({at_once} at once)"

    def _grown(self, number: int, epoch: int) -> tuple[float, str]:
        """What a trial goes on with where no other is there to run."""
        now, place = self.share(number), self._places.get(number)
        if place is None or number in self._blocked:
            return now, ""
        if self._left(number, epoch) * GAIN < RESTART_SECONDS:
            return now, ""
        others = [each for each, other in self._places.items() if other.node == place.node]
        others.remove(number)
        parts = {self._places[each].gpus for each in others if self.share(each) < 1}
        taken = len(parts) + sum(self.share(each) for each in others if self.share(each) >= 1)
        free = self._nodes.gpus.get(place.node, 0) - taken
        if self._beside(number):
            why = "no other trial is left to begin; it goes on with a GPU of its own"
            return (1, why) if free >= 1 else (now, "")
        batch = self._config(number).train_batch_size
        if batch == "auto":
            # it is known from the trial's first epoch on
            return now, ""
        twice = 2 * max(1, round(now))
        if not self._grows or free < twice or batch % twice or twice > self._cases:
            return now, ""
        why = f"no other trial is left to begin; it goes on with {twice} GPUs of its node"
        return twice, why

    def _have(self, number: int, share: float) -> None:
        """Give a trial so many GPUs from its next start on."""
        self._share.pop(number, None)
        if share != 1:
            self._share[number] = share

    def _left(self, number: int, epoch: int) -> float:
        """Seconds that a trial still trains."""
        spec, entry = self._study.spec, self._study.record.entries[number]
        last = epoch if spec.folds == 1 else epoch % spec.max_epochs
        return ((entry.ends_at or spec.max_epochs) - last) * entry.epoch_seconds

    def _free(self) -> float:
        """GPUs that no trial has which runs or waits; less than 0 if those that wait need more."""
        needed = sum(map(self.share, self._searcher.live_trials))
        return self._nodes.totals()["GPU"] - needed

    def _beside(self, number: int) -> set[int]:
        """Other trials on the GPU of a trial."""
        place = self._places.get(number)
        if place is None or not place.gpus:
            return set()
        return {
            each
            for each, other in self._places.items()
            if each != number and (other.node, other.gpus) == (place.node, place.gpus)
        }

    def _at_once(self, number: int) -> int:
        # no config need be built as long as no kind may share
        return 1 if self._fit.most == 1 else self._fit.at_once(self._kind(number))

    def _kind(self, number: int) -> str:
        return kind_of(self._config(number))

    def _config(self, number: int) -> ModelTrainingConfig:
        values = self._study.record.entries[number].trained_values
        return self._study.spec.trial_config(values)
