"""Headers of image files: grid, place and type of voxels, checked before voxels are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from training.data.raw.file_names import file_problem
from training.data.raw.formats.file_format import FORMATS, known_format
from training.data.raw.formats.geometry import GRID_TOLERANCE, corners, spacing_text
from training.data.raw.formats.opened_file import OpenedFile
from training.errors import DatasetError, reason_of

SMALLEST_SPACING, LARGEST_SPACING = 0.01, 100.0
"""Spacings in mm below and above which a header is taken to be wrong: a micro-CT has 0.02 mm,
a scout view slices of 50 mm; 1 mm written as metres has 0.001."""


class Grid(Protocol):
    """Protocol of anything with a shape and an affine."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis."""
        ...

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres in RAS+, `(4, 4)`."""
        ...


@dataclass(frozen=True)
class VolumeHeader:
    """The checked header of a file.

    Attributes:
        shape: Size of the grid.
        channels: Length of the 4th axis, 1 if there is none.
        affine: Voxel indices to millimetres in RAS+, `(4, 4)`.
        warnings: What is doubtful about it, by file.
    """

    shape: tuple[int, int, int]
    channels: int
    affine: NDArray[np.float64]
    warnings: tuple[str, ...] = ()


def open_volume(
    path: Path,
    *,
    as_label: bool = False,
    image: Path | None = None,
    names: Sequence[str] = (),
    values: Sequence[int] = (),
) -> tuple[OpenedFile, VolumeHeader]:
    """Open a file without reading its voxels, and check its header.

    Args:
        path: The file.
        as_label: Whether it is a label map.
        image: Its image, on whose grid DICOM-SEG and RTSTRUCT are label maps.
        names: Name of each class, background first, which tell their segments.
        values: Value of each class in label files.

    Returns:
        The opened file, and what its header says.

    Raises:
        DatasetError: if there is no readable file, its voxels are not plain numbers, or
            its grid has no volume, no place or an implausible spacing.
    """
    module = known_format(path).module
    for part in module.parts(path):
        if (problem := file_problem(part)) is not None:
            whose = "" if part == path else f"its voxels are in {part.name}, which "
            raise DatasetError(f"{path}: {whose}{problem}")
    try:
        if as_label and known_format(path) == FORMATS["dicom"] and _holds_segments(path):
            opened = _open_segments(path, image, names, values)
        else:
            opened = module.open_file(path, as_label=as_label)
    except Exception as error:
        # a damaged header makes nibabel, ITK, gzip and numpy fail in ways of many types
        raise unreadable(path, error) from error
    stored, shape = opened.dtype, opened.shape
    if stored.fields is not None:
        raise DatasetError(
            f"{path}: its voxels are colours ({'/'.join(stored.fields)}), not numbers: save it "
            "with one number a voxel"
        )
    if stored.kind not in "iufb":
        raise DatasetError(f"{path}: voxels of type {stored} are neither intensities nor labels")
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DatasetError(f"{path}: a volume is needed, but this has shape {shape}")
    _check_affine(opened)
    channels = shape[3] if len(shape) == 4 else 1
    grid = (shape[0], shape[1], shape[2])
    return opened, VolumeHeader(grid, channels, opened.affine, opened.doubts())


def _holds_segments(path: Path) -> bool:
    # pydicom may not be installed
    from training.data.raw.formats.dicom_labels import holds_segments

    return holds_segments(path)


def _open_segments(
    path: Path, image: Path | None, names: Sequence[str], values: Sequence[int]
) -> OpenedFile:
    from training.data.raw.formats.dicom_labels import LabelReference, open_segments

    if image is None:
        raise DatasetError("it has no grid of its own, and its image is not known here")
    return open_segments(path, LabelReference(open_volume(image)[0], names, values))


def unreadable(path: Path, error: Exception) -> DatasetError:
    """The error for a file that could not be read, whatever the reason."""
    if isinstance(error, DatasetError):
        return error if str(path) in str(error) else DatasetError(f"{path}: {error}")
    if isinstance(error, MemoryError):
        return DatasetError(f"{path}: does not fit into memory")
    title = known_format(path).title
    if path.is_file() and not path.stat().st_size:
        return DatasetError(f"{path}: not a readable {title} file (it is empty)")
    return DatasetError(f"{path}: not a readable {title} file ({reason_of(error)})")


def check_same_grid(path: Path, grid: Grid, other_path: Path, other: Grid) -> None:
    """Check that two volumes have the same shape, and each corner in the same place.

    Raises:
        DatasetError: naming both files and what differs.
    """
    # image and label map of a case often have one name in two folders
    name = "/".join(other_path.parts[-2:]) if other_path.name == path.name else other_path.name
    if grid.shape != other.shape:
        raise DatasetError(f"{path}: shape {grid.shape} differs from {other.shape} of {name}")
    moved = corners(grid.shape, grid.affine) - corners(other.shape, other.affine)
    in_voxels = np.linalg.solve(other.affine[:3, :3], moved)
    if np.abs(in_voxels).max() <= GRID_TOLERANCE:
        return
    axes, other_axes = (
        "".join(code or "?" for code in nib.aff2axcodes(one.affine)) for one in (grid, other)
    )
    how = f" (its axes are {axes}, those of {name} {other_axes})" if axes != other_axes else ""
    raise DatasetError(
        f"{path}: its affine differs from that of {name} by up to "
        f"{np.linalg.norm(moved, axis=0).max():.3g} mm at a corner, "
        f"{np.abs(in_voxels).max():.3g} voxels: the two are not on the same grid{how}"
    )


def _check_affine(opened: OpenedFile) -> None:
    path, affine = opened.path, opened.affine
    finite = bool(np.isfinite(affine).all())
    spacing = voxel_sizes(affine)
    # one slice may have any thickness: nnU-Net writes 999 mm for pictures
    largest = max(spacing[np.array(opened.shape[:3]) > 1], default=0.0)
    plausible = spacing.min() >= SMALLEST_SPACING and largest <= LARGEST_SPACING
    if not finite or (plausible and abs(np.linalg.det(affine[:3, :3])) < 1e-6 * np.prod(spacing)):
        raise DatasetError(f"{path}: its affine is not invertible:\n{affine}")
    if plausible:
        return
    hint = f"its header gives {opened.unit}s, but mm are read" if opened.unit else ""
    raise DatasetError(
        f"{path}: a spacing of {spacing_text(spacing)} mm is implausible: an axis must have "
        f"{SMALLEST_SPACING:g} to {LARGEST_SPACING:g} mm; correct the header"
        f"{f' ({hint})' if hint else ''}"
    )


SPACING_RATIO = 10.0
"""Factor between a case's spacing and the data's median from which its header must be wrong."""


def is_far_off(
    spacing: Sequence[float], median: Sequence[float], shape: Sequence[int] | None = None
) -> bool:
    """Whether a spacing is so far from that of the data that a header must be wrong.

    Args:
        spacing: Spacing of a case in mm.
        median: That of the data.
        shape: Voxels of the case; along an axis of one voxel any spacing will do.
    """
    ratios = np.array(spacing) / median
    if shape is not None:
        ratios[np.array(shape) == 1] = 1.0
    # headers are rounded
    return bool(max(ratios.max(), 1 / ratios.min()) > 0.999 * SPACING_RATIO)


def orientation_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transform (nibabel's) from the axes of `affine` to `AXES`, `(3, 2)`."""
    source = nib.orientations.io_orientation(affine)
    return np.asarray(nib.orientations.ornt_transform(source, nib.orientations.axcodes2ornt(AXES)))


def spacing_of(
    affine: NDArray[np.float64], orientation: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Voxel spacing in mm along `AXES`."""
    sizes = voxel_sizes(affine)
    depth, height, width = (float(sizes[i]) for i in np.argsort(orientation[:, 0]))
    return depth, height, width


AXES = ("S", "A", "R")
"""Direction in which each axis of a preprocessed volume grows."""
