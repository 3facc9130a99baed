"""Searchers: what proposes the next configuration. Their names are in `tuner.spec.registry`."""

from __future__ import annotations

from tuner.search.searchers.view import Proposal, Propose, SearchView
from tuner.spec.registry import SEARCHERS

__all__ = ["SEARCHERS", "Proposal", "Propose", "SearchView"]
