"""Writes label maps as NIfTI, with the geometry of an image and no other header field."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from training.data.raw.file_names import load_nifti
from training.durable_write import durable_file

PLACE = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)
"""Fields of a NIfTI header that place the voxels."""

SPATIAL_UNIT = 0x07
"""Bits of `xyzt_units` that are the unit of length; the others are that of time."""


def write_label_map(label: NDArray[np.unsignedinteger[Any]], image: Path, output: Path) -> None:
    """Write a label map in the geometry of an image, whole or not at all.

    The header is a new one: it takes over sform, qform and their codes, the size of a voxel and
    its unit as the image has them. Descriptions, display ranges, intents and extensions, which
    may name a patient or mean nothing for labels, are left behind. A NIfTI-2 image has a NIfTI-2
    label map.

    Args:
        label: Label map on the image's grid.
        image: The image, `.nii` or `.nii.gz`.
        output: File to write, compressed if its name ends in `.gz`; its folder must be there.

    Raises:
        OSError: if the file cannot be written; one that was there stays.
    """
    header, kind = header_like(image, label.dtype, label.shape)
    content = kind(label, header.get_best_affine(), header).to_bytes()
    if output.name.lower().endswith(".gz"):
        # without a time, so that the same label map is the same file
        content = gzip.compress(content, compresslevel=1, mtime=0)
    with durable_file(output) as file:
        file.write(content)


def header_like(image: Path, dtype: np.dtype[Any], shape: Sequence[int]) -> tuple[Any, type[Any]]:
    """A new header with the place and the unit of an image, and the kind of image that has it.

    Args:
        image: The image, `.nii` or `.nii.gz`.
        dtype: Type of the voxels of the new file.
        shape: Its grid, that of the image; a fourth axis may follow.
    """
    source = load_nifti(image).header
    kind = nib.Nifti2Image if isinstance(source, nib.Nifti2Header) else nib.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    for field in PLACE:
        header[field] = source[field]
    # the first entry is the handedness of the qform
    header["pixdim"][:4] = source["pixdim"][:4]
    header["xyzt_units"] = int(source["xyzt_units"]) & SPATIAL_UNIT
    return header, kind
