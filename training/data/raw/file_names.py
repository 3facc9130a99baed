"""Names of image files: which are NIfTI, and to which case and channel each belongs.

One rule serves training and prediction:

- A NIfTI file ends in `.nii.gz` or `.nii`, in capitals or not. A hidden file, such as macOS's
  `._a.nii.gz`, is not one.
- `a.nii` beside `a.nii.gz` are two files of one name: refused.
- Four digits at the end of a name, `CASE_0001.nii.gz`, are a channel, as nnU-Net writes them,
  only where the files can be channels. With several channels those of a case are numbered below
  their number, and no file of it has a 4th axis. With one channel every file of the folder ends
  in `_0000`. Elsewhere the digits belong to the name: `amos_0002.nii.gz` is the case `amos_0002`.
- In training the label maps decide first: an image whose whole name has a label map is that case.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
from nibabel.fileholders import FileHolder
from nibabel.spatialimages import HeaderDataError

from training.errors import DatasetError
from training.local_path import absence, folder_problem

NIFTI = (".nii.gz", ".nii")

_NUMBERED = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class CaseFiles:
    """Image files of one case.

    Attributes:
        paths: The files, by channel.
        numbers: Number of the channel of each; None for one file with a name of its own.
    """

    paths: tuple[Path, ...]
    numbers: tuple[int, ...] | None = None

    def missing(self, channels: int) -> list[Path]:
        """Channel files that the case needs and does not have."""
        if self.numbers is None:
            return []
        stem, ending = _split(self.paths[0].name) or ("", "")
        base = stem.rpartition("_")[0]
        absent = set(range(channels)) - set(self.numbers)
        return [self.paths[0].with_name(f"{base}_{number:04}{ending}") for number in sorted(absent)]


def channel_numbers(paths: Sequence[Path], channels: int) -> tuple[int, ...] | None:
    """Which channel each image file of a case is, by the four digits at the end of its name.

    Args:
        paths: Image files of one case.
        channels: Channels that a case has.

    Returns:
        A number below `channels` for each file, ascending; None where the names do not say so.
    """
    numbers = []
    for path in paths:
        match = _NUMBERED.fullmatch(nifti_stem(path) or path.name)
        if match is None or int(match[2]) >= channels:
            return None
        numbers.append(int(match[2]))
    return tuple(numbers) if numbers == sorted(set(numbers)) else None


def nifti_stem(path: Path) -> str | None:
    """Name of a NIfTI file without its ending; None for a hidden file, and for all others."""
    split = _split(path.name)
    return None if split is None else split[0]


def nifti_files(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, by name.

    Raises:
        DatasetError: if the folder cannot be listed, with the reason.
    """
    if (problem := folder_problem(folder)) is not None:
        raise DatasetError(f"{folder}: {problem}")
    try:
        return sorted(path for path in folder.iterdir() if nifti_stem(path) is not None)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror or error})") from error


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their name without its ending.

    Raises:
        DatasetError: naming two files of one name.
    """
    files: dict[str, Path] = {}
    problems = []
    for path in paths:
        stem = nifti_stem(path) or path.name
        if stem in files and files[stem] != path:
            problems.append(
                f"{files[stem]} and {path.name} are two files of the name {stem}: remove one"
            )
        files.setdefault(stem, path)
    if problems:
        raise DatasetError("\n  ".join(problems))
    return files


def group_by_case(
    files: Mapping[str, Path], channels: int, labelled: Collection[str] | None = None
) -> dict[str, CaseFiles]:
    """Image files of each case, by the rule above.

    Args:
        files: All NIfTI files of a folder by stem; which names are channels depends on all.
        channels: Channels that a case has.
        labelled: Stems of the label maps, in training.

    Raises:
        DatasetError: if one case has a file of its own name and channel files as well.
    """
    known = set() if labelled is None else set(labelled)
    numbered: dict[str, dict[int, Path]] = {}
    cases: dict[str, CaseFiles] = {}
    one_channel = all(stem.endswith("_0000") for stem in files)
    for stem, path in files.items():
        match = _NUMBERED.fullmatch(stem)
        if match is None or stem in known:
            cases[stem] = CaseFiles((path,))
        else:
            numbered.setdefault(match[1], {})[int(match[2])] = path
    for base, found in numbered.items():
        if base in known or _are_channels(found, channels, one_channel):
            if base in cases:
                first = next(iter(found.values()))
                raise DatasetError(
                    f"{cases[base].paths[0]} and {first.name} are both images of the case {base}: "
                    "remove one"
                )
            order = sorted(found)
            cases[base] = CaseFiles(tuple(found[number] for number in order), tuple(order))
        else:
            cases |= {f"{base}_{number:04}": CaseFiles((path,)) for number, path in found.items()}
    return cases


def load_nifti(path: Path) -> Any:
    """The image of a file, also where its ending is of mixed case, such as `.Nii.gz`.

    Raises:
        Exception: of many types, if it is not a readable NIfTI file.
    """
    try:
        return nib.load(path)
    except FileNotFoundError:
        if not path.is_file():
            raise
    # nibabel opens the name in lower case
    header = {"image": FileHolder(str(path))}
    with suppress(HeaderDataError):
        return nib.Nifti1Image.from_file_map(header)
    return nib.Nifti2Image.from_file_map(header)


def file_problem(path: Path) -> str | None:
    """Why there is no readable file at a path, None if there is one."""
    if (problem := absence(path)) is not None:
        return problem
    if path.is_dir():
        return "is a folder, but must be a file"
    if not path.is_file():
        return "is not a regular file"
    if not os.access(path, os.R_OK):
        return "cannot be read: permission denied"
    return None


def _split(name: str) -> tuple[str, str] | None:
    """Stem and ending of the name of a NIfTI file."""
    if name.startswith("."):
        return None
    for ending in NIFTI:
        if name.lower().endswith(ending) and len(name) > len(ending):
            return name[: -len(ending)], name[-len(ending) :]
    return None


def _are_channels(found: Mapping[int, Path], channels: int, one_channel: bool) -> bool:
    if channels == 1:
        return one_channel
    return max(found) < channels and not any(_has_channels(path) for path in found.values())


def _has_channels(path: Path) -> bool:
    """Whether a file has channels in it, by its header."""
    try:
        shape = load_nifti(path).shape
    except Exception:
        # errors of the file are reported where its voxels are read
        return False
    return len(shape) == 4 and shape[3] > 1
