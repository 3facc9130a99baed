"""Chooses the postprocessing of predicted regions by validation cases.

As `training.bundle.postprocessing` does it for classes: the largest component of the whole
foreground is kept, then that of each region, from the first on, if the mean Dice of the regions
improves and no region gets worse. Regions lie in each other, so each step is tried on label maps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.bundle.postprocessing import (
    MIN_GAIN,
    Case,
    KeepLargestForeground,
    KeepLargestOfRegion,
    Postprocessing,
)
from training.config.regions import Regions
from training.ignored_voxels import IGNORE_INDEX
from training.region_maps import region_mask


def choose_for_regions(cases: Sequence[Case], regions: Regions) -> Postprocessing:
    """The postprocessing that improves the mean Dice of the regions of cases.

    Args:
        cases: Predicted and true label maps of classes; not those that were trained on.
        regions: The regions.

    Raises:
        ValueError: if a prediction differs in shape from its reference.
    """
    for prediction, reference, _ in cases:
        if prediction.shape != reference.shape:
            raise ValueError(
                f"a prediction of shape {prediction.shape} has a reference of {reference.shape}"
            )
    chosen = Postprocessing()
    scores = _scores(cases, regions, chosen)
    for step in (KeepLargestForeground(), *_steps(regions)):
        tried = Postprocessing(steps=(*chosen.steps, step))
        found = _scores(cases, regions, tried)
        differences = found - scores
        differences = differences[~np.isnan(differences)]
        if len(differences) and differences.mean() > MIN_GAIN and differences.min() >= 0:
            chosen, scores = tried, found
    return chosen


def _steps(regions: Regions) -> list[KeepLargestOfRegion]:
    steps = []
    for number, name in enumerate(regions.names):
        without = regions.without(number)
        becomes = {value: without[value] for value in regions.classes[number]}
        steps.append(KeepLargestOfRegion(name=name, becomes=becomes))
    return steps


def _scores(
    cases: Sequence[Case], regions: Regions, postprocessing: Postprocessing
) -> NDArray[np.float64]:
    """Mean Dice of each region over the cases in which it is defined, after postprocessing."""
    by_case = []
    for prediction, reference, spacing in cases:
        cleaned = postprocessing.apply(prediction, spacing)
        row = []
        known = reference != IGNORE_INDEX
        for region in range(len(regions)):
            one = region_mask(cleaned, regions, region) & known
            other = region_mask(reference, regions, region)
            both = int(np.count_nonzero(one)) + int(np.count_nonzero(other))
            row.append(2 * int(np.count_nonzero(one & other)) / both if both else np.nan)
        by_case.append(row)
    table = np.array(by_case)
    defined = ~np.isnan(table)
    counts = defined.sum(axis=0)
    sums = np.where(defined, table, 0).sum(axis=0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
