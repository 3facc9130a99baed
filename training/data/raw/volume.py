"""Volumes read from image files, with the checks that every use of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.formats.opened_file import OpenedFile
from training.data.raw.header import VolumeHeader, check_same_grid, open_volume, unreadable
from training.data.raw.label_values import shown_values, to_classes, unknown_values
from training.errors import DatasetError

ROUNDING = 1e-3
"""Distance from a whole number up to which a label is taken to be one that was rounded."""


@dataclass(frozen=True)
class Volume:
    """Voxels in the order of the file, with their place in the world.

    Attributes:
        data: Voxels, `(channel, i, j, k)` of an image and `(i, j, k)` of a label map.
        affine: Voxel indices to millimetres in RAS+, `(4, 4)`.
        warnings: What is doubtful about the file, by file.
    """

    data: NDArray[Any]
    affine: NDArray[np.float64]
    warnings: tuple[str, ...] = ()

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
            on another grid than the first; whatever the reason is.
    """
    channels: list[NDArray[np.float32]] = []
    headers: list[VolumeHeader] = []
    for path in paths:
        opened, header = open_volume(path)
        voxels = _read(opened)
        stacked = _as_channels(path, voxels)
        if headers:
            check_same_grid(path, header, paths[0], headers[0])
        channels.append(stacked)
        headers.append(header)
    warnings = [warning for header in headers for warning in header.warnings]
    data = channels[0] if len(channels) == 1 else np.concatenate(channels)
    return Volume(data, headers[0].affine, tuple(warnings))


def voxels_in_header(path: Path) -> int:
    """Number of voxels by the file's header, channels included; 0 if it cannot be read."""
    try:
        _, header = open_volume(path)
    except DatasetError:
        return 0
    return int(np.prod(header.shape)) * header.channels


def read_label(
    path: Path,
    label_values: Sequence[int],
    ignore: Sequence[int] = (),
    *,
    image: Path | None = None,
    names: Sequence[str] | None = None,
) -> Volume:
    """Read a label map as classes `(i, j, k)`, unsigned integers, see `label_dtype`.

    Numbers that are whole but for rounding are rounded.

    Args:
        path: The file.
        label_values: The value in the file of each class, background first.
        ignore: Values of voxels that are left out, see `training.ignored_voxels`.
        image: Its image, on whose grid DICOM-SEG and RTSTRUCT are label maps.
        names: Name of each class, background first, which tell their segments.

    Raises:
        DatasetError: if the file is unreadable, or holds other values.
    """
    opened, header = open_volume(
        path, as_label=True, image=image, names=names or (), values=label_values
    )
    voxels = _read(opened)
    if voxels.ndim == 4 and (
        voxels.shape[3] == 1 or (opened.flat and (voxels == voxels[..., :1]).all())
    ):
        # one channel, or a grey that was saved as red, green and blue
        voxels = voxels[..., 0]
    if voxels.ndim == 4 and opened.flat:
        raise DatasetError(
            f"{path}: its pixels are colours of {voxels.shape[3]} channels, but a label map has "
            "one number a pixel: save it as grey, or with a palette whose index is the label value"
        )
    if voxels.ndim != 3:
        raise DatasetError(f"{path}: a label map has 3 axes, but this has shape {voxels.shape}")
    whole = _whole_numbers(opened, voxels)
    unknown = unknown_values(whole, [*label_values, *ignore] if ignore else label_values)
    if unknown.size:
        declared = shown_values(label_values)
        if ignore:
            declared += f", and {', '.join(map(str, ignore))} to ignore"
        raise DatasetError(
            f"{path}: unknown label {_shown(unknown)}; dataset.json declares {declared}: "
            "name it there in `labels`, or correct the file"
        )
    return Volume(to_classes(whole, label_values, ignore), header.affine, header.warnings)


def _whole_numbers(opened: OpenedFile, voxels: NDArray[Any]) -> NDArray[Any]:
    if voxels.dtype.kind in "iu":
        return voxels
    whole = np.rint(voxels)
    # NaN and infinite values are not whole numbers either
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(voxels - whole) <= ROUNDING)
    if wrong.any():
        raise DatasetError(
            f"{opened.path}: a label must be a whole number, but {np.count_nonzero(wrong)} voxels "
            f"have {_shown(voxels[wrong])}: {_reason_for_parts(opened)}"
        )
    return np.asarray(whole)


def _reason_for_parts(opened: OpenedFile) -> str:
    """Why the values of a label map may be no whole numbers."""
    if opened.dtype.kind in "iu":
        slope, inter = opened.scaling
        return (
            f"its header scales what is stored, by scl_slope {slope:g} and scl_inter {inter:g}; "
            "save it with 1 and 0"
        )
    return "was it interpolated? Resample label maps by nearest neighbour"


def _shown(values: NDArray[Any]) -> str:
    """The first values as text, with all their digits."""
    different = np.unique(values)
    shown = [
        np.format_float_positional(value, trim="-") if value.dtype.kind == "f" else str(value)
        for value in different[:5]
    ]
    return ", ".join(shown) + (", ..." if len(different) > 5 else "")


def _as_channels(path: Path, voxels: NDArray[Any]) -> NDArray[np.float32]:
    """Voxels as float32 `(channel, i, j, k)`, all finite."""
    try:
        # values that are too large for float32 become infinite, and are counted so
        with np.errstate(over="ignore"):
            voxels = voxels.astype(np.float32)
        stacked = np.moveaxis(voxels, 3, 0) if voxels.ndim == 4 else voxels[None]
        not_finite = int(np.count_nonzero(~np.isfinite(stacked)))
    except MemoryError as error:
        raise unreadable(path, error) from error
    if not_finite:
        raise DatasetError(f"{path}: {not_finite} voxels are NaN or infinite")
    return stacked


def _read(opened: OpenedFile) -> NDArray[Any]:
    try:
        return opened.read()
    except Exception as error:
        # gzip, zlib, numpy, nibabel and ITK each have types of their own, and memory may end
        raise unreadable(opened.path, error) from error
