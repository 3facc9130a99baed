"""Draws around a known good recipe and the best trials so far (Mallik et al., 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tuner.search.searchers.ranks import ranks_by_rung
from tuner.search.searchers.view import Proposal

if TYPE_CHECKING:
    from tuner.search.searchers.view import SearchView

FACTOR = 3
"""Eta: each rung that trials have reached makes the prior this many times as likely."""

PRIOR_SPREAD = 0.25
INCUMBENT_SPREAD = 0.25
"""Standard deviations of a draw, as a share of a domain."""


def priorband(view: SearchView) -> Proposal:
    """A point drawn at random, from the prior, or near the best trial.

    The prior is normal around the default. At the lowest rung a uniform draw is as likely as
    one from the prior; each rung that trials have reached makes the prior `FACTOR` times as
    likely. As soon as a trial has reached the full budget the prior shares its part with draws
    near the best trial, by how likely the best trials are under each of the two.
    """
    rng = view.rng()
    ranks = ranks_by_rung(view)
    entries = view.record.entries
    highest = max((view.reached(entries[number]) for number in ranks), default=0)
    uniform = 1.0 / (1.0 + FACTOR ** max(0, highest - 1))
    if rng.uniform() < uniform:
        return Proposal(view.encoding.decode(rng.uniform(size=view.encoding.size)))
    prior = view.encoding.encode(view.default)
    full = [number for number in ranks if view.reached(entries[number]) == len(view.rungs)]
    if full:
        ranked = sorted(ranks, key=lambda number: -ranks[number])
        best = view.encoding.encode(entries[ranked[0]].values)
        top = np.stack([view.encoding.encode(entries[n].values) for n in ranked[: FACTOR * 2]])
        weights = np.arange(len(top), 0, -1, dtype=float)
        by_prior = float(weights @ _density(top, prior, PRIOR_SPREAD))
        by_best = float(weights @ _density(top, best, INCUMBENT_SPREAD))
        if rng.uniform() * (by_prior + by_best) < by_best:
            # half of the fields move, as the paper has it
            return Proposal(_near(view, best, INCUMBENT_SPREAD, 0.5, rng))
    return Proposal(_near(view, prior, PRIOR_SPREAD, 1.0, rng))


def _near(
    view: SearchView, centre: np.ndarray, spread: float, share: float, rng: np.random.Generator
) -> dict[str, object]:
    """A normal draw around a point, in a share of the fields."""
    encoding = view.encoding
    moves = rng.uniform(size=int(encoding.fields.max()) + 1) < share
    drawn = encoding.neighbours(centre, spread, 1, rng)[0]
    return encoding.decode(np.where(moves[encoding.fields], drawn, centre))


def _density(points: np.ndarray, centre: np.ndarray, spread: float) -> np.ndarray:
    """Density of a normal at points, but for a factor."""
    density: np.ndarray = np.exp(-0.5 * ((points - centre) ** 2).mean(axis=1) / spread**2)
    return density
