"""The parts of `make bench-search`: what is simulated is what is said to be."""

from __future__ import annotations

import copy
import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from scipy.optimize import minimize

from tuner.spec.domains import Uniform
from tuner.spec.space import Space
from tuner.study.trial_entry import TrialState

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "search"))

import learning_curves
import peers
import problems
import simulator


@pytest.fixture(scope="module")
def curves() -> learning_curves.LearningCurves:
    return learning_curves.LearningCurves()


class Straight:
    """Scores that rise by the epoch to a configuration's level; an epoch takes a second."""

    epochs = 9
    target = math.inf
    fixed: Mapping[str, Any] = MappingProxyType({})

    def space(self) -> Space:
        return Space({"x": Uniform(0.0, 1.0)})

    def true(self, values: Any, epoch: int) -> float:
        return float(values["x"]) * epoch / self.epochs

    def observed(self, values: Any, epoch: int, seed: int) -> float:
        return math.nan if values["x"] > 0.95 else self.true(values, epoch)

    def seconds(self, values: Any) -> float:
        return 1.0


class Listed(Searcher):  # type: ignore[misc]
    """Proposes the levels that it was given."""

    def __init__(self, levels: list[float]) -> None:
        super().__init__()
        self.levels = levels

    def suggest(self, trial_id: str) -> Any:
        return {"x": self.levels.pop(0)} if self.levels else Searcher.FINISHED

    def on_trial_complete(self, *arguments: Any, **named: Any) -> None:
        pass


def test_a_simulated_study_comes_out_as_counted_by_hand() -> None:
    """Three trainings of 9 epochs on two workers; the one that diverges ends after its first."""
    study = simulator.Simulator(
        Straight(), Listed([0.5, 0.99, 0.8, 0.2]), FIFOScheduler(), workers=2, seed=0, budget=99
    )
    outcome = study.run()
    assert outcome.trials == 4
    assert outcome.epochs == 9 + 1 + 9 + 9
    # worker A: 0.5 for 9 s, 0.2 for 9 s; worker B: 0.99 for 1 s, 0.8 from 1 s to 10 s
    assert outcome.seconds == 18.0
    assert outcome.idle == 8.0
    assert outcome.seconds_to(0.8) == 10.0
    assert outcome.seconds_to(0.5) == 1.0 + math.ceil(9 * 0.5 / 0.8)
    assert outcome.seconds_to(0.81) == math.inf


def test_promotion_leaves_no_worker_idle_and_follows_the_record() -> None:
    searcher, scheduler = peers.ours(Straight(), 0, searcher="random", promotion=True)
    outcome = simulator.Simulator(
        Straight(), searcher, scheduler, workers=8, seed=0, budget=300
    ).run()
    assert outcome.idle == 0.0
    entries = searcher._record.entries.values()  # type: ignore[attr-defined]
    assert sum(entry.epochs for entry in entries) == outcome.epochs == 300
    for rung in (1, 3):
        came = [entry for entry in entries if entry.epochs >= rung]
        assert sum(entry.epochs > rung for entry in came) <= len(came) / 3
    diverged = [entry for entry in entries if entry.values["x"] > 0.95 and entry.epochs]
    assert diverged
    assert {entry.state for entry in diverged} <= {TrialState.DIVERGED, TrialState.STOPPED}


@pytest.mark.parametrize("contender", [name for name in peers.PEERS if "Syne" not in name])
def test_every_contender_searches_a_space_with_conditions(
    contender: str, curves: learning_curves.LearningCurves
) -> None:
    searcher, scheduler = peers.PEERS[contender](curves, 0)
    outcome = simulator.Simulator(curves, searcher, scheduler, workers=2, seed=0, budget=60).run()
    assert outcome.trials >= 2
    assert outcome.epochs <= 60


