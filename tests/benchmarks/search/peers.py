"""Searchers and schedulers to compare: ours, and those of others as they are shipped."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import InMemoryStorage
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    TrialScheduler,
)
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from tuner.record import StudyRecord
from tuner.schedulers import RecordScheduler, build_policy
from tuner.searchers import build_searcher
from tuner.space import Choice, LogUniform, QUniform, RandInt, Space, Uniform
from tuner.spec import AshaSettings, ResourceSettings, SearchSettings, StudySpec

ENDLESS = 10**9
FACTOR = 3

Built = tuple[Searcher, TrialScheduler]


def ours(
    problem: Any,
    seed: int,
    *,
    searcher: str,
    scheduler: str = "asha",
    promotion: bool = False,
    default_first: bool = True,
    brackets: int = 1,
) -> Built:
    """Our searcher and scheduler on a record in memory."""
    spec = StudySpec(
        source=Path("simulated.yaml"),
        source_text="",
        metric="val_dice",
        mode="max",
        config={"max_epochs": problem.epochs, **problem.fixed},
        space=problem.space(),
        search=SearchSettings(
            searcher=searcher, num_trials=ENDLESS, seed=seed, default_first=default_first
        ),
        scheduler=scheduler,
        asha=AshaSettings(
            grace_period=1, reduction_factor=FACTOR, promotion=promotion, brackets=brackets
        ),
        resources=ResourceSettings(),
    )
    record = StudyRecord(Path("simulated"), spec.space, "max", InMemoryStorage())
    policy = build_policy(record, spec)
    return build_searcher(record, spec, policy), RecordScheduler(record, policy)


def optuna_space(space: Space) -> Callable[[optuna.Trial], dict[str, Any]]:
    """A space as OptunaSearch takes it, conditions included."""

    def suggest(trial: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, domain in space.items():
            if not space.active(name, values):
                continue
            match domain:
                case Choice():
                    values[name] = domain.value_of(trial.suggest_categorical(name, domain.labels))
                case LogUniform():
                    values[name] = trial.suggest_float(name, domain.low, domain.high, log=True)
                case Uniform():
                    values[name] = trial.suggest_float(name, domain.low, domain.high)
                case QUniform():
                    values[name] = trial.suggest_float(
                        name, domain.low, domain.high, step=domain.step
                    )
                case RandInt():
                    values[name] = trial.suggest_int(name, domain.low, domain.high)
        return values

    return suggest


def ray_asha_optuna(problem: Any, seed: int) -> Built:
    """Ray Tune as shipped: ASHAScheduler and OptunaSearch with their defaults."""
    np.random.seed(seed)
    searcher = OptunaSearch(
        space=optuna_space(problem.space()), metric="score", mode="max", seed=seed
    )
    return searcher, _ray(AsyncHyperBandScheduler, problem)


def ray_hyperband(problem: Any, seed: int) -> Built:
    """Ray Tune's synchronous HyperBand with OptunaSearch."""
    searcher = OptunaSearch(
        space=optuna_space(problem.space()), metric="score", mode="max", seed=seed
    )
    scheduler = HyperBandScheduler(
        time_attr="epoch", metric="score", mode="max", max_t=problem.epochs, reduction_factor=FACTOR
    )
    return searcher, scheduler


def _ray(kind: type[AsyncHyperBandScheduler], problem: Any) -> TrialScheduler:
    return kind(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=problem.epochs,
        grace_period=1,
        reduction_factor=FACTOR,
    )


class OptunaPeer(Searcher, FIFOScheduler):  # type: ignore[misc]
    """Optuna's own loop: its sampler, its pruner, `ask`, `report`, `should_prune`, `tell`."""

    def __init__(self, problem: Any, seed: int, pruner: optuna.pruners.BasePruner) -> None:
        Searcher.__init__(self)
        FIFOScheduler.__init__(self)
        self._suggest = optuna_space(problem.space())
        self._study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed), pruner=pruner
        )
        self._asked: dict[str, optuna.Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        self._asked[trial_id] = self._study.ask()
        return self._suggest(self._asked[trial_id])

    def on_trial_result(self, *arguments: Any) -> Any:
        if len(arguments) == 2:  # as a searcher: nothing to add
            return None
        _, trial, result = arguments
        asked = self._asked[trial.trial_id]
        asked.report(result["score"], result["epoch"])
        return TrialScheduler.STOP if asked.should_prune() else TrialScheduler.CONTINUE

    def on_trial_complete(self, *arguments: Any, **named: Any) -> None:
        if len(arguments) == 3:  # as a scheduler
            return
        (trial_id,) = arguments
        result = named["result"]
        asked = self._asked[trial_id]
        if result.get("outcome") == "completed":
            self._study.tell(asked, result["score"])
        elif result.get("outcome") == "diverged":
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, state=optuna.trial.TrialState.PRUNED)


def optuna_halving(problem: Any, seed: int) -> Built:
    """Optuna's TPE and SuccessiveHalvingPruner."""
    peer = OptunaPeer(
        problem,
        seed,
        optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=FACTOR),
    )
    return peer, peer


def optuna_hyperband(problem: Any, seed: int) -> Built:
    """Optuna's TPE and HyperbandPruner."""
    peer = OptunaPeer(
        problem,
        seed,
        optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=problem.epochs, reduction_factor=FACTOR
        ),
    )
    return peer, peer


class RandomPeer(Searcher):  # type: ignore[misc]
    """Random search."""

    def __init__(self, problem: Any, seed: int) -> None:
        super().__init__()
        import random

        self._space = problem.space()
        self._rng = random.Random(seed)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        values: dict[str, Any] = self._space.sample(self._rng)
        return values

    def on_trial_complete(self, trial_id: str, **named: Any) -> None:
        pass


def random_full(problem: Any, seed: int) -> Built:
    """Random search, every trial to the full budget."""
    return RandomPeer(problem, seed), FIFOScheduler()


PEERS: dict[str, Callable[[Any, int], Built]] = {
    "Ray ASHA + OptunaSearch": ray_asha_optuna,
    "Ray HyperBand + OptunaSearch": ray_hyperband,
    "Optuna TPE + SuccessiveHalving": optuna_halving,
    "Optuna TPE + Hyperband": optuna_hyperband,
    "random, full budget": random_full,
}


def quieten() -> None:
    """Peers warn of their own defaults."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
