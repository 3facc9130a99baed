"""DICOM images, by pydicom: a folder with the slices of one series, or a multi-frame file.

Slices are sorted by their place along the normal of their plane. The volume has the geometry that
ITK's series reader gives it. Values are those of the modality: rescaled by slope and intercept,
Hounsfield units in a CT.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from training.data.raw.formats.dicom_files import dicom_files
from training.data.raw.formats.geometry import Place
from training.data.raw.formats.opened_file import OpenedFile
from training.errors import DatasetError

try:
    import pydicom
except ModuleNotFoundError as error:
    raise DatasetError("DICOM is read with pydicom: pip install 'segtune[dicom]'") from error

PARALLEL = 1e-3
"""Difference of direction cosines up to which two slices are taken to be parallel."""

TILT = 0.1
"""Shift between the first and the last slice within their plane, in pixels a slice, from which a
series is taken to be tilted."""

UNEVEN = 0.1
"""Share of the slice distance by which gaps between slices may differ."""

SHOWN = 5
"""Slices that a message names at most."""


@dataclass(frozen=True)
class Frame:
    """One slice.

    Attributes:
        file: Its file.
        header: Header of the file.
        number: Number of the frame in the file, from 0.
        position: Place of its first pixel in mm, LPS+.
        orientation: Direction of its rows and its columns, `(6,)`.
        pixel: Distance of rows and of columns in mm.
        slope: Slope of the rescaling.
        intercept: Intercept of the rescaling.
    """

    file: Path
    header: Any
    number: int
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    pixel: tuple[float, float]
    slope: float
    intercept: float


@dataclass(frozen=True)
class Series:
    """Sorted slices of a volume.

    Attributes:
        frames: The slices, along their normal.
        place: Place of the volume, LPS+.
    """

    frames: tuple[Frame, ...]
    place: Place


def open_file(path: Path, *, as_label: bool = False) -> OpenedFile:
    """Open a series without reading its pixels.

    Args:
        path: Folder of the series, or a multi-frame file.
        as_label: Whether it is a label map.

    Raises:
        DatasetError: if it is not one volume: several series, missing slices, a tilted gantry, ...
    """
    headers, ignored = _headers(parts(path))
    headers = _of_one_series(headers)
    _check_slices(path, headers)
    frames = [frame for file, header in headers for frame in frames_of(file, header)]
    series = _sorted(frames)
    first = frames[0].header
    shape = (int(first.Columns), int(first.Rows), len(frames))
    del as_label
    return OpenedFile(
        path,
        shape,
        series.place.affine(),
        np.dtype("f4"),
        lambda: _voxels(series, shape),
        native=series,
        doubts=lambda: _doubts(path, first, ignored),
    )


def parts(path: Path) -> list[Path]:
    """The files of a series."""
    return dicom_files(path) if path.is_dir() else [path]


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    try:
        header = pydicom.dcmread(path)
        return "PixelData" not in header or header.pixel_array is not None
    except Exception:
        # damaged files make pydicom fail in ways of many types
        return False


def write_label(*arguments: Any, **options: Any) -> None:
    """Label maps are written as DICOM-SEG or RTSTRUCT, see those modules."""
    raise DatasetError("a label map is not written as a DICOM series: choose dicom-seg or rtstruct")


def _headers(files: Sequence[Path]) -> tuple[list[tuple[Path, Any]], list[Path]]:
    """Headers of the images among files, and the files that are none."""
    found, ignored = [], []
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            is_image = "Rows" in header and "Columns" in header
        except Exception as error:
            # damaged files make pydicom fail in ways of many types
            raise DatasetError(f"{file}: not a readable DICOM file ({error})") from error
        if is_image and header.get("Modality") not in {"SEG", "RTDOSE"}:
            found.append((file, header))
        else:
            ignored.append(file)
    if not found:
        kinds = "" if not files else f": {files[0].name} is none"
        raise DatasetError(f"it holds no DICOM image{kinds}")
    return found, ignored


def _of_one_series(headers: list[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """The images, which must be of one series."""
    groups: dict[str, list[tuple[Path, Any]]] = {}
    for file, header in headers:
        groups.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((file, header))
    if len(groups) == 1:
        return headers
    told = [
        f"{len(group)} images of {group[0][1].get('Modality', '?')} "
        f"{str(group[0][1].get('SeriesDescription', '')) or 'without a description'!r} "
        f"(series {group[0][1].get('SeriesNumber', '?')}, such as {group[0][0].name})"
        for group in list(groups.values())[:SHOWN]
    ]
    raise DatasetError(
        f"it holds {len(groups)} series: {'; '.join(told)}: give each a folder of its own"
    )


def _check_slices(path: Path, headers: Sequence[tuple[Path, Any]]) -> None:
    """Check that the images have one size and are grey, and that a single one is a volume."""
    _, first = headers[0]
    for file, header in headers:
        if int(header.get("SamplesPerPixel", 1)) != 1:
            raise DatasetError(f"{file}: its pixels are colours, not numbers")
        if (header.Rows, header.Columns) != (first.Rows, first.Columns):
            raise DatasetError(
                f"{file}: {header.Rows} x {header.Columns} pixels, but {first.Rows} x "
                f"{first.Columns} in {headers[0][0].name}: the slices of a volume have one size"
            )
        if "ModalityLUTSequence" in header:
            raise DatasetError(
                f"{file}: its values are rescaled by a table (Modality LUT), which is not read: "
                "convert the series to NIfTI"
            )
    frames = int(first.get("NumberOfFrames", 1) or 1)
    if frames == 1 and path.is_file():
        raise DatasetError(
            "it is one slice of a DICOM series: give the folder that holds all of them"
        )


def frames_of(file: Path, header: Any) -> list[Frame]:
    """The slices of a file."""
    count = int(header.get("NumberOfFrames", 1) or 1)
    if "PerFrameFunctionalGroupsSequence" in header:
        shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
        groups = header.PerFrameFunctionalGroupsSequence
        return [_enhanced(file, header, n, group, shared[0]) for n, group in enumerate(groups)]
    if count > 1:
        raise DatasetError(
            f"{file}: {count} frames without places (a film, or an old multi-frame file): only "
            "enhanced multi-frame images are volumes; convert it to NIfTI"
        )
    for field in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if not header.get(field):
            raise DatasetError(
                f"{file}: it has no {field}, so its place is not known; of a radiograph, take a "
                "PNG or TIFF"
            )
    return [
        Frame(
            file,
            header,
            0,
            np.array(header.ImagePositionPatient, dtype=float),
            np.array(header.ImageOrientationPatient, dtype=float),
            (float(header.PixelSpacing[0]), float(header.PixelSpacing[1])),
            float(header.get("RescaleSlope", 1)),
            float(header.get("RescaleIntercept", 0)),
        )
    ]


def _enhanced(file: Path, header: Any, number: int, own: Any, shared: Any) -> Frame:
    """A frame of an enhanced multi-frame image, by its functional groups."""

    def group(name: str) -> Any:
        items = own.get(name) or shared.get(name)
        return items[0] if items else None

    position, orientation = group("PlanePositionSequence"), group("PlaneOrientationSequence")
    measures, rescaling = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    if position is None or orientation is None or measures is None:
        raise DatasetError(f"{file}: its frame {number + 1} has no place (functional groups)")
    return Frame(
        file,
        header,
        number,
        np.array(position.ImagePositionPatient, dtype=float),
        np.array(orientation.ImageOrientationPatient, dtype=float),
        (float(measures.PixelSpacing[0]), float(measures.PixelSpacing[1])),
        1.0 if rescaling is None else float(rescaling.RescaleSlope),
        0.0 if rescaling is None else float(rescaling.RescaleIntercept),
    )


def _sorted(frames: Sequence[Frame]) -> Series:
    """The slices along their normal, which must be evenly spaced and above each other."""
    first = frames[0]
    for frame in frames:
        if np.abs(frame.orientation - first.orientation).max() > PARALLEL:
            raise DatasetError(
                f"{_named(frame)} and {_named(first)} lie in different directions: the slices of a "
                "volume are parallel; move a scout view into a folder of its own"
            )
        if not np.allclose(frame.pixel, first.pixel, rtol=1e-3):
            raise DatasetError(f"{_named(frame)} and {_named(first)} have pixels of another size")
    row, column = first.orientation[:3], first.orientation[3:]
    normal = np.cross(row, column)
    order = sorted(frames, key=lambda frame: float(normal @ frame.position))
    places = np.array([frame.position for frame in order])
    step = _step(order, places @ normal)
    shift = (places[-1] - places[0]) / max(len(order) - 1, 1)
    aside = np.array([shift @ row / first.pixel[1], shift @ column / first.pixel[0]])
    if np.abs(aside).max() > TILT:
        angle = np.degrees(np.arctan2(np.linalg.norm([shift @ row, shift @ column]), step))
        raise DatasetError(
            f"its slices are shifted against each other: the gantry was tilted by {angle:.1f} "
            "degrees; resample the series, for example with dcm2niix, which corrects it"
        )
    rows, columns = first.pixel
    x, y, z = (float(mm) for mm in places[0])
    place = Place(
        (columns, rows, step),
        (x, y, z),
        np.stack([row, column, normal / np.linalg.norm(normal)], 1),
    )
    return Series(tuple(order), place)


def _step(frames: Sequence[Frame], along: NDArray[np.float64]) -> float:
    """Distance of slices in mm.

    Raises:
        DatasetError: naming slices that are there twice, or between which some are missing.
    """
    if len(frames) == 1:
        header = frames[0].header
        given = header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1
        return abs(float(given))
    gaps = np.diff(along)
    step = float(np.median(gaps))
    same = np.flatnonzero(gaps < UNEVEN * max(step, 1e-3))
    if same.size:
        pairs = [f"{_named(frames[n])} and {_named(frames[n + 1])}" for n in same[:SHOWN]]
        raise DatasetError(
            f"{same.size} slices are there twice, at one place: {'; '.join(pairs)}: remove one of "
            "each, or give each time of a series a folder of its own"
        )
    wide = np.flatnonzero(np.abs(gaps - step) > UNEVEN * step)
    if not wide.size:
        return float(along[-1] - along[0]) / (len(frames) - 1)
    missing = gaps[wide] / step
    told = [
        f"between {_named(frames[n])} and {_named(frames[n + 1])} ({gaps[n]:.4g} mm)"
        for n in wide[:SHOWN]
    ]
    if (np.abs(missing - np.rint(missing)) <= UNEVEN).all() and (missing > 1).all():
        raise DatasetError(
            f"{int((np.rint(missing) - 1).sum())} slices are missing, of {step:.4g} mm each: "
            f"{'; '.join(told)}: copy the whole series"
        )
    raise DatasetError(
        f"its slices are not evenly spaced: {step:.4g} mm in the middle, but {'; '.join(told)}: "
        "resample the series"
    )


def _named(frame: Frame) -> str:
    frames = int(frame.header.get("NumberOfFrames", 1) or 1)
    return f"{frame.file.name} frame {frame.number + 1}" if frames > 1 else frame.file.name


def _doubts(path: Path, header: Any, ignored: Sequence[Path]) -> tuple[str, ...]:
    found = []
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        found.append(f"{path}: it is shown with low values bright (MONOCHROME1); they are inverted")
    if ignored:
        found.append(
            f"{path}: {len(ignored)} DICOM files are no images and are left out, such as "
            f"{ignored[0].name}"
        )
    return tuple(found)


def _voxels(series: Series, shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Rescaled values `(column, row, slice)`."""
    voxels = np.empty(shape[::-1], dtype=np.float32)
    files: dict[Path, NDArray[Any]] = {}
    for index, frame in enumerate(series.frames):
        if frame.file not in files:
            files = {frame.file: _stored(frame)}
        pixels = files[frame.file]
        voxels[index] = pixels[frame.number] if pixels.ndim == 3 else pixels
        voxels[index] *= frame.slope
        voxels[index] += frame.intercept
    return voxels.T


