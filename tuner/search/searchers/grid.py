"""Every point of a grid once, in an order that the seed shuffles.

Points that the study was given to try first, such as the default, count as tried.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tuner.search.searchers.view import Proposal
from tuner.spec.grid import grid_points, point_key

if TYPE_CHECKING:
    from tuner.search.searchers.view import SearchView


def grid(view: SearchView) -> Proposal | None:
    """The next point of the grid; None after the last.

    A choice gives all its options; a number gives points at even distances on its scale, from
    bound to bound.

    Raises:
        SpecError: if the grid has more than `MAX_POINTS` points.
    """
    points = grid_points(view.space)
    tried = {
        point_key(view.space, entry.values)
        for number, entry in view.record.entries.items()
        # those below 0 are of earlier studies
        if number >= 0
    }
    for index in np.random.default_rng(view.seed).permutation(len(points)):
        if point_key(view.space, points[index]) not in tried:
            return Proposal(points[index])
    return None
