"""NRRD and MetaImage, by SimpleITK: `.nrrd`, `.nhdr`, `.mha`, `.mhd`.

ITK has places in LPS+; here they are turned to RAS+, so a volume has the affine that nibabel gives
to the same volume in NIfTI. Components of a vector image are channels, as is a fourth axis.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from training.data.raw.formats.geometry import Place
from training.data.raw.formats.opened_file import OpenedFile
from training.durable_write import durable_file
from training.errors import DatasetError

DTYPES = {
    sitk.sitkUInt8: "u1",
    sitk.sitkInt8: "i1",
    sitk.sitkUInt16: "u2",
    sitk.sitkInt16: "i2",
    sitk.sitkUInt32: "u4",
    sitk.sitkInt32: "i4",
    sitk.sitkUInt64: "u8",
    sitk.sitkInt64: "i8",
    sitk.sitkFloat32: "f4",
    sitk.sitkFloat64: "f8",
    sitk.sitkVectorUInt8: "u1",
    sitk.sitkVectorInt8: "i1",
    sitk.sitkVectorUInt16: "u2",
    sitk.sitkVectorInt16: "i2",
    sitk.sitkVectorUInt32: "u4",
    sitk.sitkVectorInt32: "i4",
    sitk.sitkVectorUInt64: "u8",
    sitk.sitkVectorInt64: "i8",
    sitk.sitkVectorFloat32: "f4",
    sitk.sitkVectorFloat64: "f8",
}
"""Types of numpy of ITK's pixels."""

_DATA_FILE = re.compile(r"^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*(.*?)\s*$", re.I | re.M)

HEADER = 2**16
"""Bytes of a file in which its header is looked for."""


def open_file(path: Path, *, as_label: bool = False) -> OpenedFile:
    """Open a file without reading its voxels.

    Raises:
        DatasetError: if its pixels or axes are not those of a volume.
        OSError: if it cannot be read, with ITK's reason.
    """
    del as_label
    reader = sitk.ImageFileReader()
    # by its name, so that an ending in capitals is read as well
    nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise OSError(reason(error)) from error
    pixel = reader.GetPixelID()
    if pixel not in DTYPES:
        raise DatasetError(
            f"its voxels are {sitk.GetPixelIDValueAsString(pixel)}, neither intensities nor labels"
        )
    size = tuple(int(length) for length in reader.GetSize())
    if len(size) not in {2, 3, 4}:
        raise DatasetError(f"a volume is needed, but this has shape {size}")
    components = int(reader.GetNumberOfComponents())
    if len(size) == 4 and components > 1:
        raise DatasetError(
            f"it has 4 axes {size} of {components} components: save one channel a file"
        )
    place = Place(
        tuple(reader.GetSpacing()),
        tuple(reader.GetOrigin()),
        np.array(reader.GetDirection()).reshape(len(size), len(size)),
    )
    grid = (*size[:3], *([1] if len(size) == 2 else []))
    channels = size[3] if len(size) == 4 else components
    shape = (*grid, channels) if channels > 1 else grid

    def read() -> NDArray[Any]:
        try:
            voxels = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise OSError(
                f"its voxels are damaged, or fewer than it says: {reason(error)}"
            ) from error
        if components > 1:
            # the components are the fastest axis in ITK and the last one in numpy
            voxels = np.moveaxis(voxels, -1, 0)
        return np.asarray(voxels.T.reshape(shape, order="F"))

    return OpenedFile(
        path,
        shape,
        place.affine(),
        np.dtype(DTYPES[pixel]),
        read,
        flat=len(size) == 2,
        native=place,
    )


def parts(path: Path) -> list[Path]:
    """The files that an image is in: the header, and those with the voxels that it names."""
    if not path.name.lower().endswith((".mhd", ".nhdr")):
        return [path]
    try:
        with path.open("rb") as file:
            header = file.read(HEADER).decode("latin-1")
    except OSError:
        return [path]
    found = _DATA_FILE.search(header)
    if found is None or found[1].upper() == "LOCAL":
        return [path]
    if found[1].upper().startswith("LIST"):
        names = header[found.end() :].split("\n")
        return [path, *(path.parent / name.strip() for name in names if name.strip())]
    return [path, *(path.parent / name for name in _numbered(found[1]))]


def is_whole(path: Path) -> bool:
    """Whether a file can be read to its end."""
    try:
        open_file(path).read()
    except (OSError, ValueError):
        return False
    return True


def write_label(
    label: NDArray[np.unsignedinteger[Any]],
    source: OpenedFile,
    output: Path,
    *,
    names: Mapping[int, str] | None = None,
) -> None:
    """Write a label map in the geometry of an image, whole or not at all; compressed.

    Args:
        label: Label map on the image's grid, `(i, j, k)`.
        source: The image.
        output: File to write, `.nrrd` or `.mha`; its folder must be there.
        names: Not held by this format.

    Raises:
        DatasetError: if the image's axes are not orthogonal.
        OSError: if the file cannot be written; one that was there stays.
    """
    del names
    place = source.native if isinstance(source.native, Place) else Place.of_affine(source.affine)
    if source.flat:
        place = place.flat()
    voxels = label[..., 0] if source.flat else label
    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T))
    axes = voxels.ndim
    image.SetSpacing(place.spacing[:axes])
    image.SetOrigin(place.origin[:axes])
    image.SetDirection(place.direction[:axes, :axes].ravel().tolist())
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as folder:
        # ITK chooses the format by the ending, and writes no other way than by a name
        written = Path(folder, f"label{output.suffix.lower()}")
        try:
            sitk.WriteImage(image, str(written), useCompression=True)
        except RuntimeError as error:
            raise OSError(f"{output} cannot be written: {reason(error)}") from error
        with durable_file(output) as file, written.open("rb") as content:
            while chunk := content.read(2**24):
                file.write(chunk)


def reason(error: BaseException) -> str:
    """What ITK says, in one line, without the place in its source."""
    text = str(error).partition("ITK ERROR: ")[2] or str(error)
    line = re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", text.strip())
    # NRRD's library gives the cause last
    lines = [part.strip() for part in line.splitlines() if part.strip()]
    return lines[-1] if "[nrrd]" in line else lines[0]


def _numbered(value: str) -> list[str]:
    """The files that a pattern stands for: `slice%03d.raw 1 10 1`; one name without a pattern."""
    found = re.fullmatch(r"(\S*%\d*d\S*)\s+(\d+)\s+(\d+)(?:\s+(\d+))?.*", value)
    if found is None:
        return [value]
    first, last, step = int(found[2]), int(found[3]), int(found[4] or 1)
    return [found[1] % number for number in range(first, last + 1, max(step, 1))]
