"""What DICOM label maps take over from the series that they belong to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.formats.dicom_series import Series
from training.data.raw.formats.opened_file import OpenedFile
from training.errors import DatasetError

MANUFACTURER = "segtune"
MODEL = "segtune"

EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
"""Attributes of patient and study that a file must have, if only empty."""

NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
"""Attributes without which nothing can refer to an image."""


def series_of(source: OpenedFile, file_format: str) -> Series:
    """The series of an image.

    Raises:
        DatasetError: if it is not DICOM, or has not what a label map refers to.
    """
    if not isinstance(source.native, Series):
        raise DatasetError(
            f"the image is not DICOM, and {file_format} refers to the slices of a DICOM series: "
            "choose another --format, such as nifti"
        )
    for frame in source.native.frames:
        for field in (*NEEDED, "FrameOfReferenceUID"):
            if not frame.header.get(field):
                raise DatasetError(
                    f"{frame.file}: it has no {field}, which {file_format} refers to: choose "
                    "another --format, such as nifti"
                )
    return source.native


def source_headers(series: Series) -> list[Any]:
    """Header of each file of a series once, along its normal, with all that it must have."""
    headers = {}
    for frame in series.frames:
        if frame.file not in headers:
            header = copy.copy(frame.header)
            for field in EMPTY:
                if field not in header:
                    setattr(header, field, "")
            headers[frame.file] = header
    return list(headers.values())


def label_names(
    label: NDArray[np.unsignedinteger[Any]], names: Mapping[int, str] | None
) -> dict[int, str]:
    """Name of each value but the background, by value; with those that the label map has too."""
    values = {*(names or {}), *np.unique(label).tolist()} - {0}
    return {value: (names or {}).get(value, f"label {value}") for value in sorted(values)}


def slices(label: NDArray[Any]) -> NDArray[Any]:
    """A label map `(i, j, k)` as DICOM has it, `(slice, row, column)`."""
    return np.ascontiguousarray(label.T)


def software() -> str:
    """The version of this package."""
    try:
        return version("segtune")
    except PackageNotFoundError:
        return "unknown"
