"""Searchers and schedulers to compare: ours, and those of others as they are shipped."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
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
from simulator import ended_as

from tuner.driver.scheduler import RecordScheduler
from tuner.driver.searcher import build_searcher
from tuner.search.policies import build_policy
from tuner.search.searchers.optuna_searchers import suggest
from tuner.spec.domains import Choice, LogUniform, QUniform, RandInt, Uniform
from tuner.spec.load import parse_spec
from tuner.spec.policies import AshaSettings
from tuner.spec.settings import SearchSettings
from tuner.spec.space import Space
from tuner.study.record import StudyRecord
from tuner.study.study import Study
from tuner.study.trial_entry import TrialState

ENDLESS = 10**9
FACTOR = 3

Built = tuple[Searcher, TrialScheduler]


def ours(
    problem: Any,
    seed: int,
    *,
    searcher: str,
    promotion: bool = False,
    default_first: bool = True,
    brackets: int = 1,
) -> Built:
    """Our searcher and scheduler on a record in memory."""
    base = parse_spec("space: {learning_rate: {uniform: [0.1, 1]}}", source="simulated.yaml")
    spec = base.model_copy(
        update={
            "config": {"max_epochs": problem.epochs, **problem.fixed},
            "space": problem.space(),
            "search": SearchSettings(
                searcher=searcher, num_trials=ENDLESS, seed=seed, default_first=default_first
            ),
            "policy": AshaSettings(
                grace_period=1, reduction_factor=FACTOR, promotion=promotion, brackets=brackets
            ),
        }
    )
    record = StudyRecord(Path("simulated"), spec.space, "max", InMemoryStorage())
    policy = build_policy(record, spec)
    return build_searcher(Study(record.folder, spec, record), policy), RecordScheduler(
        record, policy
    )


def optuna_space(space: Space) -> Callable[[optuna.Trial], dict[str, Any]]:
    """A space as OptunaSearch takes it, conditions included."""

    def point(trial: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, domain in space.items():
            if not space.active(name, values):
                continue
            values[name] = suggest(trial, name, domain)
        return values

    return point


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
        if ended_as(result) is TrialState.COMPLETED:
            self._study.tell(asked, result["score"])
        elif ended_as(result) is TrialState.DIVERGED:
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
        self._space = problem.space()
        self._rng = random.Random(seed)

    def suggest(self, trial_id: str) -> dict[str, Any]:
        values: dict[str, Any] = self._space.sample(self._rng)
        return values

    def on_trial_complete(self, trial_id: str, **named: Any) -> None:
        pass


SYNE_TUNE_PYTHON = os.environ.get("SYNE_TUNE_PYTHON", "")
"""Interpreter of an environment that has Syne Tune, where there is one."""


class SyneTunePeer(Searcher, FIFOScheduler):  # type: ignore[misc]
    """Syne Tune's ASHA, which is searcher and scheduler in one, in a process of its own.

    Its spaces have no conditions: it draws every field, and those that take no part are left
    out.
    """

    def __init__(self, problem: Any, seed: int) -> None:
        Searcher.__init__(self)
        FIFOScheduler.__init__(self)
        self._space = problem.space()
        bridge = Path(__file__).with_name("syne_tune_asha.py")
        self._process = subprocess.Popen(
            [SYNE_TUNE_PYTHON, str(bridge)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        space = {name: _syne_domain(domain) for name, domain in self._space.items()}
        settings = {"space": space, "epochs": problem.epochs, "factor": FACTOR, "seed": seed}
        self._send(settings)

    def close(self) -> None:
        """End its process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def suggest(self, trial_id: str) -> dict[str, Any]:
        drawn = self._call("suggest", trial_id, {})
        values: dict[str, Any] = {}
        for name, domain in self._space.items():
            if self._space.active(name, values):
                given = drawn[name]
                values[name] = domain.restored(given)
                if isinstance(domain, QUniform):
                    values[name] = domain.nearest(domain.low + domain.step * given)
        return values

    def on_trial_result(self, *arguments: Any) -> Any:
        if len(arguments) == 2:  # as a searcher: nothing to add
            return None
        _, trial, result = arguments
        score = result["score"]
        if score != score:
            return TrialScheduler.CONTINUE  # the trial ends by itself
        told = {"score": score, "epoch": result["epoch"]}
        return self._call("result", trial.trial_id, told)

    def on_trial_complete(self, *arguments: Any, **named: Any) -> None:
        if len(arguments) == 3:  # as a scheduler
            return
        result = named["result"]
        if ended_as(result) is TrialState.COMPLETED:
            told = {"score": result["score"], "epoch": result["epoch"]}
            self._call("complete", arguments[0], told)
        elif ended_as(result) is TrialState.DIVERGED:
            self._call("error", arguments[0], {})

    def _call(self, call: str, trial_id: str, result: dict[str, Any]) -> Any:
        self._send([call, int(trial_id), result])
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def _send(self, message: Any) -> None:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


def _syne_domain(domain: Any) -> tuple[str, list[Any]]:
    match domain:
        case Choice():
            return "choice", [list(domain.labels)]
        case LogUniform():
            return "loguniform", [domain.low, domain.high]
        case Uniform():
            return "uniform", [domain.low, domain.high]
        case QUniform():
            return "randint", [0, domain.steps]
        case RandInt():
            return "randint", [domain.low, domain.high]
    raise AssertionError(domain)


def syne_tune_asha(problem: Any, seed: int) -> Built:
    """Syne Tune's ASHA with its random searcher."""
    peer = SyneTunePeer(problem, seed)
    return peer, peer


def random_full(problem: Any, seed: int) -> Built:
    """Random search, every trial to the full budget."""
    return RandomPeer(problem, seed), FIFOScheduler()


def shipped(problem: Any, seed: int) -> Built:
    """What a search space gets that names neither searcher nor scheduler."""
    return ours(
        problem,
        seed,
        searcher=SearchSettings().searcher,
        promotion=AshaSettings().promotion,
        brackets=AshaSettings().brackets,
    )


OURS = "segtune"
STOCK = "Ray ASHA + OptunaSearch"
RANDOM = "random, full budget"

PEERS: dict[str, Callable[[Any, int], Built]] = {
    OURS: shipped,
    STOCK: ray_asha_optuna,
    "Ray HyperBand + OptunaSearch": ray_hyperband,
    "Optuna TPE + SuccessiveHalving": optuna_halving,
    "Optuna TPE + Hyperband": optuna_hyperband,
    RANDOM: random_full,
}
if SYNE_TUNE_PYTHON:
    PEERS["Syne Tune ASHA"] = syne_tune_asha


def quieten() -> None:
    """Peers warn of their own defaults."""
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
