"""Compares the cases of a dataset with each other: outliers, duplicates, classes that are rare."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from training.data.raw.formats.geometry import spacing_text
from training.data.raw.header import SPACING_RATIO, is_far_off
from training.data.raw.header_survey import median_spacing
from training.data.raw.layouts import RawDataset
from training.data.statistics.findings import Finding
from training.data.statistics.measures import CaseMeasures

UNUSUAL_SPACING = 3.0
"""Factor from the median from which a spacing is named."""

FEW_CASES = 6
"""Cases below which none is an outlier of the others."""

USUAL_AXES = 0.8
"""Share of the cases with one order of axes from which the others are named."""

MOST_OBLIQUE = 20.0
"""Degrees from which a volume is named oblique: tilted slices of the head have less."""

FEW_VOXELS = 8
"""Voxels along an axis below which a volume is small; 1 is a picture."""

FEW_VOLUMES = 10
"""Cases of a class below which no volume of it is unusual: lesions differ very much."""

UNUSUAL_VOLUME = 5.0
"""Robust standard deviations, and factor, from which the volume of a structure is named."""

OFF_CENTRE = 0.15
"""Share of the grid by which a structure lies beside the middle where its side can be told."""

PARTS = 3
"""Training, validation and test."""

_SIDES = (("inferior", "superior"), ("posterior", "anterior"), ("left", "right"))


def compare_cases(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> list[Finding]:
    """Faults that only show beside other cases.

    Args:
        dataset: The data.
        cases: Measures of all cases whose headers can be used.
    """
    checks: tuple[Callable[[RawDataset, Sequence[CaseMeasures]], Iterator[Finding]], ...] = (
        _spacings,
        _axes,
        _sizes,
        _classes,
        _volumes,
        _mirrored,
        _duplicates,
        _patients,
    )
    return [finding for check in checks for finding in check(dataset, cases)]


def _spacings(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[Finding]:
    """Spacings off the median."""
    if not cases:
        return
    images = {case.case_id: case.images[0] for case in dataset.cases}
    median = median_spacing([case.grid.spacing for case in cases])
    for case in cases:
        ratios = np.array(case.grid.spacing) / median
        off = float(max(ratios.max(), 1 / ratios.min()))
        wrong = is_far_off(case.grid.spacing, median)
        if not wrong and (off < UNUSUAL_SPACING or len(cases) < FEW_CASES):
            continue
        limit = f"{SPACING_RATIO:g} times off or more" if wrong else f"{off:.1f} times off"
        yield Finding(
            "spacing" if wrong else "unusual spacing",
            f"{images[case.case_id]}: {spacing_text(case.grid.spacing)} mm (superior, anterior, "
            f"right), {limit} the median of the data, {spacing_text(median)} mm",
            case.case_id,
        )


def _axes(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[Finding]:
    """Orders of axes that few cases have."""
    images = {case.case_id: case.images[0] for case in dataset.cases}
    for case in cases:
        if case.grid.oblique > MOST_OBLIQUE:
            yield Finding(
                "oblique",
                f"{images[case.case_id]}: its axes are {case.grid.oblique:.0f} degrees off those "
                "of the scanner",
                case.case_id,
            )
    counts = Counter(case.grid.axes for case in cases)
    if len(cases) < FEW_CASES or len(counts) < 2:
        return
    usual, number = counts.most_common(1)[0]
    if number < USUAL_AXES * len(cases):
        return
    for case in cases:
        if case.grid.axes != usual:
            yield Finding(
                "orientation",
                f"{images[case.case_id]}: {case.grid.axes}, while {number} of {len(cases)} are "
                f"{usual}",
                case.case_id,
            )


def _sizes(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[Finding]:
    """Volumes of very few voxels."""
    images = {case.case_id: case.images[0] for case in dataset.cases}
    pictures = all(min(case.grid.shape) == 1 for case in cases)
    for case in cases:
        sizes = [size for size in case.grid.shape if size > 1 or not pictures]
        if min(sizes, default=1) < FEW_VOXELS:
            shape = " x ".join(map(str, case.grid.shape))
            yield Finding("small", f"{images[case.case_id]}: {shape} voxels", case.case_id)


def _classes(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[Finding]:
    """Classes that no case has, or too few."""
    labelled = [case for case in cases if case.classes]
    if not labelled:
        return
    if not any(case.foreground for case in labelled):
        yield Finding(
            "nothing to learn",
            f"{dataset.folder}: all voxels of {len(labelled)} label maps are {dataset.labels[0]}",
        )
        return
    for number, name in enumerate(dataset.labels[1:], start=1):
        value = dataset.label_values[number]
        having = [case.case_id for case in labelled if case.classes[number].voxels]
        if not having:
            yield Finding(
                "absent class", f"{name} ({value}): in none of {len(labelled)} label maps"
            )
        elif len(having) < PARTS <= len(labelled):
            yield Finding("rare class", f"{name} ({value}): in {', '.join(having)} alone")


def _volumes(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[Finding]:
    """Structures of an unusual size."""
    labels = {case.case_id: case.label for case in dataset.cases}
    for value, name in enumerate(dataset.labels[1:], start=1):
        having = [case for case in cases if case.classes and case.classes[value].voxels]
        if len(having) < FEW_VOLUMES:
            continue
        volumes = np.array([case.classes[value].volume for case in having])
        median = float(np.median(volumes))
        deviations = robust_deviations(np.log(volumes))
        for case, volume, deviation in zip(having, volumes, deviations, strict=True):
            ratio = max(volume / median, median / volume)
            if abs(deviation) > UNUSUAL_VOLUME and ratio > UNUSUAL_VOLUME:
                yield Finding(
                    "unusual volume",
                    f"{labels[case.case_id]}: {volume:.3g} ml of {name}, the median is "
                    f"{median:.3g} ml",
                    case.case_id,
                )


def _mirrored(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[Finding]:
    """Structures on the other side than in the other cases."""
    images = {case.case_id: case.images[0] for case in dataset.cases}
    seen = set()
    for value, name in enumerate(dataset.labels[1:], start=1):
        placed = [
            (case, case.classes[value].centre)
            for case in cases
            if case.classes and case.classes[value].centre is not None
        ]
        if len(placed) < FEW_CASES:
            continue
        centres = np.array([centre for _, centre in placed])
        middle = np.median(centres, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(centres - middle), axis=0), 0.02)
        for (case, _), centre in zip(placed, centres, strict=True):
            off = np.abs(centre - middle) > 5 * spread
            fits = np.abs(1 - centre - middle) < 3 * spread
            for axis in np.flatnonzero(off & fits & (np.abs(middle - 0.5) > OFF_CENTRE)):
                if (case.case_id, axis) in seen:
                    continue
                seen.add((case.case_id, axis))
                low, high = _SIDES[axis]
                here, others = (high, low) if centre[axis] > 0.5 else (low, high)
                yield Finding(
                    "mirrored",
                    f"{images[case.case_id]}: {name} lies {here} of the middle, in the other "
                    f"cases {others}",
                    case.case_id,
                )


def _duplicates(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[Finding]:
    """One image in several cases."""
    images = {case.case_id: case.images[0] for case in dataset.cases}
    constant = {
        case.case_id
        for case in cases
        if all(channel.low == channel.high for channel in case.channels)
    }
    groups: dict[str, list[CaseMeasures]] = defaultdict(list)
    for case in cases:
        if case.values and case.case_id not in constant:
            groups[case.values].append(case)
    for group in groups.values():
        first, *others = group
        for case in others:
            same = case.content == first.content
            how = (
                "the image of"
                if same
                else "the voxels, in another order (mirrored, or turned), of the image of"
            )
            yield Finding(
                "duplicate", f"{images[case.case_id]}: {how} {first.case_id}", case.case_id
            )


_SCAN_OF_PATIENT = re.compile(r"(?P<patient>.*\d.*?)[_-](?:[A-Za-z]+-?)?\d+")
"""Names such as `patient07_scan2` and `sub-07_ses-2`; what is before the last part has a number."""


def _patients(dataset: RawDataset, cases: Sequence[CaseMeasures]) -> Iterator[Finding]:
    """Cases that may be of one patient, by their names."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in dataset.cases:
        named = _SCAN_OF_PATIENT.fullmatch(case.case_id)
        groups[named["patient"] if named else case.case_id].append(case.case_id)
    several = {patient: scans for patient, scans in groups.items() if len(scans) > 1}
    # one number before all names is that of the dataset
    if several and len(groups) > PARTS:
        patient, scans = next(iter(several.items()))
        yield Finding(
            "one patient",
            f"by their names, {sum(map(len, several.values()))} cases are scans of {len(several)} "
            f"patients, such as {patient}: {', '.join(scans[:4])}",
        )


def robust_deviations(values: NDArray[np.float64], least: float = 1e-9) -> NDArray[np.float64]:
    """Distances from the median in standard deviations, by the median absolute deviation.

    Args:
        values: What is compared.
        least: The standard deviation at least.
    """
    middle = np.median(values)
    spread = 1.4826 * float(np.median(np.abs(values - middle)))
    return np.asarray((values - middle) / max(spread, least))
