"""Searchers: what proposes the next configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tuner.searchers.cmaes import cmaes
from tuner.searchers.gp import gp
from tuner.searchers.grid import first_points, grid, grid_points, planned_trials
from tuner.searchers.optuna_searchers import nsga2, qmc, random, tpe
from tuner.searchers.priorband import priorband
from tuner.searchers.record_searcher import (
    GPU_SECONDS,
    INHERITS,
    TRIAL_NUMBER,
    UNDEFINED,
    Promotes,
    Propose,
    RecordSearcher,
    report_result,
)
from tuner.searchers.view import Proposal, SearchView
from tuner.warm_start import read_imported

if TYPE_CHECKING:
    from tuner.record import StudyRecord
    from tuner.spec import StudySpec

__all__ = [
    "GPU_SECONDS",
    "INHERITS",
    "SEARCHERS",
    "TRIAL_NUMBER",
    "UNDEFINED",
    "Proposal",
    "Propose",
    "RecordSearcher",
    "SearchView",
    "build_searcher",
    "planned_trials",
    "report_result",
]

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


def build_searcher(record: StudyRecord, spec: StudySpec, policy: Promotes) -> RecordSearcher:
    """The searcher that the spec asks for.

    Args:
        record: The study's record.
        spec: Its spec.
        policy: What promotes paused trials.

    Raises:
        SpecError: if the searcher cannot search the space.
    """
    if spec.search.searcher == "grid":
        grid_points(spec.space)
    imported = read_imported(record.folder, spec.space) if spec.search.warm_start else {}
    return RecordSearcher(
        record, spec, SEARCHERS[spec.search.searcher], policy, first_points(spec), imported
    )
