"""The plan of a dataset: how its cases are preprocessed, decided from a first look at each.

As nnU-Net plans it (Isensee et al., 2021): spacing by the median, CT window and statistics by
the foreground of all cases that may be learnt from, z-score for everything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.config import ModelTrainingConfig
from training.data.errors import DatasetError
from training.data.header import check_same_grid, open_volume, spacing_text
from training.data.layouts import RawCase, RawDataset
from training.data.preprocessing import (
    SPACING_RATIO,
    ChannelNormalisation,
    Preprocessing,
    body_of,
    bounding_box,
    orientation_of,
    spacing_of,
)
from training.data.resampling import choose_spacing
from training.data.volume import read_image, read_label

FOREGROUND_SAMPLES = 10_000
"""Foreground voxels of each case that the CT statistics are computed from."""

MOSTLY_EMPTY = 0.75
"""Share of an image that the body takes below which its normalisation leaves the rest out."""


class CaseScan(BaseModel):
    """What a first look at a case brings.

    Attributes:
        spacing: Spacing in mm (depth, height, width).
        shape: Grid of the body.
        body_share: Voxels of the body's box as a share of the image.
        voxel_counts: Voxels of each class in the file.
        foreground: Intensities of random foreground voxels, for each channel; as many for
            each case, so that each counts the same.
        warnings: What is doubtful about its files.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    body_share: float
    voxel_counts: list[int]
    foreground: list[list[float]]
    warnings: list[str] = []


class DatasetPlan(BaseModel):
    """How a dataset is preprocessed, and what splits are made from.

    Attributes:
        preprocessing: Settings for every case.
        voxel_counts: Voxels of each class in the files, by case.
        warnings: What is doubtful about the data, a line each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preprocessing: Preprocessing
    voxel_counts: dict[str, list[int]]
    warnings: list[str] = []


def header_problems(dataset: RawDataset) -> dict[str, str]:
    """What headers say against the cases of a dataset, by case; no voxel is read.

    The channels and the label map of a case must lie on one grid, and no axis of it may have a
    spacing far from the median of all.
    """
    problems: dict[str, str] = {}
    spacings: dict[str, tuple[float, float, float]] = {}
    for case in dataset.cases:
        try:
            headers = [(path, open_volume(path)[1]) for path in (*case.images, case.label)]
            first_path, first = headers[0]
            channels = sum(header.channels for _, header in headers[:-1])
            if channels != len(dataset.channels):
                raise DatasetError(
                    f"{first_path}: {channels} channels, but dataset.json declares "
                    f"{len(dataset.channels)} ({', '.join(dataset.channels)})"
                )
            for path, header in headers[1:]:
                check_same_grid(path, header, first_path, first)
        except DatasetError as error:
            problems[case.case_id] = str(error)
        else:
            spacings[case.case_id] = spacing_of(first.affine, orientation_of(first.affine))
    return problems | _unlike_the_others(dataset, spacings)


def _unlike_the_others(
    dataset: RawDataset, spacings: Mapping[str, tuple[float, float, float]]
) -> dict[str, str]:
    """Cases whose spacing is far from the median."""
    if not spacings:
        return {}
    median = _median_spacing(list(spacings.values()))
    paths = {case.case_id: case.images[0] for case in dataset.cases}
    problems = {}
    for case_id, spacing in spacings.items():
        ratios = np.array(spacing) / median
        if max(ratios.max(), 1 / ratios.min()) > SPACING_RATIO:
            problems[case_id] = (
                f"{paths[case_id]}: a spacing of {spacing_text(spacing)} mm (superior, anterior, "
                f"right) is more than {SPACING_RATIO:g} times off the median of the data, "
                f"{spacing_text(median)} mm: correct the header, or leave out the case"
            )
    return problems


def _median_spacing(spacings: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Median on each axis, of the logarithms: half as much is as far as twice as much."""
    depth, height, width = np.exp(np.median(np.log(spacings), axis=0)).tolist()
    return depth, height, width


