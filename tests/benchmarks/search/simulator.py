"""An event-driven Ray Tune: the same searcher and scheduler objects, a clock that is simulated.

The simulator does what Tune's controller does with them, in the same order: it asks the
searcher for a trial when a worker is free, lets the scheduler choose among pending and paused
trials, hands over each result, and does what the scheduler says. Training is a look-up.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tuner.study.trial_entry import TrialState
from tuner.trial.messages import EpochReport, TrialEnd, TrialRequest


class Problem(Protocol):
    """Learning curves by configuration."""

    epochs: int

    def true(self, values: Mapping[str, Any], epoch: int) -> float: ...

    def observed(self, values: Mapping[str, Any], epoch: int, seed: int) -> float: ...

    def seconds(self, values: Mapping[str, Any]) -> float: ...


class SimulatedTrial(SimpleNamespace):
    """What schedulers use of a Ray trial."""

    def __hash__(self) -> int:
        return hash(self.trial_id)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __str__(self) -> str:
        return str(self.trial_id)


@dataclass
class Outcome:
    """What a simulated study came to.

    Attributes:
        curve: (epochs spent, seconds, true score of the best checkpoint in hand), at every
            change of the last.
        epochs: Epochs spent in all.
        seconds: When the study ended.
        idle: Seconds that workers were idle, over all of them.
        trials: Trials that were proposed.
        cut: Trials that the deadline cut off.
    """

    curve: list[tuple[int, float, float]] = field(default_factory=list)
    epochs: int = 0
    seconds: float = 0.0
    idle: float = 0.0
    trials: int = 0
    cut: int = 0

    def epochs_to(self, target: float) -> float:
        """Epochs until the best checkpoint in hand was as good as `target`; inf for never."""
        return next((float(spent) for spent, _, score in self.curve if score >= target), math.inf)

    def seconds_to(self, target: float) -> float:
        """Seconds until the best checkpoint in hand was as good as `target`; inf for never."""
        return next((at for _, at, score in self.curve if score >= target), math.inf)


class Simulator:
    """Runs one study.

    Args:
        problem: What is trained.
        searcher: Ray Tune searcher.
        scheduler: Ray Tune scheduler.
        workers: Trials at once.
        seed: Seed of the noise.
        budget: Epochs after which the study ends.
        targets: The study also ends when the greatest of these is reached.
        deadline: Seconds after which what runs is cut off.
    """

    def __init__(
        self,
        problem: Problem,
        searcher: Searcher,
        scheduler: TrialScheduler,
        *,
        workers: int,
        seed: int,
        budget: int,
        targets: tuple[float, ...] = (),
        deadline: float = math.inf,
    ) -> None:
        self._problem = problem
        self._searcher = searcher
        self._scheduler = scheduler
        self._workers = workers
        self._seed = seed
        self._budget = budget
        self._stop_at = max(targets, default=math.inf)
        self._trials: list[SimulatedTrial] = []
        self._live: dict[str, SimulatedTrial] = {}
        self._events: list[tuple[float, int, SimulatedTrial]] = []
        self._finished = False
        self._observed = -math.inf
        self._best = -math.inf
        self._epochs_of: dict[Any, int] = {}
        self._order = 0
        self._deadline = deadline
        self.now = 0.0
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Simulate the study to its end."""
        while True:
            self._fill()
            if not self._events:
                break
            before = self.now
            if self._events[0][0] > self._deadline:
                self.now = self._deadline
                self._outcome.cut = len(self._events)
                break
            self.now, _, trial = heapq.heappop(self._events)
            busy = len(self._events) + 1
            self._outcome.idle += (self._workers - busy) * (self.now - before)
            if not self._step(trial):
                break
        self._outcome.seconds = self.now
        self._outcome.trials = len(self._epochs_of)
        return self._outcome

    # the part of Tune's controller that schedulers call

    def get_trials(self) -> list[SimulatedTrial]:
        """Trials that have not ended."""
        return list(self._live.values())

    def stop_trial(self, trial: SimulatedTrial) -> None:
        """End a trial that a scheduler has given up."""
        if trial.status == Trial.TERMINATED:
            return
        if trial.status in (Trial.PENDING, Trial.PAUSED):
            self._scheduler.on_trial_remove(self, trial)
            self._searcher.on_trial_complete(trial.trial_id)
        else:
            self._scheduler.on_trial_complete(self, trial, trial.last_result)
            self._searcher.on_trial_complete(trial.trial_id, result=trial.last_result)
        trial.status = Trial.TERMINATED
        self._live.pop(trial.trial_id, None)

    def _fill(self) -> None:
        while len(self._events) < self._workers:
            self._maybe_suggest()
            trial = self._scheduler.choose_trial_to_run(self)
            if trial is None:
                return
            trial.status = Trial.RUNNING
            self._train(trial)

    def _maybe_suggest(self) -> None:
        pending = any(trial.status == Trial.PENDING for trial in self._live.values())
        if self._finished or pending:
            return
        trial_id = f"{len(self._trials):05d}"
        suggested = self._searcher.suggest(trial_id)
        if suggested == Searcher.FINISHED:
            self._finished = True
        elif suggested is not None:
            trial = SimulatedTrial(
                trial_id=trial_id,
                config=suggested,
                status=Trial.PENDING,
                last_result={},
                epoch=0,
                is_saving=False,
                key=_key(suggested, trial_id),
            )
            self._trials.append(trial)
            self._live[trial_id] = trial
            trial.epoch = self._epochs_of.get(trial.key, 0)
            self._scheduler.on_trial_add(self, trial)

    def _train(self, trial: SimulatedTrial) -> None:
        self._order += 1
        end = self.now + self._problem.seconds(trial.config)
        heapq.heappush(self._events, (end, self._order, trial))

    def _step(self, trial: SimulatedTrial) -> bool:
        """Hand over one epoch of a trial; False when the study is over."""
        trial.epoch += 1
        self._epochs_of[trial.key] = trial.epoch
        self._outcome.epochs += 1
        score = self._problem.observed(trial.config, trial.epoch, self._seed)
        self._note(trial, score)
        result = {
            "epoch": trial.epoch,
            "training_iteration": trial.epoch,
            "score": score,
            **EpochReport(
                trial.epoch, score, {"val_dice": score}, self._problem.seconds(trial.config)
            ).to_ray(),
            "trial_id": trial.trial_id,
        }
        trial.last_result = result
        decision = self._scheduler.on_trial_result(self, trial, result)
        if decision != TrialScheduler.STOP:
            self._searcher.on_trial_result(trial.trial_id, result)
            ending = self._ending(trial, score)
            if ending:
                # the trainable ends by itself, with its last result, as `TrialTrainable` does
                trial.last_result = {**result, **ending}
                decision = TrialScheduler.STOP
        if decision == TrialScheduler.STOP:
            self.stop_trial(trial)
        elif decision == TrialScheduler.PAUSE:
            trial.status = Trial.PAUSED
        else:
            self._train(trial)
        done = self._outcome.epochs >= self._budget or self._best >= self._stop_at
        return not done

    def _ending(self, trial: SimulatedTrial, score: float) -> dict[str, Any] | None:
        if not math.isfinite(score):
            return TrialEnd(TrialState.DIVERGED, "the loss is NaN").to_ray()
        if trial.epoch >= trial.config.get("max_epochs", self._problem.epochs):
            return TrialEnd(TrialState.COMPLETED, "trained to the end").to_ray()
        return None

    def _note(self, trial: SimulatedTrial, score: float) -> None:
        """Keep the true score of the checkpoint that the study would export now."""
        if math.isfinite(score) and score > self._observed:
            self._observed = score
            self._best = self._problem.true(trial.config, trial.epoch)
            self._outcome.curve.append((self._outcome.epochs, self.now, self._best))


def _key(config: Mapping[str, Any], trial_id: str) -> int | str:
    """What a trial is known by: its number, which a promoted trial of ours has again."""
    try:
        return TrialRequest.from_ray(config).number
    except KeyError:
        # of a searcher of Ray's
        return trial_id


def ended_as(result: Mapping[str, Any]) -> TrialState | None:
    """The state that a trial ended in by itself, None if it was stopped."""
    end = TrialEnd.from_ray(result)
    return None if end is None else end.state
