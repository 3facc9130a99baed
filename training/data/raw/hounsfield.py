"""Whether intensities are Hounsfield units, judged by what is in every CT and in no MR image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LOWEST_OF_CT = -3100.0
"""What scanners write outside the reconstructed circle at least."""

AIR = (-1100.0, -900.0)
"""Between which the fifth percentile of a CT lies, that of the air around the patient."""

BONE = 300.0
"""What the brightest voxel of a CT is above."""

SAMPLED = 1_000_000
"""Voxels that are looked at, about, where there are more."""


def are_hounsfield(low: float, high: float, fifth_percentile: float, *, whole: bool) -> bool:
    """Whether intensities must be Hounsfield units, by the air around the patient, and by bone.

    Args:
        low: The lowest.
        high: The highest.
        fifth_percentile: The fifth percentile.
        whole: Whether all are whole numbers.
    """
    return whole and low >= LOWEST_OF_CT and AIR[0] <= fifth_percentile <= AIR[1] and high > BONE


def looks_like_ct(voxels: NDArray[np.float32]) -> bool:
    """Whether a channel `(i, j, k)` must be a CT."""
    some = voxels.ravel()[:: max(1, voxels.size // SAMPLED)]
    fifth = float(np.percentile(some, 5))
    whole = bool((some == np.rint(some)).all())
    return are_hounsfield(float(voxels.min()), float(voxels.max()), fifth, whole=whole)


def range_text(voxels: NDArray[np.float32]) -> str:
    """The intensities of a channel in words."""
    return f"{float(voxels.min()):g} to {float(voxels.max()):g}"


def outer_minima(minima: Sequence[float | None]) -> tuple[float, float] | None:
    """The least and the greatest of the cases' lowest intensities; None where none is known."""
    known = [value for value in minima if value is not None]
    return (min(known), max(known)) if known else None
