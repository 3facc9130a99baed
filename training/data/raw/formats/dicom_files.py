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


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, with or without the mark `DICM`."""
    try:
        with path.open("rb") as file:
            first = file.read(PREAMBLE + 4)
    except OSError:
        return False
    if first[PREAMBLE:] == b"DICM":
        return True
    # a group and an element, of a file that was stored without the mark
    return first[:2] in FIRST_GROUPS and first[3:4] == b"\x00"


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder, by name; no hidden ones, and no DICOMDIR."""
    return [path for path in sorted(_candidates(folder)) if is_dicom(path)]


def is_series(path: Path) -> bool:
    """Whether a path is a folder with DICOM files in it."""
    try:
        return path.is_dir() and any(
            is_dicom(file) for file, _ in zip(_candidates(path), range(LOOKED_AT), strict=False)
        )
    except OSError:
        return False


def _candidates(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and path.name.upper() != DICOMDIR and path.is_file()
    ]
