"""NIfTI, by nibabel: `.nii.gz`, `.nii` and the pair `.hdr` and `.img`.

A label map has the geometry of its image and no other header field of it.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from training.data.raw.formats.geometry import GRID_TOLERANCE, corners, spacing_text
from training.data.raw.formats.opened_file import OpenedFile
from training.durable_write import durable_file
from training.errors import DatasetError

PLACE = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)
"""Fields of a NIfTI header that place the voxels."""

SPATIAL_UNIT = 0x07
"""Bits of `xyzt_units` that are the unit of length; the others are that of time."""

SCANNER = 1
"""Code of an sform whose coordinates are those of the scanner."""

CHUNK = 2**24
"""Bytes of a file that are read at once."""


def open_file(path: Path, *, as_label: bool = False) -> OpenedFile:
    """Open a file without reading its voxels.

    Raises:
        Exception: of many types, if it is not a readable NIfTI file.
    """
    del as_label
    image = load_nifti(path)
    stored = tuple(int(size) for size in image.shape)
    shape = _volume_shape(path, stored)
    # a damaged header may have an affine of another type
    affine = np.asarray(image.affine, dtype=np.float64)
    unit = image.header.get_xyzt_units()[0]

    def scaled() -> tuple[float, float]:
        return getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)

    return OpenedFile(
        path,
        shape,
        affine,
        image.get_data_dtype(),
        lambda: np.asanyarray(image.dataobj).reshape(shape),
        flat=len(stored) == 2,
        scaling=scaled(),
        unit=unit if unit in {"meter", "micron"} else "",
        native=image.header,
        doubts=lambda: _doubts(path, image, shape[:3]),
    )


def load_nifti(path: Path) -> Any:
    """The image of a file, also where its ending is of mixed case, such as `.Nii.gz`.

    Raises:
        Exception: of many types, if it is not a readable NIfTI file.
    """
    try:
        image = nib.load(path)
    except FileNotFoundError:
        if not path.is_file():
            raise
    else:
        if not isinstance(image, nib.Nifti1Pair):
            raise DatasetError(
                "it is an Analyze file, which does not say what is left and right: save it as NIfTI"
            )
        return image
    # nibabel opens the name in lower case
    header = {"image": FileHolder(str(path))}
    with suppress(HeaderDataError):
        return nib.Nifti1Image.from_file_map(header)
    return nib.Nifti2Image.from_file_map(header)


def parts(path: Path) -> list[Path]:
    """The files that an image is in: the header and the voxels of a pair."""
    if path.name.lower().endswith(".hdr"):
        voxels = [path.with_suffix(ending) for ending in (".img", ".IMG")]
        return [path, next((file for file in voxels if file.exists()), voxels[0])]
    return [path]


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    try:
        image = load_nifti(path)
        end: int = (
            image.dataobj.offset + int(np.prod(image.shape)) * image.get_data_dtype().itemsize
        )
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            read = 0
            while content := file.read(CHUNK):
                read += len(content)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error):
        return False
    return read >= end


def write_label(
    label: NDArray[np.unsignedinteger[Any]],
    source: OpenedFile,
    output: Path,
    *,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write a label map in the geometry of an image, whole or not at all.

    The header is a new one: it takes over sform, qform and their codes, the size of a voxel and
    its unit as a NIfTI image has them. Descriptions, display ranges, intents and extensions, which
    may name a patient or mean nothing for labels, are left behind. A NIfTI-2 image has a NIfTI-2
    label map. Of an image of another format it has the affine, as sform and where possible as
    qform.

    Args:
        label: Label map on the image's grid, `(i, j, k)`.
        source: The image.
        output: File to write, compressed if its name ends in `.gz`; its folder must be there.
        names: Not held by this format.

    Raises:
        OSError: if the file cannot be written; one that was there stays.
    """
    del names
    voxels = label[..., 0] if source.flat else label
    header, kind = header_like(source, voxels.dtype, voxels.shape)
    content = kind(voxels, header.get_best_affine(), header).to_bytes()
    if output.name.lower().endswith(".gz"):
        # without a time, so that the same label map is the same file
        content = gzip.compress(content, compresslevel=1, mtime=0)
    with durable_file(output) as file:
        file.write(content)


def header_like(
    source: OpenedFile, dtype: np.dtype[Any], shape: Sequence[int]
) -> tuple[Any, type[Any]]:
    """A new header with the place and the unit of an image, and the kind of image that has it.

    Args:
        source: The image.
        dtype: Type of the voxels of the new file.
        shape: Its grid, that of the image; a fourth axis may follow.
    """
    of_image = source.native
    kind = nib.Nifti2Image if isinstance(of_image, nib.Nifti2Header) else nib.Nifti1Image
    header = kind.header_class()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    if not isinstance(of_image, nib.Nifti1Header):
        header.set_sform(source.affine, code=SCANNER)
        header.set_qform(source.affine, code=SCANNER)
        header.set_xyzt_units("mm")
        return header, kind
    for field in PLACE:
        header[field] = of_image[field]
    # the first entry is the handedness of the qform
    header["pixdim"][:4] = of_image["pixdim"][:4]
    header["xyzt_units"] = int(of_image["xyzt_units"]) & SPATIAL_UNIT
    return header, kind


def _volume_shape(path: Path, stored: tuple[int, ...]) -> tuple[int, ...]:
    """Axes i, j, k and perhaps channels; ITK writes vectors as a 5th axis after a time of 1."""
    if len(stored) == 2:
        return (*stored, 1)
    if len(stored) >= 5 and stored[3] == 1 and all(size == 1 for size in stored[5:]):
        return stored[:3] if stored[4] == 1 else (*stored[:3], stored[4])
    if len(stored) >= 5:
        raise DatasetError(
            f"a volume or its channels are needed, but this has shape {stored}, a series in time "
            "of vectors: save one time of it"
        )
    return stored


def _doubts(path: Path, image: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Warnings about the position of a volume."""
    affine = image.affine
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
            f"nibabel does ({''.join(nib.aff2axcodes(affine))})",
        )
    if qform[0] is None:
        return _unlike_pixdim(path, image)
    if sform[0] is None:
        return ()
    moved = corners(shape, qform[0]) - corners(shape, sform[0])
    voxels = float(np.abs(np.linalg.solve(affine[:3, :3], moved)).max())
    if voxels <= GRID_TOLERANCE:
        return ()
    return (
        f"{path}: sform and qform of its header disagree by up to {voxels:.3g} voxels; the sform "
        "is taken",
    )


def _unlike_pixdim(path: Path, image: Any) -> tuple[str, ...]:
    """Warning about a pixdim of the header that differs from the spacing of the sform."""
    stated = np.array(image.header.get_zooms()[:3])
    spacing = voxel_sizes(image.affine)[: len(stated)]
    # 1 x 1 x 1 is what tools write that leave it out
    if (stated == 1).all() or (np.abs(stated / spacing - 1) <= 0.1).all():
        return ()
    return (
        f"{path}: its header gives voxels of {spacing_text(stated)} mm (pixdim), but "
        f"{spacing_text(spacing)} mm in its sform; the sform is taken",
    )
