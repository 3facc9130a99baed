"""DICOM-SEG and RTSTRUCT as label maps, on the grid of the image that they belong to.

Segments and structures are told by their names. Where they overlap, that of the label with the
higher value is taken: a tumour inside a liver. Others, such as the skin or the couch, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.formats.dicom_series import Frame, Series, frames_of, parts
from training.data.raw.formats.geometry import LPS
from training.data.raw.formats.opened_file import OpenedFile
from training.errors import DatasetError

try:
    import pydicom
    from pydicom.uid import RTStructureSetStorage, SegmentationStorage
except ModuleNotFoundError as error:
    raise DatasetError("DICOM is read with pydicom: pip install 'segtune[dicom]'") from error

LABEL_MAP_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.7"
"""Storage of segmentations whose pixels are the numbers of segments."""

ON_GRID = 0.05
"""Part of a voxel by which a segmentation may lie beside the grid of its image."""

ON_SLICE = 0.3
"""Part of the slice distance by which a contour may lie beside its slice."""

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
"""Contours that bound an area."""

SHOWN = 10
"""Names that a message lists at most."""


@dataclass(frozen=True)
class LabelReference:
    """What a label map without a grid or values of its own needs.

    Attributes:
        image: The image that it belongs to.
        names: Name of each class, background first.
        values: Value of each class in label files.
    """

    image: OpenedFile
    names: Sequence[str]
    values: Sequence[int]


def holds_segments(path: Path) -> bool:
    """Whether a file, or the only file of a folder, is DICOM-SEG or RTSTRUCT."""
    files = parts(path)
    if len(files) != 1:
        return False
    header = pydicom.dcmread(files[0], stop_before_pixels=True, force=True)
    kinds = (SegmentationStorage, RTStructureSetStorage, LABEL_MAP_SEGMENTATION)
    return header.get("SOPClassUID") in kinds


def open_segments(path: Path, reference: LabelReference) -> OpenedFile:
    """Open a DICOM-SEG or RTSTRUCT as a label map on the grid of its image.

    Raises:
        DatasetError: if it belongs to another image, lies on another grid, or no segment has the
            name of a label.
    """
    read_masks, others = _opened(path, reference)
    shape = reference.image.shape[:3]

    def read() -> NDArray[np.uint16]:
        label = np.zeros(shape, dtype=np.uint16)
        masks = read_masks()
        for value in sorted(masks):
            label[masks[value]] = value
        return label

    left_out = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
    doubts = (f"{path}: not named as a label and left out: {left_out}",) if others else ()
    return OpenedFile(
        path, shape, reference.image.affine, np.dtype("u2"), read, doubts=lambda: doubts
    )


def segment_masks(path: Path, reference: LabelReference) -> dict[int, NDArray[np.bool_]]:
    """Where each value of a DICOM-SEG or RTSTRUCT is, `(i, j, k)`; masks may overlap.

    Raises:
        DatasetError: as `open_segments`.
    """
    return _opened(path, reference)[0]()


def _opened(
    path: Path, reference: LabelReference
) -> tuple[Callable[[], dict[int, NDArray[np.bool_]]], list[str]]:
    """What reads the masks of a file, and names of its segments that are no labels."""
    (file,) = parts(path)
    header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    _check_frame_of_reference(header, reference.image)
    structures = header.get("SOPClassUID") == RTStructureSetStorage
    chosen, others = _chosen(_structures(header) if structures else _segments(header), reference)
    shape = reference.image.shape[:3]
    to_index = np.asarray(np.linalg.inv(LPS @ reference.image.affine), dtype=np.float64)

    def read_masks() -> dict[int, NDArray[np.bool_]]:
        if structures:
            return _contour_masks(header, chosen, to_index, shape)
        return _segment_masks(file, chosen, to_index, shape)

    return read_masks, others


def _check_frame_of_reference(header: Any, image: OpenedFile) -> None:
    if not isinstance(image.native, Series):
        return
    known = str(image.native.frames[0].header.get("FrameOfReferenceUID", ""))
    given = {str(header.get("FrameOfReferenceUID", "") or "")} | {
        str(item.get("FrameOfReferenceUID", ""))
        for item in header.get("ReferencedFrameOfReferenceSequence", [])
    }
    if known and given - {""} and known not in given:
        raise DatasetError(
            f"it belongs to another image than {image.path} (their frames of reference differ)"
        )


def _segments(header: Any) -> dict[int, str]:
    return {
        int(item.SegmentNumber): str(item.get("SegmentLabel", "")).strip()
        for item in header.get("SegmentSequence", [])
    }


def _structures(header: Any) -> dict[int, str]:
    return {
        int(item.ROINumber): str(item.get("ROIName", "")).strip()
        for item in header.get("StructureSetROISequence", [])
    }


def _chosen(found: dict[int, str], reference: LabelReference) -> tuple[dict[int, int], list[str]]:
    """Value of each number of a segment, and names of those that are no labels."""
    by_name = {
        name.strip().casefold(): value
        for name, value in zip(reference.names, reference.values, strict=False)
        if value
    }
    chosen = {
        number: by_name[name.casefold()]
        for number, name in found.items()
        if name.casefold() in by_name
    }
    others = [name for number, name in found.items() if number not in chosen]
    if not chosen and found:
        raise DatasetError(
            f"none of its segments ({', '.join(others[:SHOWN])}) is named as a label of "
            f"dataset.json ({', '.join(reference.names[1:])}): name them alike"
        )
    return chosen, others


def _segment_masks(
    file: Path, chosen: dict[int, int], to_index: NDArray[np.float64], shape: tuple[int, ...]
) -> dict[int, NDArray[np.bool_]]:
    """Where each value is, of a segmentation."""
    header = pydicom.dcmread(file, force=True)
    masks = {value: np.zeros(shape, dtype=bool) for value in chosen.values()}
    if "PerFrameFunctionalGroupsSequence" not in header:
        raise DatasetError("its frames have no places (functional groups)")
    pixels = np.asarray(header.pixel_array).reshape(-1, int(header.Rows), int(header.Columns))
    kind = header.get("SegmentationType", "BINARY")
    half = int(header.get("MaximumFractionalValue", 1)) / 2 if kind == "FRACTIONAL" else 0.5
    for frame, group in zip(
        frames_of(file, header), header.PerFrameFunctionalGroupsSequence, strict=True
    ):
        plane = pixels[frame.number]
        if kind == "LABELMAP":
            parts_of_plane = {number: plane == number for number in chosen}
        else:
            number = int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
            parts_of_plane = {number: plane >= half} if number in chosen else {}
        for number, marked in parts_of_plane.items():
            if marked.any():
                i, j, k = _voxels_of(frame, marked, to_index, shape)
                masks[chosen[number]][i, j, k] = True
    return masks


def _voxels_of(
    frame: Frame,
    marked: NDArray[np.bool_],
    to_index: NDArray[np.float64],
    shape: tuple[int, ...],
) -> NDArray[np.int64]:
    """Voxels of the image that the marked pixels of a frame are, `(3, n)`."""
    rows, columns = np.nonzero(marked)
    along, down = frame.orientation[:3] * frame.pixel[1], frame.orientation[3:] * frame.pixel[0]
    places = frame.position + columns[:, None] * along + rows[:, None] * down
    exact = places @ to_index[:3, :3].T + to_index[:3, 3]
    index = np.rint(exact).astype(np.int64)
    if np.abs(exact - index).max() > ON_GRID:
        raise DatasetError(
            f"its frame {frame.number + 1} lies on another grid than the image: resample it to "
            "that grid, for example in 3D Slicer"
        )
    if (index < 0).any() or (index >= np.array(shape)).any():
        raise DatasetError(f"its frame {frame.number + 1} reaches beyond the image")
    return index.T


def _contour_masks(
    header: Any, chosen: dict[int, int], to_index: NDArray[np.float64], shape: tuple[int, ...]
) -> dict[int, NDArray[np.bool_]]:
    """Where each value is, of a structure set."""
    masks = {value: np.zeros(shape, dtype=bool) for value in chosen.values()}
    for item in header.get("ROIContourSequence", []):
        number = int(item.ReferencedROINumber)
        if number not in chosen:
            continue
        for contour in item.get("ContourSequence", []):
            if contour.ContourGeometricType not in CLOSED:
                continue
            points = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
            index = points @ to_index[:3, :3].T + to_index[:3, 3]
            k = int(np.rint(index[:, 2].mean()))
            if np.abs(index[:, 2] - k).max() > ON_SLICE or not 0 <= k < shape[2]:
                raise DatasetError(
                    f"a contour of structure {number} lies in no slice of the image: is it the "
                    "series that the structures were drawn on?"
                )
            # a hole is a contour inside another
            masks[chosen[number]][:, :, k] ^= filled(index[:, :2], shape[:2])
    return masks


def filled(polygon: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Voxels whose centres lie inside a polygon, by the even-odd rule.

    Args:
        polygon: Its corners as indices of voxels, `(n, 2)`.
        shape: Grid of the slice.
    """
    start, end = polygon, np.roll(polygon, -1, axis=0)
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    # lines j that an edge crosses: the lower end belongs to it and the upper one does not
    first = np.clip(np.ceil(low), 0, shape[1]).astype(int)
    last = np.clip(np.ceil(high), 0, shape[1]).astype(int)
    counts = last - first
    edge = np.repeat(np.arange(len(polygon)), counts)
    line = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    share = (line - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
    changes = np.zeros((shape[0] + 1, shape[1]), dtype=np.int32)
    np.add.at(changes, (np.clip(np.ceil(crossing), 0, shape[0]).astype(int), line), 1)
    return np.asarray(np.cumsum(changes, axis=0)[:-1] % 2 == 1)
