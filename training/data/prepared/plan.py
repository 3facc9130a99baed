"""The plan of a dataset: how its cases are preprocessed, decided from a first look at each.

As nnU-Net plans it (Isensee et al., 2021): spacing by the median, CT window and statistics by
the foreground of all cases that may be learnt from; the scheme of each channel by its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from training.config import ModelTrainingConfig, NormalisationScheme
from training.data.prepared.label_arrays import voxel_counts
from training.data.prepared.normalisation import (
    ChannelNormalisation,
    doubtful_schemes,
    schemes_of,
)
from training.data.prepared.preprocessing import Preprocessing, body_of, bounding_box
from training.data.prepared.resampling import choose_spacing
from training.data.raw.case_label import read_case_label
from training.data.raw.dataset_channels import without_any
from training.data.raw.formats.file_format import FORMATS, known_format
from training.data.raw.header import check_same_grid, orientation_of, spacing_of
from training.data.raw.header_survey import median_spacing
from training.data.raw.hounsfield import outer_minima
from training.data.raw.label_values import gapped
from training.data.raw.labelled_classes import contradiction
from training.data.raw.layouts import Modality, RawCase, RawDataset
from training.data.raw.volume import read_image
from training.errors import DatasetError
from training.ignored_voxels import is_ignored

FOREGROUND_SAMPLES = 10_000
"""Foreground voxels of each case that the CT statistics are computed from."""

MOSTLY_EMPTY = 0.75
"""Share of an image that the body takes below which its normalisation leaves the rest out."""


class CaseScan(BaseModel):
    """Result of the first scan of a case.

    Attributes:
        spacing: Spacing in mm (depth, height, width).
        shape: Grid of the body.
        body_share: Voxels of the body's box as a share of the image.
        voxel_counts: Voxels of each class in the file.
        foreground: Intensities of random foreground voxels, for each channel that needs them and
            that the case has; as many for each case, so that each counts the same.
        warnings: What is doubtful about its files.
        minima: Lowest intensity of each channel, None for one that the case lacks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    body_share: float
    voxel_counts: list[int]
    foreground: list[list[float]]
    warnings: list[str] = []
    minima: list[float | None] = []


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


def scan_case(
    case: RawCase, dataset: RawDataset, schemes: Sequence[NormalisationScheme]
) -> CaseScan:
    """Check the voxels of a case, and read what the plan depends on.

    Args:
        case: The case, whose headers fit (see `survey_headers`).
        dataset: The data.
        schemes: Normalisation of each channel.

    Raises:
        DatasetError: naming the file that is unreadable or does not fit.
    """
    image = read_image(case.images)
    label = read_case_label(case, dataset)
    check_same_grid(case.label, label, case.images[0], image)
    orientation = orientation_of(image.affine)
    present = dataset.channels_of(case)
    if len(image.data) != len(present):
        raise DatasetError(f"{case.images[0]}: {len(image.data)} channels, not {len(present)}")
    box = bounding_box(body_of(image.data, [dataset.modalities[number] for number in present]))
    sizes = [box[int(i)][1] - box[int(i)][0] for i in np.argsort(orientation[:, 0])]
    # of 160 million voxels only those drawn are looked up
    places = foreground_voxels(label.data, len(dataset.labels))
    if len(places):
        rng = np.random.default_rng(0)
        places = places[rng.integers(len(places), size=FOREGROUND_SAMPLES)]
    i, j, k = np.unravel_index(places, label.data.shape)
    # only CT has statistics over cases
    foreground: list[list[float]] = [[] for _ in schemes]
    minima: list[float | None] = [None for _ in schemes]
    for number, channel in zip(present, image.data, strict=True):
        minima[number] = float(channel.min())
        if schemes[number] == "CT":
            foreground[number] = channel[i, j, k].tolist()
    counts = voxel_counts(label.data, len(dataset.labels))
    wrong = contradiction(case.case_id, case.labelled, counts.tolist(), dataset.labels)
    if wrong is not None:
        raise DatasetError(f"{case.label}: {wrong}")
    return CaseScan(
        spacing=spacing_of(image.affine, orientation),
        shape=(sizes[0], sizes[1], sizes[2]),
        body_share=float(np.prod(sizes) / label.data.size),
        voxel_counts=counts.tolist(),
        foreground=foreground,
        minima=minima,
        warnings=[*image.warnings, *label.warnings],
    )


