"""Covariance matrix adaptation (Hansen, 2016), replayed from the record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from cmaes import CMA

from tuner.search.searchers.ranks import ranks_by_rung
from tuner.search.searchers.view import Proposal

if TYPE_CHECKING:
    from tuner.search.searchers.view import SearchView

SPREAD = 0.25
"""Standard deviation of the first generation, as a share of a domain."""


def cmaes(view: SearchView) -> Proposal:
    """A draw from the current generation; the first generation is centred on the default.

    Fields are searched in the unit cube; a choice is one coordinate an option, and the
    greatest counts. A generation is over when as many of its trials as it takes have a result;
    those that come later are left out.
    """
    mean = np.clip(view.encoding.encode(view.default), 0.1, 0.9)
    bounds = np.tile([0.0, 1.0], (view.encoding.size, 1))
    ranks = ranks_by_rung(view)
    optimizer = CMA(mean=mean, sigma=SPREAD, bounds=bounds, seed=view.seed)
    generation = 1
    while True:
        shown = [
            entry
            for number, entry in view.record.entries.items()
            if entry.generation == generation and number in ranks
        ][: optimizer.population_size]
        if len(shown) < optimizer.population_size:
            break
        optimizer.tell(
            [(view.encoding.encode(entry.values), -ranks[entry.number]) for entry in shown]
        )
        generation += 1
    drawn = sum(entry.generation == generation for entry in view.record.entries.values())
    for _ in range(drawn):
        optimizer.ask()
    return Proposal(view.encoding.decode(optimizer.ask()), generation)
