"""Exact Euclidean distances between sets of grid points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree


def nearest_distances(
    points: NDArray[np.int64], others: NDArray[np.int64], spacing: Sequence[float]
) -> NDArray[np.float64]:
    """Distance of each point to the nearest of the others.

    A k-d tree of the surface's points answers faster than a distance transform of the volume
    around them, the more so the larger the volume.

    Args:
        points: Grid points `(n, d)`.
        others: Grid points `(m, d)`, at least one.
        spacing: Size of a grid step along each axis.

    Returns:
        `(n,)`, in the unit of `spacing`.
    """
    sizes = np.asarray(spacing, dtype=np.float64)
    # split at the middle, not the median, with larger leaves: a third faster on surfaces
    tree = KDTree(others * sizes, leafsize=32, balanced_tree=False)
    _, nearest = tree.query(points * sizes)
    # from whole steps, so that equal distances are equal numbers wherever they lie
    steps = (points - others[nearest]).T * sizes[:, None]
    return np.asarray(np.sqrt((steps**2).sum(axis=0)))
