"""What names say about a channel: the modality or MR sequence that a word stands for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib

from training.data.raw.formats.file_format import image_stem

_WORDS = {
    "CT": ("ct",),
    "PET": ("pet", "pt"),
    "MR": ("mr", "mri"),
    "T1": ("t1", "t1w", "t1n"),
    "T1 with contrast": ("t1c", "t1ce", "t1gd", "t1post"),
    "T2": ("t2", "t2w"),
    "FLAIR": ("flair", "t2f", "t2flair"),
    "PD": ("pd", "pdw"),
    "DWI": ("dwi",),
    "ADC": ("adc",),
    "SWI": ("swi",),
}
"""Words for a channel, without capitals, spaces and signs: those of nnU-Net's data sets, BIDS and
BraTS. `MR` is any sequence."""

_KINDS = {word: kind for kind, words in _WORDS.items() for word in words}

_OF_DICOM = {"CT": "CT", "MR": "MR", "PT": "PET"}
"""Kinds by DICOM's attribute Modality, which converters such as dcm2niix write beside a file."""


def kind_of(name: str) -> str | None:
    """The kind that a channel's name stands for, None for a name that is not known.

    Example:
        >>> kind_of("T1w"), kind_of("t2-FLAIR"), kind_of("CT (venous)"), kind_of("scan")
        ('T1', 'FLAIR', 'CT', None)
    """
    if re.match(r"CT\b", name.strip().upper()):
        return "CT"
    return _KINDS.get(re.sub(r"[^a-z0-9]", "", name.lower()))


def contradict(one: str | None, other: str | None) -> bool:
    """Whether two kinds cannot be the same channel."""
    if one is None or other is None or one == other:
        return False
    # any sequence is an MR image
    return not ("MR" in (one, other) and not {"CT", "PET"} & {one, other})


def kind_in_file_name(path: Path) -> str | None:
    """The kind that the end of a file's name stands for, as in BIDS: `sub-01_T1w.nii.gz`.

    A channel's number after it, `_0000`, does not count.
    """
    stem = re.sub(r"_\d{4}$", "", image_stem(path) or path.name)
    head, _, last = stem.rpartition("_")
    return kind_of(last) if head else None


def kind_in_header(path: Path) -> str | None:
    """`MR` for a NIfTI file whose description has an echo time, as dcm2niix and SPM write it.

    Tools that copy a header copy that too, so that it is not certain.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return None
    try:
        description = bytes(nib.load(path).header["descrip"].item())
    except Exception:
        # errors of the file are reported where its voxels are read
        return None
    return "MR" if re.search(rb"\bTE=\s*0*[.]?0*[1-9]", description) else None


def kind_in_sidecar(path: Path) -> tuple[Path, str] | None:
    """The kind by the JSON file of an image's name, as BIDS and dcm2niix have it, and that file."""
    stem = image_stem(path)
    sidecar = path.with_name(f"{stem}.json")
    if stem is None or not sidecar.is_file():
        return None
    try:
        values = json.loads(sidecar.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return None
    kind = _OF_DICOM.get(str(values.get("Modality"))) if isinstance(values, dict) else None
    return None if kind is None else (sidecar, kind)
