"""Every point of a grid once, in an order that the seed shuffles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tuner.errors import SpecError
from tuner.searchers.encoding import value_at
from tuner.searchers.view import Proposal
from tuner.space import Choice, Domain, QUniform, RandInt

if TYPE_CHECKING:
    from tuner.searchers.view import SearchView
    from tuner.space import Space

MOST_POINTS = 10_000

POINTS = 5
"""Points along a continuous field, and at most along a stepped one."""


def grid(view: SearchView) -> Proposal | None:
    """The next point of the grid; None after the last.

    A choice gives all its options; a number gives points at even distances on its scale, from
    bound to bound.

    Raises:
        SpecError: if the grid has more than `MOST_POINTS` points.
    """
    points = grid_points(view.space)
    order = np.random.default_rng(view.seed).permutation(len(points))
    drawn = sum(entry.proposed_by == "grid" for entry in view.record.entries.values())
    return Proposal(points[order[drawn]]) if drawn < len(points) else None


def grid_points(space: Space) -> list[dict[str, Any]]:
    """All points of the grid of a space.

    Raises:
        SpecError: if there are more than `MOST_POINTS`.
    """
    points: list[dict[str, Any]] = [{}]
    for name, domain in space.items():
        values = _along(domain)
        points = [
            extended
            for point in points
            for extended in (
                [{**point, name: value} for value in values]
                if space.active(name, point)
                else [point]
            )
        ]
        if len(points) > MOST_POINTS:
            raise SpecError(
                f"searcher=grid would have more than {MOST_POINTS} points in this space: leave "
                "some fields out of `space`, or choose another searcher"
            )
    return points


def _along(domain: Domain) -> list[Any]:
    if isinstance(domain, Choice):
        return list(domain.values)
    if isinstance(domain, RandInt):
        number = min(POINTS, domain.high - domain.low + 1)
    elif isinstance(domain, QUniform):
        number = min(POINTS, domain.steps + 1)
    else:
        number = POINTS
    values = [value_at(domain, position) for position in np.linspace(0, 1, number)]
    return list(dict.fromkeys(values))
