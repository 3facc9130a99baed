"""Names of searchers and policies in a search space.

As in `training.registry`, a name is a key of a registry, or the import path of a user's own. A
searcher is called with a `SearchView` and returns a `Proposal`, or None for no more. A policy is
called with keyword arguments: `record` and `spec` where it has parameters of these names, and the
other settings of the section `policy`; it returns a `Policy`.
"""

from __future__ import annotations

from typing import Any

from training.registry import FIELDS, Registry, import_path

__all__ = ["POLICIES", "SEARCHERS", "name_of"]

SEARCHERS = Registry(
    "searcher",
    {
        "gp": "tuner.search.searchers.gp:gp",
        "tpe": "tuner.search.searchers.optuna_searchers:tpe",
        "priorband": "tuner.search.searchers.priorband:priorband",
        "cmaes": "tuner.search.searchers.cmaes:cmaes",
        "nsga2": "tuner.search.searchers.optuna_searchers:nsga2",
        "random": "tuner.search.searchers.optuna_searchers:random",
        "qmc": "tuner.search.searchers.optuna_searchers:qmc",
        "grid": "tuner.search.searchers.grid:grid",
    },
)
"""What proposes trials, see `tuner.search.searchers`."""

POLICIES = Registry(
    "policy",
    {
        "asha": "tuner.search.policies:asha",
        "pasha": "tuner.search.policies:pasha",
        "hyperband": "tuner.search.policies:hyperband",
        "median": "tuner.search.policies:median",
        "pbt": "tuner.search.policies:pbt",
        "pb2": "tuner.search.policies:pb2",
        "none": "tuner.search.policies:none",
    },
)
"""What stops, pauses or changes trials, see `tuner.search.policies`; the settings of each are in
`tuner.spec.policies`."""


def name_of(function: Any) -> str:
    """The name of a function or class given in Python: its key if it is ours, or its path.

    Raises:
        PluginError: if no other process could import it.
    """
    path = import_path(function)
    kinds = (*FIELDS.values(), SEARCHERS, POLICIES)
    return next((name for kind in kinds for name, own in kind.items() if own == path), path)
