"""Reads the headers of a whole dataset, before any voxel is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.raw.formats.geometry import spacing_text
from training.data.raw.header import (
    SPACING_RATIO,
    check_same_grid,
    is_far_off,
    open_volume,
    orientation_of,
    spacing_of,
    unreadable,
)
from training.data.raw.layouts import RawDataset
from training.errors import DatasetError

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class HeaderSurvey:
    """Summary of the headers of a dataset.

    Attributes:
        problems: What is wrong with a case, by case.
        warnings: What is doubtful, by file.
        spacings: Spacing in mm (depth, height, width) of each sound case.
        shapes: Grid of each sound case, in the same order of axes.
    """

    problems: dict[str, str]
    warnings: list[str]
    spacings: dict[str, Spacing]
    shapes: dict[str, tuple[int, int, int]]


def survey_headers(dataset: RawDataset) -> HeaderSurvey:
    """Read the header of every file of a dataset.

    The channels and the label map of a case must lie on one grid, and no axis of it may have a
    spacing far from the median of all.
    """
    survey = HeaderSurvey({}, [], {}, {})
    for case in dataset.cases:
        try:
            headers = [(path, open_volume(path)[1]) for path in case.images]
            _, label = open_volume(
                case.label,
                as_label=True,
                image=case.images[0],
                names=dataset.labels,
                values=dataset.label_values,
            )
            headers.append((case.label, label))
            first_path, first = headers[0]
            channels = sum(header.channels for _, header in headers[:-1])
            present = dataset.channels_of(case)
            if channels != len(present):
                names = ", ".join(dataset.channels[number] for number in present)
                raise DatasetError(
                    f"{first_path}: {channels} channels, but dataset.json declares {len(present)} "
                    f"({names})"
                )
            for path, header in headers[1:]:
                check_same_grid(path, header, first_path, first)
        except DatasetError as error:
            survey.problems[case.case_id] = str(error)
        except Exception as error:
            # nibabel raises many kinds of errors for damaged headers; the other cases go on
            survey.problems[case.case_id] = str(unreadable(case.images[0], error))
        else:
            orientation = orientation_of(first.affine)
            survey.warnings.extend(line for _, header in headers for line in header.warnings)
            survey.spacings[case.case_id] = spacing_of(first.affine, orientation)
            depth, height, width = (first.shape[int(i)] for i in np.argsort(orientation[:, 0]))
            survey.shapes[case.case_id] = (depth, height, width)
    survey.problems.update(_unlike_the_others(dataset, survey))
    return survey


def median_spacing(spacings: Sequence[Spacing]) -> Spacing:
    """Median on each axis, of the logarithms: half as much is as far off as twice as much."""
    depth, height, width = np.exp(np.median(np.log(spacings), axis=0)).tolist()
    return depth, height, width


def _unlike_the_others(dataset: RawDataset, survey: HeaderSurvey) -> dict[str, str]:
    """Cases whose spacing is far from the median."""
    spacings = survey.spacings
    if not spacings:
        return {}
    median = median_spacing(list(spacings.values()))
    paths = {case.case_id: case.images[0] for case in dataset.cases}
    problems = {}
    for case_id, spacing in spacings.items():
        if is_far_off(spacing, median, survey.shapes[case_id]):
            problems[case_id] = (
                f"{paths[case_id]}: a spacing of {spacing_text(spacing)} mm (superior, anterior, "
                f"right) is {SPACING_RATIO:g} times off the median of the data or more, "
                f"{spacing_text(median)} mm: correct the header, or leave out the case"
            )
    return problems
