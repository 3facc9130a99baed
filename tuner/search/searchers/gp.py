"""Bayesian optimisation with a Gaussian process over configuration and budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import norm

from tuner.search.gaussian_process import GaussianProcess
from tuner.search.searchers.optuna_searchers import qmc
from tuner.search.searchers.ranks import ranks_by_rung
from tuner.search.searchers.view import Proposal
from tuner.study.trial_entry import BAD_CONFIGS, IN_PROGRESS

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray

    from tuner.search.searchers.view import SearchView

MAX_OBSERVATIONS = 150
"""Largest number of scores that the process is given; time grows with its third power."""

MAX_FITTED = 80
"""Largest number of these scores, drawn at random, that its hyperparameters are fitted to."""

FIRST_PER_FIELD = 2
"""Trials with a score, for each field, before the process is used."""

EXPLORATION_INTERVAL = 4
"""One trial in so many is a point of the Sobol sequence. At the first rung it costs little, and the
optimum may be far from the best of the first trials."""


def gp(view: SearchView) -> Proposal:
    """The point of the greatest expected improvement at the full budget.

    Scores of all rungs are used: what a configuration does early says something of what it
    does late, and the process learns how much. Trials that run are taken to come out as
    expected, so that concurrent trials spread out. The first points are those of a Sobol
    sequence, and so is every fourth after that.
    """
    needed = FIRST_PER_FIELD * len(view.space.domains)
    if len(ranks_by_rung(view)) < needed or view.number % EXPLORATION_INTERVAL == 0:
        return qmc(view)
    points, budgets, values, pending = observations(view)
    drawn = view.rng().permutation(len(values))[:MAX_FITTED]
    process = GaussianProcess.fit(
        points[drawn], budgets[drawn], values[drawn], view.encoding.fields
    )
    process = process.with_values(points, budgets, values)
    if len(pending):
        full = np.ones(len(pending))
        expected, _ = process.predict(pending, full)
        process = process.with_values(
            np.vstack([points, pending]),
            np.concatenate([budgets, full]),
            np.concatenate([values, expected]),
        )
    known, _ = process.predict(process.points, np.ones(len(process.points)))
    return Proposal(_maximise(view, process, float(known.max()), known))


def observations(
    view: SearchView,
) -> tuple[
    Float[ndarray, "n d"], Float[ndarray, " n"], Float[ndarray, " n"], Float[ndarray, "m d"]
]:
    """Configurations, budgets and standardised scores; configurations of running trials."""
    ranks = ranks_by_rung(view)
    numbers = sorted(ranks, key=lambda number: -ranks[number])
    rows: list[tuple[int, float, float]] = []
    broken: list[int] = []
    chosen = _subsample(numbers, view)
    for number in chosen:
        entry = view.record.entries[number]
        curve = [
            (rung, view.sign * score)
            for rung in view.rungs
            if math.isfinite(score := entry.score_at(rung, view.record.mode))
        ]
        if entry.state in BAD_CONFIGS:
            broken.append(number)
        else:
            rows += [(number, _budget(rung, view), score) for rung, score in curve]
    encoded = {n: view.encoding.encode(view.record.entries[n].values) for n in chosen}
    if rows:
        broken = clustered_failures(broken, encoded)
    scores: Float[ndarray, " n"] = np.array([row[2] for row in rows])
    if len(scores):
        low, middle = np.percentile(scores, (25, 75))
        floor = low - 1.5 * (middle - low)
        scores = np.maximum(scores, floor)
        scores = (scores - scores.mean()) / max(float(scores.std()), 1e-9)
    worst = float(scores.min()) if len(scores) else -1.0
    rows += [(number, 1.0, 0.0) for number in broken]
    points = np.stack([encoded[row[0]] for row in rows])
    pending = [view.encoding.encode(entry.values) for entry in view.record.with_state(*IN_PROGRESS)]
    return (
        points,
        np.array([row[1] for row in rows]),
        np.concatenate([scores, np.full(len(broken), worst)]),
        np.stack(pending) if pending else np.empty((0, view.encoding.size)),
    )


def clustered_failures(
    broken: Sequence[int], encoded: dict[int, Float[ndarray, " d"]]
) -> list[int]:
    """Failed trials whose nearest neighbours failed too; single failures are ignored.

    Otherwise a single failure near the optimum would exclude that region for good.
    """
    numbers = list(encoded)
    vectors = np.stack(list(encoded.values()))
    clustered = []
    for number in broken:
        distances = ((vectors - encoded[number]) ** 2).sum(axis=1)
        nearest = [numbers[index] for index in np.argsort(distances, kind="stable")[:4]]
        if sum(other in broken for other in nearest if other != number) >= 2:
            clustered.append(number)
    return clustered


def _subsample(numbers: Sequence[int], view: SearchView) -> list[int]:
    """Trials with at most `MAX_OBSERVATIONS` scores: the best ones, and some of the others."""
    counts = [max(1, view.reached(view.record.entries[number])) for number in numbers]
    if sum(counts) <= MAX_OBSERVATIONS:
        return list(numbers)
    chosen, size = [], 0
    for number, count in zip(numbers, counts, strict=True):
        if size + count > MAX_OBSERVATIONS * 2 // 3:
            break
        chosen.append(number)
        size += count
    others = numbers[len(chosen) :]
    step = max(1, math.ceil(len(others) / (MAX_OBSERVATIONS // 3)))
    return [*chosen, *others[::step]]


def _budget(epochs: int, view: SearchView) -> float:
    """A budget from 0 (the first epoch) to 1 (all of them), on a logarithmic scale."""
    full = view.rungs[-1]
    return math.log(epochs) / math.log(full) if full > 1 else 1.0


def _maximise(
    view: SearchView, process: GaussianProcess, best: float, known: Float[ndarray, " n"]
) -> dict[str, Any]:
    """The point of the greatest expected improvement: draws everywhere, then near the best."""
    rng = view.rng()
    encoding = view.encoding
    incumbents = [process.points[index] for index in np.argsort(-known)[:5]]
    drawn = encoding.snapped(rng.uniform(size=(400, encoding.size)))
    near = [
        encoding.neighbours(point, spread, 30, rng)
        for point in incumbents
        for spread in (0.03, 0.1)
    ]
    candidates = np.vstack([drawn, *near])
    for spread in (0.1, 0.03, 0.01):
        gains = _expected_improvement(process, candidates, best)
        top = candidates[np.argsort(-gains)[:5]]
        candidates = np.vstack(
            [top, *[encoding.neighbours(point, spread, 40, rng) for point in top]]
        )
    gains = _expected_improvement(process, candidates, best)
    return encoding.decode(candidates[int(np.argmax(gains))])


def _expected_improvement(
    process: GaussianProcess, points: Float[ndarray, "m d"], best: float
) -> Float[ndarray, " m"]:
    """Logarithm of the expected improvement over `best` at the full budget."""
    mean, deviation = process.predict(points, np.ones(len(points)))
    z = (mean - best) / deviation
    # log(phi(z) + z Phi(z)) stays exact far below the best (Ament et al., 2023)
    log_h = np.where(
        z > -5,
        np.log(np.maximum(norm.pdf(z) + z * norm.cdf(z), 1e-300)),
        norm.logpdf(z) - 2 * np.log(np.maximum(-z, 1e-9)),
    )
    gain: Float[ndarray, " m"] = log_h + np.log(deviation)
    return gain