def _stored(frame: Frame) -> NDArray[Any]:
    """The pixels of a file before they are rescaled, dark ones low."""
    header = pydicom.dcmread(frame.file, force=True)
    if "TransferSyntaxUID" not in header.file_meta:
        # what a file without the mark is written in
        header.file_meta.TransferSyntaxUID = (
            pydicom.uid.ImplicitVRLittleEndian
            if header.original_encoding[0]
            else pydicom.uid.ExplicitVRLittleEndian
        )
    try:
        pixels = np.asarray(header.pixel_array)
    except Exception as error:
        # a missing decoder, too few bytes, and much else
        if not header.file_meta.TransferSyntaxUID.is_compressed:
            raise DatasetError(f"{frame.file}: its pixels are damaged ({error})") from error
        pixels = _decoded_by_itk(frame, header.file_meta.TransferSyntaxUID.name)
    if header.get("PhotometricInterpretation") == "MONOCHROME1":
        bits = int(header.BitsStored)
        low, high = (
            (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            if int(header.PixelRepresentation)
            else (0, 2**bits - 1)
        )
        pixels = (low + high) - pixels.astype(np.int64)
    return pixels


def _decoded_by_itk(frame: Frame, syntax: str) -> NDArray[Any]:
    """Pixels by ITK's own decoders, without its rescaling."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(frame.file))
    try:
        pixels = sitk.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise DatasetError(
            f"{frame.file}: it is compressed ({syntax}), and no decoder here can read it: install "
            "one (pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg), or decompress the "
            "series, for example with gdcmconv --raw"
        ) from error
    if pixels.ndim == 3 and len(pixels) == 1:
        pixels = pixels[0]
    return np.asarray((pixels - frame.intercept) / frame.slope)