@pytest.mark.parametrize(
    ("dims", "optimum"),
    [
        (3, [0.114614, 0.555649, 0.852547]),
        (6, [0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573]),
    ],
)
def test_hartmann_has_its_published_optimum(dims: int, optimum: list[float]) -> None:
    problem = problems.Hartmann(dims)

    def negated(point: np.ndarray) -> float:
        return -problem.true({f"x{i}": x for i, x in enumerate(point)}, problem.epochs)

    found = minimize(negated, np.array(optimum) + 0.02, bounds=[(0, 0.9)] * dims)
    np.testing.assert_allclose(found.x, optimum, atol=1e-3)
    assert -found.fun == pytest.approx(problem.best, abs=1e-4)
    # at the first epoch, each coefficient is lower by `bias`
    a, p = (problems.A3, problems.P3) if dims == 3 else (problems.A6, problems.P6)
    lowered = (problems.ALPHA - 1.0) @ np.exp(-(a * (np.array(optimum) - p) ** 2).sum(axis=1))
    at_first = problem.true({f"x{i}": x for i, x in enumerate(optimum)}, 1)
    assert at_first == pytest.approx(lowered)


def test_hartmann_diverges_in_its_corner_and_its_noise_fades() -> None:
    problem = problems.Hartmann(3)
    corner = {"x0": 0.95, "x1": 0.5, "x2": 0.5}
    assert math.isfinite(problem.true(corner, 1))
    assert math.isnan(problem.observed(corner, 2, 0))
    middle = {"x0": 0.5, "x1": 0.5, "x2": 0.5}

    def errors(epoch: int) -> np.ndarray:
        true = problem.true(middle, epoch)
        return np.array([problem.observed(middle, epoch, seed) - true for seed in range(300)])

    assert errors(27).std() == pytest.approx(problem.jitter, rel=0.2)
    assert errors(1).mean() == pytest.approx(-problem.noise * math.sqrt(2 / math.pi), rel=0.2)


def test_interpolated_curves_predict_those_left_out(curves: learning_curves.LearningCurves) -> None:
    assert len(curves.configurations) >= 150
    assert (curves.leave_one_out() > 0.6).all()
    # each field counts: without its precision the error is greater, or nearly the same
    everything_alike = dict.fromkeys(learning_curves.PRECISIONS, 1.0)
    assert curves.leave_one_out(everything_alike).mean() < curves.leave_one_out().mean() - 0.1


def test_curves_and_noise_are_those_of_the_table_where_others_are_far(
    curves: learning_curves.LearningCurves,
) -> None:
    sharp = copy.copy(curves)
    sharp._scales, sharp._known = 100 * curves._scales, {}
    for index in range(0, len(curves.configurations), 25):
        assert not math.isfinite(curves.diverged_at[index])
        values = curves.configurations[index]
        looked_up = [sharp.true(values, epoch) for epoch in range(1, curves.epochs + 1)]
        np.testing.assert_allclose(looked_up, curves.steady[index])
        errors = np.array([sharp.observed(values, 20, seed) - looked_up[19] for seed in range(300)])
        found = np.unique(errors[np.isfinite(errors)].round(9))
        np.testing.assert_allclose(found, np.unique(curves.noise[index, 17:22].round(9)))


def test_noise_fades_in_trainings_whose_learning_rate_falls(
    curves: learning_curves.LearningCurves,
) -> None:
    falls = [c["scheduler"] in {"cosine", "poly"} for c in curves.configurations]
    good = np.array(falls) & (curves.steady.max(axis=1) > 0.38)
    assert good.sum() > 20
    assert curves.noise[good, 22:].std() < 0.2 * curves.noise[good, 5:10].std()


def test_no_curve_is_above_the_best_known_one(curves: learning_curves.LearningCurves) -> None:
    rng = random.Random(5)
    drawn = [curves.space().sample(rng) for _ in range(500)]
    scores = [curves.true(values, epoch) for values in drawn for epoch in (9, 18, 27)]
    assert np.nanmax(scores) <= curves.best <= curves.steady.max()


def test_a_share_of_trials_diverges_whatever_it_is(curves: learning_curves.LearningCurves) -> None:
    values = curves.configurations[1]
    last = np.array([curves.observed(values, curves.epochs, seed) for seed in range(2000)])
    first = np.array([curves.observed(values, 1, seed) for seed in range(2000)])
    assert np.isnan(last).mean() == pytest.approx(learning_curves.UNLUCKY, rel=0.4)
    assert np.isnan(first).mean() < 0.02
