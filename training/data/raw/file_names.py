"""Names of image files: which are images, and to which case and channel each belongs.

One rule serves training and prediction:

- An image ends as its format does, `.nii.gz` or `.nrrd`, in capitals or not
  (`training.data.raw.formats.file_format`). A hidden file, such as macOS's `._a.nii.gz`, is not
  one.
- A folder with DICOM files is an image too, of one series, with the name of the folder.
- The images of a folder are its files of one rank: NIfTI, or else NRRD and MetaImage, or else
  DICOM, or else pictures; a picture beside volumes is a preview. Or those of the `file_ending` of
  dataset.json.
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
from dataclasses import dataclass
from pathlib import Path

from training.data.raw.formats.dicom_files import is_series
from training.data.raw.formats.file_format import (
    ENDINGS,
    image_stem,
    known_format,
    split_name,
)
from training.errors import DatasetError
from training.local_path import absence, folder_problem

ALL_ENDINGS = ", ".join(f"*{ending}" for ending in ENDINGS)
"""What names of images end in, for messages."""

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
        name = self.paths[0].name
        stem, ending = split_name(name) or (name, "")
        base = stem.rpartition("_")[0]
        absent = set(range(channels)) - set(self.numbers)
        return [self.paths[0].with_name(f"{base}_{number:04}{ending}") for number in sorted(absent)]

    def in_another_format(self, channels: int) -> list[str]:
        """Names of files that would be channels which the case lacks, were they of its format."""
        absent = {image_stem(path): path.name for path in self.missing(channels)}
        if not absent:
            return []
        return [
            path.name
            for path in sorted(self.paths[0].parent.iterdir())
            # a list of files may say that one which is there is not the case's
            if absent.get(image_stem(path), path.name) != path.name
        ]

    def lacks(self, channels: int) -> str:
        """What the case lacks, in words; empty if it lacks nothing."""
        absent = self.missing(channels)
        if not absent:
            return ""
        others = self.in_another_format(channels)
        hint = (
            f" (there is {', '.join(others)}: channels of a case must be of one format, convert it)"
            if others
            else ""
        )
        return f"{', '.join(str(path) for path in absent)}{hint}"


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
        match = _NUMBERED.fullmatch(image_stem(path) or path.name)
        if match is None or int(match[2]) >= channels:
            return None
        numbers.append(int(match[2]))
    return tuple(numbers) if numbers == sorted(set(numbers)) else None


@dataclass(frozen=True)
class FolderImages:
    """The image files of a folder, by name.

    Attributes:
        files: Those that are used.
        others: Those of other formats, which are not.
    """

    files: tuple[Path, ...]
    others: tuple[Path, ...] = ()


def image_files(folder: Path, ending: str | None = None) -> FolderImages:
    """The images of a folder, by the rule above.

    Args:
        folder: The folder.
        ending: What their names end in, where that is known; if no file does, the rule holds.

    Raises:
        DatasetError: if the folder cannot be listed, with the reason.
    """
    if (problem := folder_problem(folder)) is not None:
        raise DatasetError(f"{folder}: {problem}")
    try:
        found = sorted(path for path in folder.iterdir() if image_stem(path) is not None)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed ({error.strerror or error})") from error
    used = [path for path in found if ending and path.name.lower().endswith(ending.lower())]
    if not used:
        first = min((known_format(path).rank for path in found), default=0)
        used = [path for path in found if known_format(path).rank == first]
    return FolderImages(tuple(used), tuple(path for path in found if path not in set(used)))


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their name without its ending.

    Raises:
        DatasetError: naming two files of one name.
    """
    files: dict[str, Path] = {}
    problems = []
    for path in paths:
        stem = image_stem(path) or path.name
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
        files: All image files of a folder by stem; which names are channels depends on all.
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


def image_problem(path: Path) -> str | None:
    """Why there is no readable image at a path, a file or a DICOM series; None if there is one."""
    return None if is_series(path) else file_problem(path)


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


def _are_channels(found: Mapping[int, Path], channels: int, one_channel: bool) -> bool:
    if channels == 1:
        return one_channel
    return max(found) < channels and not any(_has_channels(path) for path in found.values())


def _has_channels(path: Path) -> bool:
    """Whether a file has channels in it, by its header."""
    if is_series(path):
        return False
    try:
        shape = known_format(path).module.open_file(path).shape
    except Exception:
        # errors of the file are reported where its voxels are read
        return False
    return len(shape) == 4 and shape[3] > 1
