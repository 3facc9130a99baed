"""Which files and folders are DICOM, told by their first bytes, without a library."""

from __future__ import annotations

from pathlib import Path

PREAMBLE = 128
"""Bytes before the mark `DICM`."""

DICOMDIR = "DICOMDIR"
"""The index of a medium, which holds no image."""

LOOKED_AT = 50
"""Files of a folder that are looked at before it is said to hold no DICOM."""

FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
"""Groups that a file without the mark begins with, little endian."""


VOLUMES = (".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd")
"""Endings of other files with volumes."""

OTHERS = (
    *(*VOLUMES, ".img", ".raw", ".zraw", ".gz"),
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
)
"""Endings of files that are no DICOM, whatever their first bytes are."""


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with or without the mark `DICM`."""
    first = _beginning(path)
    # without the mark, a group and an element
    return _is_marked(first) or (first[:2] in FIRST_GROUPS and first[3:4] == b"\x00")


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, by name; no hidden ones, and no DICOMDIR."""
    return [path for path in sorted(_candidates(folder)) if is_dicom(path)]


def is_series(path: Path) -> bool:
    """Whether a path is a folder of DICOM files.

    A label map that lies among the slices makes no difference, nor does a stray DICOM file among
    volumes of other formats.
    """
    try:
        if not path.is_dir():
            return False
        volumes = sum(file.name.lower().endswith(VOLUMES) for file in path.iterdir())
        candidates = _candidates(path)
    except OSError:
        return False
    if not volumes:
        return any(is_dicom(file) for file in candidates[:LOOKED_AT])
    return sum(_is_marked(_beginning(file)) for file in candidates) > volumes


def _candidates(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if not path.name.startswith(".")
        and path.name.upper() != DICOMDIR
        and not path.name.lower().endswith(OTHERS)
        and path.is_file()
    ]


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + 4)
    except OSError:
        return b""


def _is_marked(first: bytes) -> bool:
    return first[PREAMBLE:] == b"DICM"
