"""Examines one case: its headers, and unless they alone are asked for its voxels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.case_label import read_case_label
from training.data.raw.header import VolumeHeader, check_same_grid, open_volume
from training.data.raw.hounsfield import are_hounsfield
from training.data.raw.labelled_classes import contradiction
from training.data.raw.layouts import RawCase, RawDataset
from training.data.raw.volume import Volume, read_image
from training.data.statistics.findings import Finding
from training.data.statistics.measures import (
    CaseMeasures,
    ChannelMeasures,
    content_digest,
    is_empty,
    measure_channel,
    measure_classes,
    measure_grid,
    values_digest,
)
from training.errors import DatasetError
from training.ignored_voxels import is_ignored

MOSTLY_IN_AIR = 0.5
"""Share of the labelled voxels in empty places from which a label map is doubted."""


class Examination:
    """What a case was found to be.

    Attributes:
        case: The case.
        findings: Its faults.
        measures: Its measures; None if its headers cannot be used.
    """

    def __init__(self, case: RawCase) -> None:
        self.case = case
        self.findings: list[Finding] = []
        self.measures: CaseMeasures | None = None

    def found(self, kind: str, message: object) -> None:
        """Note a fault."""
        self.findings.append(Finding(kind, str(message), self.case.case_id))


def examine_case(case: RawCase, dataset: RawDataset, *, headers_only: bool) -> Examination:
    """Find what is wrong with a case.

    Files are read one at a time, and all of them, so that a fault of one hides none of another.

    Args:
        case: The case, whose files are there.
        dataset: The data.
        headers_only: Whether voxels are left unread.
    """
    result = Examination(case)
    headers = _examine_headers(result, dataset)
    if case.images[0] not in headers:
        return result
    first = headers[case.images[0]]
    grid = measure_grid(first)
    result.measures = CaseMeasures(case.case_id, grid)
    if headers_only:
        return result
    labels = _read_label(result, dataset, headers)
    channels: list[NDArray[np.float32]] = []
    for path in case.images:
        if path in headers and (image := _read_image(result, path)) is not None:
            channels += list(image.data)
    # what lies on another grid cannot be measured together
    channels = [voxels for voxels in channels if voxels.shape == first.shape]
    if labels is not None and labels.shape != first.shape:
        labels = None
    if len(channels) != len(dataset.channels_of(case)):
        return result
    _measure(result, dataset, first, channels, labels)
    return result


def _examine_headers(result: Examination, dataset: RawDataset) -> dict[Path, VolumeHeader]:
    """The headers that can be used, by file."""
    case = result.case
    headers: dict[Path, VolumeHeader] = {}
    for path in (*case.images, case.label):
        try:
            _, headers[path] = open_volume(
                path,
                as_label=path == case.label,
                image=case.images[0],
                names=dataset.labels,
                values=dataset.label_values,
            )
        except DatasetError as error:
            result.found("header", error)
    for header in headers.values():
        for line in header.warnings:
            result.found("doubtful header", line)
    images = [headers[path] for path in case.images if path in headers]
    if len(images) == len(case.images):
        number = sum(header.channels for header in images)
        names = [dataset.channels[present] for present in dataset.channels_of(case)]
        if number != len(names):
            series = " (a series over time?)" if number > 1 and len(images) == 1 else ""
            result.found(
                "channels",
                f"{case.images[0]}: {number} channels{series}, but dataset.json declares "
                f"{len(names)} ({', '.join(names)})",
            )
    first = case.images[0]
    if first in headers:
        for path, header in headers.items():
            try:
                check_same_grid(path, header, first, headers[first])
            except DatasetError as error:
                result.found("grid", error)
    return headers


def _read_image(result: Examination, path: Path) -> Volume | None:
    try:
        return read_image([path])
    except DatasetError as error:
        result.found("image", error)
    return None


def _read_label(
    result: Examination, dataset: RawDataset, headers: dict[Path, VolumeHeader]
) -> NDArray[Any] | None:
    path = result.case.label
    if path not in headers:
        return None
    try:
        labels = read_case_label(result.case, dataset).data
    except DatasetError as error:
        result.found("label", error)
        return None
    # what nobody labelled is of no class here either
    known: NDArray[Any] = np.where(is_ignored(labels, len(dataset.labels)), 0, labels)
    counts = np.bincount(known.ravel(), minlength=len(dataset.labels)).tolist()
    wrong = contradiction(result.case.case_id, result.case.labelled, counts, dataset.labels)
    if wrong is not None:
        result.found("label", f"{path}: {wrong}")
    return known


def _measure(
    result: Examination,
    dataset: RawDataset,
    header: VolumeHeader,
    channels: Sequence[NDArray[np.float32]],
    labels: NDArray[Any] | None,
) -> None:
    """Measure the voxels of a case, and judge them."""
    classes = len(dataset.labels)
    assert result.measures is not None
    measured = tuple(measure_channel(voxels, labels, classes) for voxels in channels)
    in_air = 0.0
    if labels is not None and labels.any():
        empty = np.ones(labels.shape, dtype=bool)
        for number, voxels in zip(dataset.channels_of(result.case), channels, strict=True):
            empty &= is_empty(voxels, dataset.modalities[number])
        in_air = float(empty[labels > 0].mean())
    result.measures = CaseMeasures(
        result.case.case_id,
        result.measures.grid,
        # cases are compared channel by channel, which one that lacks some cannot be
        measured if result.case.channels is None else (),
        () if labels is None else measure_classes(labels, header.affine, classes),
        content_digest(channels, header.affine),
        values_digest(channels),
        in_air,
    )
    _judge_channels(result, dataset, measured)
    if labels is not None and not result.measures.foreground:
        result.found("no foreground", f"{result.case.label}: every voxel is {dataset.labels[0]}")
    if in_air > MOSTLY_IN_AIR:
        result.found(
            "label in the air",
            f"{result.case.label}: {in_air:.0%} of its labelled voxels lie where the image is "
            "empty",
        )


def _judge_channels(
    result: Examination, dataset: RawDataset, measured: Sequence[ChannelMeasures]
) -> None:
    """Faults of intensities."""
    case = result.case
    constant = [channel.low == channel.high for channel in measured]
    if all(constant):
        result.found("constant image", f"{case.images[0]}: every voxel is {measured[0].low:g}")
        return
    for index, channel in enumerate(measured):
        number = dataset.channels_of(case)[index]
        name = dataset.channels[number]
        # one file may hold all channels
        path = case.images[min(index, len(case.images) - 1)]
        modality = dataset.modalities[number]
        if constant[index]:
            result.found("constant channel", f"{path}: every voxel of {name} is {channel.low:g}")
        elif channel.values and set(channel.values) <= set(dataset.label_values):
            unlabelled = any(finding.kind == "label" for finding in result.findings)
            shown = ", ".join(f"{value:g}" for value in channel.values[:5])
            result.found(
                "swapped" if unlabelled else "like a label map",
                f"{path}: all its voxels have values of labels ({shown})",
            )
        elif modality == "CT" and channel.low >= 0:
            result.found(
                "modality",
                f"{path}: named {name}, but no voxel is below 0 (they are {_range(channel)}): "
                "were Hounsfield units shifted or scaled?",
            )
        elif modality == "MR" and are_hounsfield(
            channel.low, channel.high, channel.percentiles[1], whole=channel.whole
        ):
            result.found(
                "modality",
                f"{path}: named {name}, but with voxels of {_range(channel)} it looks like a CT",
            )


def _range(channel: ChannelMeasures) -> str:
    return f"{channel.low:g} to {channel.high:g}"
