"""DICOM series written by pydicom, slice by slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    generate_uid,
)

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def oblique() -> tuple[float, ...]:
    """Rows and columns that are turned about two axes."""
    c, s = np.cos(0.4), np.sin(0.4)
    first = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    second = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return tuple(np.round((first @ second)[:, :2].T.ravel(), 12).tolist())


def slice_header(
    series: str, number: int, position: Any, orientation: tuple[float, ...] = AXIAL, **values: Any
) -> Dataset:
    """All of a CT slice but its pixels; values override."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.MediaStorageSOPClassUID = CTImageStorage
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.SOPClassUID = CTImageStorage
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.PatientName, header.PatientID = "DOE^JANE", "7"
    header.StudyInstanceUID = generate_uid(entropy_srcs=["study", series])
    header.SeriesInstanceUID = generate_uid(entropy_srcs=[series])
    header.FrameOfReferenceUID = generate_uid(entropy_srcs=["frame", series])
    header.Modality, header.SeriesNumber, header.InstanceNumber = "CT", 3, number
    header.SeriesDescription = series
    header.ImagePositionPatient = [f"{mm:.8g}" for mm in position]
    header.ImageOrientationPatient = [f"{cosine:.12g}" for cosine in orientation]
    header.PixelSpacing, header.SliceThickness = [1.5, 0.8], 2.5
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit = 16, 16, 15
    header.PixelRepresentation = 1
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    for field, value in values.items():
        setattr(header, field, value)
    return header


def write(path: Path, header: Dataset, pixels: np.ndarray) -> None:
    """Write a file with a slice, or with frames."""
    header.Rows, header.Columns = pixels.shape[-2:]
    header.PixelData = pixels.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def make_series(
    folder: Path,
    voxels: np.ndarray | None = None,
    *,
    orientation: tuple[float, ...] = AXIAL,
    origin: tuple[float, float, float] = (-12.5, 30.0, -100.0),
    step: float = 2.5,
    **values: Any,
) -> np.ndarray:
    """Write a CT series whose file names say nothing of the order of its slices.

    Args:
        folder: Where.
        voxels: Stored values `(slice, row, column)`, random ones by default.
        orientation: Direction of rows and columns.
        origin: Place of the first pixel.
        step: Distance of the slices.
        values: Attributes of all slices.

    Returns:
        The voxels.
    """
    if voxels is None:
        voxels = np.random.default_rng(0).integers(0, 2000, (6, 5, 7)).astype(np.int16)
    normal = np.cross(orientation[:3], orientation[3:])
    order = np.random.default_rng(1).permutation(len(voxels))
    for name, index in enumerate(order):
        position = np.array(origin) + normal * step * index
        header = slice_header(folder.name, int(index) + 1, position, orientation, **values)
        write(folder / f"IM{name:04}", header, voxels[index])
    return voxels


def make_enhanced(path: Path, voxels: np.ndarray, orientation: tuple[float, ...] = AXIAL) -> None:
    """Write an enhanced multi-frame CT with its frames from the last to the first."""
    header = slice_header("enhanced", 1, (0, 0, 0), orientation)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    for field in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(header, field)
    header.NumberOfFrames = len(voxels)
    measures, plane, values = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [1.5, 0.8], 2.5
    plane.ImageOrientationPatient = list(orientation)
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1024, "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelValueTransformationSequence = Sequence([values])
    header.SharedFunctionalGroupsSequence = Sequence([shared])
    normal = np.cross(orientation[:3], orientation[3:])
    frames = []
    for index in reversed(range(len(voxels))):
        place, frame = Dataset(), Dataset()
        place.ImagePositionPatient = [f"{mm:.8g}" for mm in normal * 2.5 * index]
        frame.PlanePositionSequence = Sequence([place])
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = Sequence(frames)
    write(path, header, voxels[::-1])


def without_mark(path: Path) -> None:
    """Store a file as old programs do: implicit, and without a preamble."""
    from pydicom import dcmread

    header = dcmread(path)
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta = header.file_meta
    header.file_meta = FileMetaDataset()
    header.preamble = None
    header.save_as(path, implicit_vr=True, little_endian=True)
    del meta
