"""The formats that are read and written, by name, and which one a file has.

A file's format is told by the ending of its name, in capitals or not; hidden files, such as
macOS's `._a.nii.gz`, have none. A folder with DICOM files is a DICOM series.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from training.data.raw.formats.dicom_files import is_series

if TYPE_CHECKING:
    # the command line reads the names of the formats, and waits for no library
    import numpy as np
    from numpy.typing import NDArray

    from training.data.raw.formats.opened_file import OpenedFile


class FormatModule(Protocol):
    """Protocol of the module of a format."""

    def open_file(self, path: Path, *, as_label: bool = False) -> OpenedFile:
        """Open a file without reading its voxels."""
        ...

    def parts(self, path: Path) -> list[Path]:
        """The files that an image is in."""
        ...

    def is_whole(self, path: Path) -> bool:
        """Whether a file can be read to its end."""
        ...

    def write_label(
        self,
        label: NDArray[np.unsignedinteger[Any]],
        source: OpenedFile,
        output: Path,
        *,
        names: Mapping[int, str] | None = None,
    ) -> None:
        """Write a label map in the geometry of an image, whole or not at all."""
        ...


@dataclass(frozen=True)
class FileFormat:
    """A format of files.

    Attributes:
        title: What users call it.
        module_path: Its module, which is imported when a file is read or written.
        endings: Endings of its names, each with that of the label map of such an image.
        writes: Endings that a label map can be written with, the usual one first.
        rank: Files of the lowest rank in a folder are its images, and others are left alone: a
            picture beside volumes is a preview.
    """

    title: str
    module_path: str
    endings: Mapping[str, str]
    rank: int
    writes: tuple[str, ...] = ()

    @property
    def module(self) -> FormatModule:
        """Its module."""
        return cast(FormatModule, import_module(self.module_path))


FORMATS: dict[str, FileFormat] = {
    "nifti": FileFormat(
        "NIfTI",
        "training.data.raw.formats.nifti",
        {".nii.gz": ".nii.gz", ".nii": ".nii.gz", ".hdr": ".nii.gz"},
        0,
        (".nii.gz", ".nii"),
    ),
    "nrrd": FileFormat(
        "NRRD",
        "training.data.raw.formats.itk",
        {".nrrd": ".nrrd", ".nhdr": ".nrrd"},
        1,
        (".nrrd",),
    ),
    "mha": FileFormat(
        "MetaImage",
        "training.data.raw.formats.itk",
        {".mha": ".mha", ".mhd": ".mha"},
        1,
        (".mha",),
    ),
    "dicom": FileFormat("DICOM", "training.data.raw.formats.dicom_series", {".dcm": ".dcm"}, 2),
    "dicom-seg": FileFormat("DICOM-SEG", "training.data.raw.formats.dicom_seg", {}, 2, (".dcm",)),
    "rtstruct": FileFormat("RTSTRUCT", "training.data.raw.formats.rtstruct", {}, 2, (".dcm",)),
    "png": FileFormat("PNG", "training.data.raw.formats.picture", {".png": ".png"}, 3, (".png",)),
    "tiff": FileFormat(
        "TIFF",
        "training.data.raw.formats.picture",
        {".tif": ".tif", ".tiff": ".tiff"},
        3,
        (".tif", ".tiff"),
    ),
    "jpeg": FileFormat(
        "JPEG", "training.data.raw.formats.picture", {".jpg": ".png", ".jpeg": ".png"}, 3
    ),
    "bmp": FileFormat("BMP", "training.data.raw.formats.picture", {".bmp": ".png"}, 3),
}
"""All formats, by the name that `--format` has for them."""

ENDINGS = {ending: name for name, entry in FORMATS.items() for ending in entry.endings}
"""Name of the format of each ending."""

WRITTEN: dict[str, str] = {}
"""Name of the format of each ending that a label map can be written with: of several, the first."""

for _name, _entry in FORMATS.items():
    for _ending in _entry.writes:
        WRITTEN.setdefault(_ending, _name)

OUTPUT_FORMATS = tuple(name for name, entry in FORMATS.items() if entry.writes)
"""Formats of label maps, the choices of `--format`."""


def split_name(name: str) -> tuple[str, str] | None:
    """Stem and ending of the name of an image file; None for a hidden file, and for all others."""
    if name.startswith("."):
        return None
    for ending in ENDINGS:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return None


def image_stem(path: Path) -> str | None:
    """Name of an image without its ending; None for a hidden file, and for all others.

    That of a DICOM series is the name of its folder.
    """
    split = split_name(path.name)
    if split is not None:
        return split[0]
    return (path.name or path.resolve().name) if is_series(path) else None


def format_of(path: Path) -> FileFormat | None:
    """The format of a file by its name; None for a hidden file, and for all others."""
    split = split_name(path.name)
    if split is not None:
        return FORMATS[ENDINGS[split[1].lower()]]
    return FORMATS["dicom"] if is_series(path) else None


def known_format(path: Path) -> FileFormat:
    """The format of a file by its name; NIfTI for a name without a known ending."""
    return format_of(path) or FORMATS["nifti"]


def parts_of(path: Path) -> list[Path]:
    """The files that an image or a label map is in."""
    return known_format(path).module.parts(path)


def label_ending(image: Path, name: str | None = None) -> str:
    """Ending of the label map of an image: of its own format, or of one that is named.

    Args:
        image: The image.
        name: One of `OUTPUT_FORMATS`.
    """
    if name is not None:
        return FORMATS[name].writes[0]
    split = split_name(image.name)
    if split is None:
        return ".dcm" if is_series(image) else ".nii.gz"
    return known_format(image).endings[split[1].lower()]


def written_format(output: Path, name: str | None = None) -> str | None:
    """Name of the format that a label map is written in; None where its ending is of none.

    Args:
        output: The file.
        name: The format that is asked for, of `OUTPUT_FORMATS`, where that is not the first one
            of the ending.
    """
    split = split_name(output.name)
    ending = None if split is None else split[1].lower()
    if name is not None and ending in FORMATS[name].writes:
        return name
    return WRITTEN.get(ending or "")
