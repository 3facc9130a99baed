"""Searchers: what proposes the next configuration."""

from __future__ import annotations

from tuner.search.searchers.cmaes import cmaes
from tuner.search.searchers.gp import gp
from tuner.search.searchers.grid import grid
from tuner.search.searchers.optuna_searchers import nsga2, qmc, random, tpe
from tuner.search.searchers.priorband import priorband
from tuner.search.searchers.view import Proposal, Propose, SearchView

__all__ = ["SEARCHERS", "Proposal", "Propose", "SearchView"]

SEARCHERS: dict[str, Propose] = {
    "gp": gp,
    "tpe": tpe,
    "priorband": priorband,
    "cmaes": cmaes,
    "nsga2": nsga2,
    "random": random,
    "qmc": qmc,
    "grid": grid,
}
"""Searchers by the name that a search space gives them."""
