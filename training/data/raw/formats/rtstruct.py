"""RTSTRUCT, by pydicom: a label map as closed contours in the slices of their series."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.formats.dicom_series import Series, is_whole, open_file, parts
from training.data.raw.formats.dicom_study import (
    EMPTY,
    MANUFACTURER,
    MODEL,
    label_names,
    series_of,
    software,
    source_headers,
)
from training.data.raw.formats.opened_file import OpenedFile
from training.durable_write import write_durably
from training.errors import DatasetError

try:
    from contourpy import FillType, contour_generator
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.sequence import Sequence as Items
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
except ModuleNotFoundError as error:
    raise DatasetError(
        "RTSTRUCT is written with pydicom and contourpy: pip install 'segtune[dicom]'"
    ) from error

__all__ = ["is_whole", "open_file", "parts", "write_label"]

COLOURS = (
    *((230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48)),
    *((145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212)),
)
"""Colours of structures, in turn."""


def write_label(
    label: NDArray[np.unsignedinteger[Any]],
    source: OpenedFile,
    output: Path,
    *,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write a label map as an RT structure set, whole or not at all.

    It has one structure for each name, numbered from 1 in the order of their values, also where
    the label map has no voxel of it. Contours pass half-way between the centres of voxels inside
    and outside, so that filling them by voxel centres gives the label map again. A hole is a
    contour of its own inside another, as most programs write and read it (even-odd rule).

    Args:
        label: Label map on the image's grid, `(i, j, k)`.
        source: The image, a DICOM series.
        output: File to write, `.dcm`; its folder must be there.
        names: Name of each value; `label N` for one without.

    Raises:
        DatasetError: if the image is not DICOM.
        OSError: if the file cannot be written; one that was there stays.
    """
    series = series_of(source, "rtstruct")
    headers = source_headers(series)
    named = label_names(label, names)
    dataset = _new_file(headers[0])
    frame_of_reference = headers[0].FrameOfReferenceUID
    dataset.ReferencedFrameOfReferenceSequence = _referenced(headers, frame_of_reference)
    dataset.StructureSetROISequence = Items([])
    dataset.ROIContourSequence = Items([])
    dataset.RTROIObservationsSequence = Items([])
    for number, (value, name) in enumerate(named.items(), start=1):
        dataset.StructureSetROISequence.append(
            _dataset(
                ROINumber=number,
                ReferencedFrameOfReferenceUID=frame_of_reference,
                ROIName=name[:64],
                ROIGenerationAlgorithm="AUTOMATIC",
            )
        )
        dataset.ROIContourSequence.append(
            _dataset(
                ReferencedROINumber=number,
                ROIDisplayColor=list(COLOURS[(number - 1) % len(COLOURS)]),
                ContourSequence=Items(list(_contours(label == value, series))),
            )
        )
        dataset.RTROIObservationsSequence.append(
            _dataset(
                ObservationNumber=number,
                ReferencedROINumber=number,
                RTROIInterpretedType="",
                ROIInterpreter="",
            )
        )
    content = io.BytesIO()
    dataset.save_as(content, enforce_file_format=True)
    write_durably(output, content.getvalue())


def _contours(mask: NDArray[np.bool_], series: Series) -> Iterator[Any]:
    """Closed contours of a structure, slice by slice."""
    column, row = series.place.direction[:, 0], series.place.direction[:, 1]
    columns, rows, _ = series.place.spacing
    for index in np.flatnonzero(mask.any(axis=(0, 1))):
        frame = series.frames[index]
        # (row, column), with a border so that contours close
        padded = np.pad(mask[:, :, index].T, 1).astype(float)
        filled = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
        for points, offsets in zip(*filled, strict=True):
            for first, end in pairwise(offsets):
                # the last point is the first one again
                line = points[first : end - 1] - 1
                places = frame.position + line[:, :1] * column * columns + line[:, 1:] * row * rows
                item = _dataset(
                    ContourImageSequence=Items([_reference(frame.header, frame.number)]),
                    ContourGeometricType="CLOSED_PLANAR",
                    NumberOfContourPoints=len(places),
                    ContourData=[f"{mm:.4f}" for mm in places.ravel()],
                )
                yield item


def _new_file(header: Any) -> Any:
    """An empty structure set of the patient and study of an image."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = RTStructureSetStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    if "SpecificCharacterSet" in header:
        dataset.SpecificCharacterSet = header.SpecificCharacterSet
    for field in (*EMPTY, "StudyInstanceUID"):
        setattr(dataset, field, header.get(field, ""))
    now = datetime.now()
    values = {
        "SOPClassUID": RTStructureSetStorage,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "RTSTRUCT",
        "SeriesInstanceUID": generate_uid(),
        "SeriesNumber": 9002,
        "SeriesDescription": "Structures by segtune",
        "OperatorsName": "",
        "Manufacturer": MANUFACTURER,
        "ManufacturerModelName": MODEL,
        "SoftwareVersions": software(),
        "FrameOfReferenceUID": header.FrameOfReferenceUID,
        "PositionReferenceIndicator": "",
        "StructureSetLabel": "SEGMENTATION",
        "StructureSetDate": now.strftime("%Y%m%d"),
        "StructureSetTime": now.strftime("%H%M%S"),
        "ApprovalStatus": "UNAPPROVED",
    }
    for field, value in values.items():
        setattr(dataset, field, value)
    return dataset


def _referenced(headers: list[Any], frame_of_reference: str) -> Any:
    """The study, series and images that a structure set refers to."""
    series = _dataset(
        SeriesInstanceUID=headers[0].SeriesInstanceUID,
        ContourImageSequence=Items([_reference(header) for header in headers]),
    )
    study = _dataset(
        # Detached Study Management, retired but asked for here
        ReferencedSOPClassUID="1.2.840.10008.3.1.2.3.1",
        ReferencedSOPInstanceUID=headers[0].StudyInstanceUID,
        RTReferencedSeriesSequence=Items([series]),
    )
    return Items(
        [_dataset(FrameOfReferenceUID=frame_of_reference, RTReferencedStudySequence=Items([study]))]
    )


def _reference(header: Any, number: int | None = None) -> Any:
    item = _dataset(
        ReferencedSOPClassUID=header.SOPClassUID, ReferencedSOPInstanceUID=header.SOPInstanceUID
    )
    if number is not None and int(header.get("NumberOfFrames", 1) or 1) > 1:
        item.ReferencedFrameNumber = number + 1
    return item


def _dataset(**values: Any) -> Any:
    dataset = Dataset()
    for field, value in values.items():
        setattr(dataset, field, value)
    return dataset