def foreground_voxels(labels: UInt[np.ndarray, "i j k"], num_classes: int) -> NDArray[np.int64]:
    """Flat indices of all voxels of a class that is not background, ascending.

    A file's voxels are stored with the first axis fastest, and are looked through in that order.
    """
    stored = labels.T
    found = np.flatnonzero((stored > 0) & ~is_ignored(stored, num_classes))
    places = np.unravel_index(found, stored.shape)[::-1]
    return np.sort(np.ravel_multi_index(places, labels.shape))


def _needed_names(dataset: RawDataset) -> tuple[str, ...] | None:
    """Names of the labels where label files tell their segments by name; else None."""
    by_name = any(known_format(case.label) == FORMATS["dicom"] for case in dataset.cases)
    return tuple(dataset.labels) if by_name else None


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
        DatasetError: if no label of the cases that may be learnt from has a foreground, or none of
            them has a channel.
    """
    known = [scan for case, scan in scans.items() if case not in set(test_cases)]
    if not any(sum(scan.voxel_counts[1:]) for scan in known):
        raise DatasetError(
            f"the training labels in {dataset.folder} have no foreground voxel: there is nothing "
            "to learn"
        )
    body_only = float(np.median([scan.body_share for scan in known])) < MOSTLY_EMPTY
    learnt_from = [case for case in dataset.cases if case.case_id not in set(test_cases)]
    if lacking := without_any([case.channels for case in learnt_from], dataset.channels):
        raise DatasetError(f"but for test cases, {lacking[0]}")
    schemes = schemes_of(config, dataset)
    channels = []
    for index, (modality, scheme) in enumerate(zip(dataset.modalities, schemes, strict=True)):
        if scheme == "CT":
            foreground = np.concatenate([scan.foreground[index] for scan in known])
            channels.append(_ct_normalisation(modality, foreground, config.intensity_window))
        else:
            masked = body_only and scheme == "zscore"
            channels.append(
                ChannelNormalisation(modality=modality, scheme=scheme, body_only=masked)
            )
    spacing = config.target_spacing or choose_spacing(
        [scan.spacing for scan in known], [scan.shape for scan in known]
    )
    return DatasetPlan(
        preprocessing=Preprocessing(
            spacing=spacing,
            channels=[
                channel.model_copy(update={"minima": lowest})
                for channel, lowest in zip(channels, _minima(known, len(channels)), strict=True)
            ],
            num_classes=len(dataset.labels),
            missing_channels=dataset.missing_channels,
            label_values=gapped(dataset.label_values),
            ignore=dataset.ignore,
            label_names=_needed_names(dataset),
            data_spacing=median_spacing([scan.spacing for scan in known]),
        ),
        voxel_counts={case: scan.voxel_counts for case, scan in scans.items()},
        warnings=[
            *(warning for scan in scans.values() for warning in scan.warnings),
            *_without_labels(dataset, scans),
            *doubtful_schemes(dataset, schemes, config),
        ],
    )


def _without_labels(dataset: RawDataset, scans: Mapping[str, CaseScan]) -> list[str]:
    """Warnings about cases in which nobody labelled a voxel."""
    return [
        f"{case.label}: every voxel is to ignore, none is labelled: the case is left out"
        for case in dataset.cases
        if not any(scans[case.case_id].voxel_counts)
    ]


def _minima(scans: Sequence[CaseScan], channels: int) -> list[tuple[float, float] | None]:
    """Least and greatest of the cases' lowest intensities, by channel."""
    if not all(scan.minima for scan in scans):
        # scans of an earlier version, from a preparation that goes on
        return [None] * channels
    return [outer_minima([scan.minima[number] for scan in scans]) for number in range(channels)]


def _ct_normalisation(
    modality: Modality, foreground: NDArray[np.float64], window: tuple[float, float] | None
) -> ChannelNormalisation:
    """The window given, or percentiles 0.5 and 99.5 of the foreground, and its statistics."""
    if window is None:
        low, high = (float(bound) for bound in np.percentile(foreground, (0.5, 99.5)))
    else:
        low, high = window
        # what a narrow window cuts off would make the rest look alike
        foreground = np.clip(foreground, low, high)
    return ChannelNormalisation(
        modality=modality,
        scheme="CT",
        low=low,
        high=high,
        mean=float(foreground.mean()),
        std=float(foreground.std()) or 1.0,
    )
