"""DICOM-SEG, by highdicom: a label map as segments that refer to the slices of their series."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.formats.dicom_series import Series, is_whole, open_file, parts
from training.data.raw.formats.dicom_study import (
    MANUFACTURER,
    MODEL,
    label_names,
    series_of,
    slices,
    software,
    source_headers,
)
from training.data.raw.formats.opened_file import OpenedFile
from training.durable_write import write_durably
from training.errors import DatasetError

try:
    import highdicom as hd
    from pydicom.sr.codedict import codes
    from pydicom.uid import ExplicitVRLittleEndian
except ModuleNotFoundError as error:
    raise DatasetError(
        "DICOM-SEG is written with highdicom: pip install 'segtune[dicom]'"
    ) from error

__all__ = ["is_whole", "open_file", "parts", "write_label"]

SERIES_NUMBER = 9001
"""Number of the series that a label map is."""


def write_label(
    label: NDArray[np.unsignedinteger[Any]],
    source: OpenedFile,
    output: Path,
    *,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write a label map as a DICOM segmentation, whole or not at all.

    It has one segment for each name, in the order of their values and numbered from 1, also where
    the label map has no voxel of it. It is of the patient and study of the image, and each frame
    refers to its slice. Categories and types are those of tissue in general (SNOMED CT): what a
    name means is not known here.

    Args:
        label: Label map on the image's grid, `(i, j, k)`.
        source: The image, a DICOM series.
        output: File to write, `.dcm`; its folder must be there.
        names: Name of each value; `label N` for one without.

    Raises:
        DatasetError: if the image is not DICOM.
        OSError: if the file cannot be written; one that was there stays.
    """
    series = series_of(source, "dicom-seg")
    named = label_names(label, names)
    numbers = np.zeros(max([*named, int(label.max(initial=0))]) + 1, dtype=np.uint8)
    if len(named) > np.iinfo(numbers.dtype).max:
        raise DatasetError(f"{len(named)} labels are too many for DICOM-SEG: at most 255 can be")
    numbers[list(named)] = np.arange(1, len(named) + 1)
    descriptions = [_segment(number, name) for number, name in enumerate(named.values(), start=1)]
    segmentation = hd.seg.Segmentation(
        source_images=source_headers(series),
        pixel_array=_in_order_of_files(numbers[slices(label)], series),
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=hd.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL,
        software_versions=software(),
        device_serial_number="0",
        content_description="Automatic segmentation",
        content_label="SEGMENTATION",
        series_description="Segmentation by segtune",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        omit_empty_frames=bool(label.any()),
    )
    content = io.BytesIO()
    segmentation.save_as(content)
    write_durably(output, content.getvalue())


def _segment(number: int, name: str) -> Any:
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=MODEL, version=software(), family=codes.DCM.ArtificialIntelligence
        ),
        tracking_uid=hd.UID(),
        tracking_id=name[:64],
    )


def _in_order_of_files(planes: NDArray[np.uint8], series: Series) -> NDArray[np.uint8]:
    """Planes in the order of the files, and in a multi-frame file in that of its frames."""
    ordered = np.empty_like(planes)
    multiframe = len({frame.file for frame in series.frames}) == 1
    for index, frame in enumerate(series.frames):
        ordered[frame.number if multiframe else index] = planes[index]
    return ordered
