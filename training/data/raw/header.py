"""Headers of NIfTI files: grid, place and type of voxels, checked before voxels are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from training.data.raw.file_names import file_problem, load_nifti
from training.errors import DatasetError, reason_of

SMALLEST_SPACING, LARGEST_SPACING = 0.01, 100.0
"""Spacings in mm below and above which a header is taken to be wrong: a micro-CT has 0.02 mm,
a scout view slices of 50 mm; 1 mm written as metres has 0.001."""

GRID_TOLERANCE = 0.1
"""Share of a voxel by which corners of two grids may differ: what headers are rounded by."""


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


def open_volume(path: Path) -> tuple[Any, VolumeHeader]:
    """Open a file without reading its voxels, and check its header.

    Returns:
        nibabel's image, and what its header says.

    Raises:
        DatasetError: if there is no readable NIfTI file, its voxels are not plain numbers, or
            its grid has no volume, no place or an implausible spacing.
    """
    if (problem := file_problem(path)) is not None:
        raise DatasetError(f"{path}: {problem}")
    try:
        image = load_nifti(path)
        shape = tuple(int(size) for size in image.shape)
        affine = np.asarray(image.affine, dtype=np.float64)
        stored = image.get_data_dtype()
    except Exception as error:
        # a damaged header makes nibabel, gzip and numpy fail in ways of many types
        raise unreadable(path, error) from error
    if stored.fields is not None:
        raise DatasetError(
            f"{path}: its voxels are colours ({'/'.join(stored.fields)}), not numbers: save it "
            "with one number a voxel"
        )
    if stored.kind not in "iufb":
        raise DatasetError(f"{path}: voxels of type {stored} are neither intensities nor labels")
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DatasetError(f"{path}: a volume is needed, but this has shape {shape}")
    _check_affine(path, image, affine)
    channels = shape[3] if len(shape) == 4 else 1
    grid = VolumeHeader((shape[0], shape[1], shape[2]), channels, affine)
    return image, VolumeHeader(grid.shape, channels, affine, _doubts(path, image, grid))


def unreadable(path: Path, error: Exception) -> DatasetError:
    """The error for a file that could not be read, whatever the reason."""
    if isinstance(error, MemoryError):
        return DatasetError(f"{path}: does not fit into memory")
    if path.is_file() and not path.stat().st_size:
        return DatasetError(f"{path}: not a readable NIfTI file (it is empty)")
    return DatasetError(f"{path}: not a readable NIfTI file ({reason_of(error)})")


def check_same_grid(path: Path, grid: Grid, other_path: Path, other: Grid) -> None:
    """Check that two volumes have the same shape, and each corner in the same place.

    Raises:
        DatasetError: naming both files and what differs.
    """
    # image and label map of a case often have one name in two folders
    name = "/".join(other_path.parts[-2:]) if other_path.name == path.name else other_path.name
    if grid.shape != other.shape:
        raise DatasetError(f"{path}: shape {grid.shape} differs from {other.shape} of {name}")
    moved = _corners(grid.shape, grid.affine) - _corners(other.shape, other.affine)
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


def _corners(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places of the 8 corners of a grid in mm, `(3, 8)`."""
    corners = np.indices((2, 2, 2)).reshape(3, 8) * np.array(shape)[:, None]
    return np.asarray(affine[:3, :3] @ corners + affine[:3, 3:])


def _check_affine(path: Path, image: Any, affine: NDArray[np.float64]) -> None:
    finite = bool(np.isfinite(affine).all())
    spacing = voxel_sizes(affine)
    plausible = spacing.min() >= SMALLEST_SPACING and spacing.max() <= LARGEST_SPACING
    if not finite or (plausible and abs(np.linalg.det(affine[:3, :3])) < 1e-6 * np.prod(spacing)):
        raise DatasetError(f"{path}: its affine is not invertible:\n{affine}")
    if plausible:
        return
    unit = image.header.get_xyzt_units()[0] if isinstance(image, nib.Nifti1Image) else "unknown"
    hint = f"its header gives {unit}s, but mm are read" if unit in {"meter", "micron"} else ""
    raise DatasetError(
        f"{path}: a spacing of {spacing_text(spacing)} mm is implausible: an axis must have "
        f"{SMALLEST_SPACING:g} to {LARGEST_SPACING:g} mm; correct the header"
        f"{f' ({hint})' if hint else ''}"
    )


def spacing_text(spacing: Any) -> str:
    """A spacing as text, `0.7 x 0.7 x 5`."""
    return " x ".join(f"{size:.6g}" for size in spacing)


def _doubts(path: Path, image: Any, grid: Grid) -> tuple[str, ...]:
    """Warnings about the position of a volume."""
    if not isinstance(image, nib.Nifti1Image):
        return ()
    sform = image.get_sform(coded=True)
    try:
        qform = image.get_qform(coded=True)
        usable = qform[0] is None or bool(np.isfinite(qform[0]).all())
    except ValueError:
        # the quaternion is not valid
        usable = False
    if not usable:
        return (f"{path}: the qform of its header is damaged; the sform is taken",)
    if sform[1] == 0 and qform[1] == 0:
        return (
            f"{path}: its header has neither sform nor qform: left and right are taken as "
            f"nibabel does ({''.join(nib.aff2axcodes(grid.affine))})",
        )
    if qform[0] is None:
        return _unlike_pixdim(path, image, grid)
    if sform[0] is None:
        return ()
    moved = _corners(grid.shape, qform[0]) - _corners(grid.shape, sform[0])
    voxels = float(np.abs(np.linalg.solve(grid.affine[:3, :3], moved)).max())
    if voxels <= GRID_TOLERANCE:
        return ()
    return (
        f"{path}: sform and qform of its header disagree by up to {voxels:.3g} voxels; the sform "
        "is taken",
    )


def _unlike_pixdim(path: Path, image: Any, grid: Grid) -> tuple[str, ...]:
    """Warning about a pixdim of the header that differs from the spacing of the sform."""
    stated = np.array(image.header.get_zooms()[:3])
    # 1 x 1 x 1 is what tools write that leave it out
    if (stated == 1).all() or (np.abs(stated / voxel_sizes(grid.affine) - 1) <= 0.1).all():
        return ()
    return (
        f"{path}: its header gives voxels of {spacing_text(stated)} mm (pixdim), but "
        f"{spacing_text(voxel_sizes(grid.affine))} mm in its sform; the sform is taken",
    )


SPACING_RATIO = 10.0
"""Factor between a case's spacing and the data's median from which its header must be wrong."""


def is_far_off(spacing: Sequence[float], median: Sequence[float]) -> bool:
    """Whether a spacing is so far from that of the data that a header must be wrong."""
    ratios = np.array(spacing) / median
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
