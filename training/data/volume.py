"""Volumes read from NIfTI files, with the checks that every use of them needs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from training.data.errors import DatasetError

READ_ERRORS = (OSError, EOFError, ValueError, ImageFileError, zlib.error)


@dataclass(frozen=True)
class Volume:
    """Voxels in the order of the file, with their place in the world.

    Attributes:
        data: Voxels, `(channel, i, j, k)` of an image and `(i, j, k)` of a label map.
        affine: Voxel indices to millimetres in RAS+, `(4, 4)`.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of the grid."""
        i, j, k = self.data.shape[-3:]
        return i, j, k


def read_image(paths: Sequence[Path]) -> Volume:
    """Read the image of a case: one file a channel, or one with the channels as its 4th axis.

    Returns:
        A float32 volume `(channel, i, j, k)`.

    Raises:
        DatasetError: naming the file that is unreadable, of the wrong shape, not finite, or
            on another grid than the first.
    """
    channels = []
    affine = None
    for path in paths:
        voxels, this_affine = _read(path)
        if not np.issubdtype(voxels.dtype, np.number) or np.iscomplexobj(voxels):
            raise DatasetError(f"{path}: voxels of type {voxels.dtype} are no intensities")
        voxels = voxels.astype(np.float32)
        stacked = np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels[None]
        not_finite = int(np.count_nonzero(~np.isfinite(stacked)))
        if not_finite:
            raise DatasetError(f"{path}: {not_finite} voxels are NaN or infinite")
        if affine is None:
            affine = this_affine
        else:
            check_same_grid(
                path, Volume(stacked, this_affine), paths[0], Volume(channels[0], affine)
            )
        channels.append(stacked)
    assert affine is not None
    return Volume(np.concatenate(channels), affine)


def voxels_in_header(path: Path) -> int:
    """Number of voxels by the file's header, channels included; 0 if it cannot be read."""
    try:
        return int(np.prod(nib.load(path).shape))
    except READ_ERRORS:
        return 0


def read_label(path: Path, num_classes: int) -> Volume:
    """Read a label map as uint8 `(i, j, k)`.

    Raises:
        DatasetError: if the file is unreadable, or holds other values than 0 to
            `num_classes - 1`.
    """
    voxels, affine = _read(path)
    if voxels.ndim == 4 and voxels.shape[3] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise DatasetError(f"{path}: a label map has 3 axes, but this has shape {voxels.shape}")
    unknown = [f"{value:g}" for value in np.unique(voxels) if value not in range(num_classes)]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise DatasetError(
            f"{path}: unknown label {shown}; dataset.json declares 0 to {num_classes - 1}"
        )
    return Volume(voxels.astype(np.uint8), affine)


def check_same_grid(path: Path, volume: Volume, other_path: Path, other: Volume) -> None:
    """Check that two volumes have the same shape and place.

    Raises:
        DatasetError: naming both files and what differs.
    """
    if volume.shape != other.shape:
        raise DatasetError(
            f"{path}: shape {volume.shape} differs from {other.shape} of {other_path.name}"
        )
    # a tenth of a millimetre at the far corner is rounding in the header; more is another grid
    corner = np.array([*volume.shape, 1.0])
    moved = float(np.abs((volume.affine - other.affine) @ corner).max())
    turned = float(np.abs((volume.affine - other.affine)[:, 3]).max())
    if max(moved, turned) > 0.1:
        raise DatasetError(
            f"{path}: its affine differs from that of {other_path.name} "
            f"by up to {max(moved, turned):.3g} mm: the two are not on the same grid"
        )


def _read(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    try:
        image = nib.load(path)
        voxels = np.asanyarray(image.dataobj)
        affine = np.asarray(image.affine, dtype=np.float64)
    except READ_ERRORS as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DatasetError(f"{path}: not a readable NIfTI file ({reason})") from error
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise DatasetError(f"{path}: a volume is needed, but this has shape {voxels.shape}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DatasetError(f"{path}: its affine is not invertible:\n{affine}")
    return voxels, affine
