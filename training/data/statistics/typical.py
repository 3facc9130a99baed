"""Ranks the cases of a dataset from typical to outlying, with what is unusual about each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.raw.layouts import RawDataset
from training.data.statistics.measures import CaseMeasures
from training.data.statistics.outliers import FEW_CASES, robust_deviations

UNUSUAL = 3.5
"""Robust standard deviations from which a measure is an outlier (Iglewicz and Hoaglin, 1993)."""

MEDIAN = 3
"""Place of the median among `PERCENTILES`."""


@dataclass(frozen=True)
class CaseRank:
    """How typical a case is.

    Attributes:
        case: The case.
        distance: Mean of its squared deviations, 1 for the usual; large deviations count as 10.
        reasons: What is unusual about it, the most unusual first.
    """

    case: CaseMeasures
    distance: float
    reasons: tuple[str, ...]


def rank_cases(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> list[CaseRank]:
    """The cases, the most typical first.

    A case is compared by its extent and spacing, the volume and the components of its structures,
    and the intensity in a CT; all but the last on a logarithmic scale.

    Args:
        dataset: The data.
        cases: Measures of its cases.
    """
    squares: list[list[float]] = [[] for _ in cases]
    reasons: list[list[tuple[float, str]]] = [[] for _ in cases]
    for feature in _features(dataset, cases):
        known = np.isfinite(feature.values)
        if known.sum() < FEW_CASES:
            continue
        median = float(np.median(feature.values[known]))
        for index, deviation in zip(np.flatnonzero(known), feature.deviations(), strict=True):
            squares[index].append(min(float(deviation) ** 2, 100.0))
            if abs(deviation) > UNUSUAL:
                value = feature.values[index]
                text = f"{feature.name} {value:.4g} {feature.unit} (median {median:.4g})"
                reasons[index].append((-abs(float(deviation)), text.replace("  ", " ")))
    ranks = [
        CaseRank(
            case,
            float(np.mean(squares[index])) if squares[index] else 0.0,
            tuple(text for _, text in sorted(reasons[index])),
        )
        for index, case in enumerate(cases)
    ]
    return sorted(ranks, key=lambda rank: (rank.distance, rank.case.case_id))


@dataclass(frozen=True)
class _Feature:
    """What is compared.

    Attributes:
        name: Its name.
        unit: Its unit.
        values: Value of each case, NaN where it has none.
        least: Standard deviation that it has at least: what hardly varies has no outliers.
        logarithmic: Whether values are compared by their logarithms.
    """

    name: str
    unit: str
    values: NDArray[np.float64]
    least: float
    logarithmic: bool = True

    def deviations(self) -> NDArray[np.float64]:
        """Robust deviations of the cases that have a value."""
        known = self.values[np.isfinite(self.values)]
        return robust_deviations(np.log(known) if self.logarithmic else known, self.least)


def _features(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[_Feature]:
    """What is compared."""
    for axis, name in enumerate(("superior", "anterior", "right")):
        extents = np.array([case.grid.extent[axis] for case in cases])
        yield _Feature(f"extent along {name}", "mm", extents, 0.05)
        spacings = np.array([case.grid.spacing[axis] for case in cases])
        yield _Feature(f"spacing along {name}", "mm", spacings, 0.05)
    for value, name in enumerate(dataset.labels[1:], start=1):
        present = [bool(case.classes and case.classes[value].voxels) for case in cases]
        for what, unit, least in (("volume", "ml", 0.05), ("components", "", 0.35)):
            values = [
                getattr(case.classes[value], what) if there else np.nan
                for case, there in zip(cases, present, strict=True)
            ]
            yield _Feature(f"{what} of {name}", unit, np.array(values, dtype=float), least)
    for index, modality in enumerate(dataset.modalities):
        if modality == "CT":
            medians = [
                case.channels[index].foreground[MEDIAN]  # type: ignore[index]
                if case.channels and case.channels[index].foreground
                else np.nan
                for case in cases
            ]
            name = f"intensity of {dataset.channels[index]}"
            yield _Feature(name, "HU", np.array(medians), 10.0, logarithmic=False)