def scan_case(case: RawCase, dataset: RawDataset) -> CaseScan:
    """Check the voxels of a case, and read what the plan depends on.

    Args:
        case: The case, whose headers fit (see `header_problems`).
        dataset: The data.

    Raises:
        DatasetError: naming the file that is unreadable or does not fit.
    """
    image = read_image(case.images)
    label = read_label(case.label, len(dataset.labels))
    check_same_grid(case.label, label, case.images[0], image)
    orientation = orientation_of(image.affine)
    box = bounding_box(body_of(image.data, dataset.modalities))
    sizes = [box[int(i)][1] - box[int(i)][0] for i in np.argsort(orientation[:, 0])]
    voxels = image.data[:, label.data > 0]
    if voxels.size:
        rng = np.random.default_rng(0)
        voxels = voxels[:, rng.integers(voxels.shape[1], size=FOREGROUND_SAMPLES)]
    counts = np.bincount(label.data.ravel(), minlength=len(dataset.labels))
    return CaseScan(
        spacing=spacing_of(image.affine, orientation),
        shape=(sizes[0], sizes[1], sizes[2]),
        body_share=float(np.prod(sizes) / label.data.size),
        voxel_counts=counts.tolist(),
        # only CT has statistics over cases
        foreground=[
            channel.tolist() if modality == "CT" else []
            for modality, channel in zip(dataset.modalities, voxels, strict=True)
        ],
        warnings=[*image.warnings, *label.warnings],
    )


def plan_dataset(
    dataset: RawDataset,
    scans: Mapping[str, CaseScan],
    config: ModelTrainingConfig,
    test_cases: Sequence[str],
) -> DatasetPlan:
    """Plan the preprocessing of a dataset.

    Args:
        dataset: The data.
        scans: Every case.
        config: A spacing or window that it gives is taken.
        test_cases: Cases that are kept apart: nothing is learnt from them. The split of the
            others changes nothing, so that all folds share one preprocessing.

    Raises:
        DatasetError: if no label of the cases that may be learnt from has a foreground.
    """
    known = [scan for case, scan in scans.items() if case not in set(test_cases)]
    if not any(sum(scan.voxel_counts[1:]) for scan in known):
        raise DatasetError(
            f"the training labels in {dataset.folder} have no foreground voxel: there is nothing "
            "to learn, and no CT window can be chosen"
        )
    body_only = float(np.median([scan.body_share for scan in known])) < MOSTLY_EMPTY
    channels = []
    for index, modality in enumerate(dataset.modalities):
        if modality == "MR":
            channels.append(ChannelNormalisation(modality="MR", body_only=body_only))
            continue
        foreground = np.concatenate([scan.foreground[index] for scan in known])
        channels.append(_ct_normalisation(foreground, config.intensity_window))
    spacing = config.target_spacing or choose_spacing(
        [scan.spacing for scan in known], [scan.shape for scan in known]
    )
    return DatasetPlan(
        preprocessing=Preprocessing(
            spacing=spacing,
            channels=channels,
            num_classes=len(dataset.labels),
            data_spacing=_median_spacing([scan.spacing for scan in known]),
        ),
        voxel_counts={case: scan.voxel_counts for case, scan in scans.items()},
        warnings=[
            *(warning for scan in scans.values() for warning in scan.warnings),
            *_without_effect(dataset, config),
        ],
    )


def _without_effect(dataset: RawDataset, config: ModelTrainingConfig) -> list[str]:
    """Settings that these data have no use for."""
    if config.intensity_window is None or "CT" in dataset.modalities:
        return []
    return [
        f"intensity_window={list(config.intensity_window)} has no effect: no channel is CT "
        f"({', '.join(dataset.channels)})"
    ]


def _ct_normalisation(
    foreground: NDArray[np.float64], window: tuple[float, float] | None
) -> ChannelNormalisation:
    """The window given, or percentiles 0.5 and 99.5 of the foreground, and its statistics."""
    if window is None:
        low, high = (float(bound) for bound in np.percentile(foreground, (0.5, 99.5)))
    else:
        low, high = window
        # what a narrow window cuts off would make the rest look alike
        foreground = np.clip(foreground, low, high)
    return ChannelNormalisation(
        modality="CT",
        low=low,
        high=high,
        mean=float(foreground.mean()),
        std=float(foreground.std()) or 1.0,
    )
