"""Data folders as they are shared: Medical Segmentation Decathlon and nnU-Net (v1 and v2).

Both have `imagesTr`, `labelsTr` and `dataset.json`. Files are of any format that is read; nnU-Net's
`file_ending` says which files are meant. In the Decathlon an image is one file
`CASE.nii.gz`, with the channels as a 4th axis; in nnU-Net each channel is a file
`CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ...; `file_names` says which names are channels.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from training.config import MissingChannels
from training.data.raw.case_list import ListedCase, read_case_list
from training.data.raw.dataset_channels import (
    channels_problem,
    lacking_line,
    may_lack_channels,
    present_channels,
    read_channels,
    without_any,
)
from training.data.raw.dataset_labels import read_labels
from training.data.raw.file_names import (
    ALL_ENDINGS,
    CaseFiles,
    by_stem,
    file_problem,
    group_by_case,
    image_files,
    image_problem,
)
from training.data.raw.formats.file_format import ENDINGS, image_stem, split_name
from training.data.raw.labelled_classes import labelled_file, read_labelled
from training.errors import DatasetError, reason_of
from training.local_path import MISSING, folder_problem

DATASET_JSON = "dataset.json"
IMAGES = "imagesTr"
LABELS = "labelsTr"

Modality = Literal["CT", "MR"]


@dataclass(frozen=True)
class RawCase:
    """One labelled case: its files.

    Attributes:
        case_id: Its name.
        images: Its image files: one, or one a channel.
        label: Its label map.
        channels: Number of the channel that each image file is, where the case lacks others;
            None where it has all.
        labelled: The foreground classes that it is labelled for; None for all.
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path
    channels: tuple[int, ...] | None = None
    labelled: tuple[int, ...] | None = None


@dataclass(frozen=True)
class RawDataset:
    """A folder of labelled cases.

    Attributes:
        folder: The folder.
        name: Its name by dataset.json, or the folder's.
        labels: Name of each class, background first.
        label_values: Value of each class in the label files, 0 first; they may have gaps.
        channels: Name of each channel.
        cases: All labelled cases, by name.
        warnings: What is there and not used, and what is missing and allowed to be.
        ignore: Values in the label files of voxels that are left out.
        regions: Values of each of nnU-Net's regions; None where classes are exclusive.
        regions_class_order: Value that is written for each region.
        missing_channels: Whether cases may lack channels.
        labelled_file: The file that says for which classes cases are labelled, if there is one.
    """

    folder: Path
    name: str
    labels: tuple[str, ...]
    label_values: tuple[int, ...]
    channels: tuple[str, ...]
    cases: tuple[RawCase, ...]
    warnings: tuple[str, ...] = ()
    ignore: tuple[int, ...] = ()
    regions: Mapping[str, tuple[int, ...]] | None = None
    regions_class_order: tuple[int, ...] | None = None
    missing_channels: bool = False
    labelled_file: Path | None = None

    def channels_of(self, case: RawCase) -> Sequence[int]:
        """Numbers of the channels that a case has."""
        return range(len(self.channels)) if case.channels is None else case.channels

    def class_of(self, value: int | None) -> int | None:
        """The class that has a value in the label files; None for no value."""
        return None if value is None else self.label_values.index(value)

    @property
    def is_partly_labelled(self) -> bool:
        """Whether a case is labelled for some classes only."""
        return any(case.labelled is not None for case in self.cases)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modality of each channel: CT has absolute intensities, all else is treated as MR."""
        return tuple("CT" if re.match(r"CT\b", name.upper()) else "MR" for name in self.channels)


def read_layout(folder: Path, missing_channels: MissingChannels | None = None) -> RawDataset:
    """Read a folder in Decathlon or nnU-Net layout.

    Where `dataset.json` lists the cases (`training`, in the Decathlon and nnU-Net v1), those
    alone are used, and `RawDataset.warnings` says what else is there. Where it gives the files of
    each case (`dataset`, in nnU-Net v2), those are taken from wherever they are.

    Args:
        folder: The folder.
        missing_channels: Whether a case may lack channels; what `dataset.json` says by default.

    Raises:
        DatasetError: for all that is missing or does not fit, by file.
    """
    dataset, problems = survey_layout(folder, missing_channels)
    if problems:
        raise DatasetError.of(folder, problems)
    if not dataset.cases:
        raise DatasetError(
            f"the data in {folder} are empty: {IMAGES} holds no image{_others(folder)}"
        )
    return dataset


def survey_layout(
    folder: Path, missing_channels: MissingChannels | None = None
) -> tuple[RawDataset, list[str]]:
    """The cases of a folder whose files are all there, and what is wrong with the others.

    Args:
        folder: The folder.
        missing_channels: Whether a case may lack channels; what `dataset.json` says by default.

    Returns:
        The data, perhaps without a case, and a line for each problem, by file.

    Raises:
        DatasetError: if there is no folder, or its `dataset.json` cannot be used.
    """
    if (problem := folder_problem(folder)) is not None:
        where = "there is no data folder" if problem == "this folder is missing" else "the data"
        what = "" if problem == "this folder is missing" else f" {problem}"
        raise DatasetError(
            f"{where} {folder}{what}: give one with `--data-dir` or `data_dir`, in "
            "Medical Segmentation Decathlon or nnU-Net layout, or `phantom` for the embedded data"
        )
    source = folder / DATASET_JSON
    description = _read_description(source)
    labels = read_labels(description, source)
    channels = read_channels(description, source)
    allowed = may_lack_channels(description, source, missing_channels)
    problems: list[str] = []
    warnings: tuple[str, ...] = ()
    if isinstance(description.get("dataset"), dict):
        found = _of_files(folder, description["dataset"], len(channels), problems)
    else:
        found, warnings = _of_folders(folder, description, len(channels), problems)
    warnings += _miscounted(description, len(found))
    cases = [case for case in found if _fits(case, channels, problems, allowed=allowed)]
    problems += _shared_images(cases)
    raw_cases = tuple(case.as_raw(len(channels)) for case in cases)
    present = [case.channels for case in raw_cases]
    problems += without_any(present, channels)
    if line := lacking_line(present, channels):
        warnings = (*warnings, line)
    known = [case.case_id for case in found]
    labelled = read_labelled(description, folder, labels.names, known, problems)
    name = str(description.get("name") or folder.name)
    dataset = RawDataset(
        folder,
        name,
        labels.names,
        labels.values,
        channels,
        tuple(replace(case, labelled=labelled.get(case.case_id)) for case in raw_cases),
        warnings,
        labels.ignore,
        labels.regions,
        labels.regions_class_order,
        allowed,
        labelled_file(description, folder),
    )
    return dataset, problems


@dataclass(frozen=True)
class _FoundFiles:
    """Files that belong to one case, judged by their names."""

    case_id: str
    images: CaseFiles
    label: Path

    def as_raw(self, channels: int) -> RawCase:
        present = present_channels(self.images, channels)
        return RawCase(self.case_id, self.images.paths, self.label, present)


def _of_files(
    folder: Path, given: Mapping[str, Any], channels: int, problems: list[str]
) -> list[_FoundFiles]:
    """The cases whose files dataset.json gives one by one, as nnU-Net v2 may (`dataset`).

    A file that is null is a channel that the case lacks.
    """
    found = []
    for case_id, files in sorted(given.items()):
        images = files.get("images") if isinstance(files, dict) else None
        label = files.get("label") if isinstance(files, dict) else None
        plain = Path(case_id).name == case_id
        if not (plain and images and isinstance(images, list) and isinstance(label, str)):
            problems.append(
                f"{folder / DATASET_JSON}: `dataset` must map names of cases to `images`, a list "
                f"of files, and `label`, but has {case_id!r}: {files!r}"
            )
            continue
        present = {index: str(image) for index, image in enumerate(images) if image is not None}
        if not present or (len(images) not in (1, channels) and len(present) < channels):
            problems.append(
                f"{folder / DATASET_JSON}: `dataset` gives {case_id} {len(present)} images, but "
                f"there are {channels} channels: write null for one that is missing"
            )
            continue
        paths = tuple(folder / image for image in present.values())
        numbers = tuple(present) if len(images) > 1 else None
        found.append(_FoundFiles(case_id, CaseFiles(paths, numbers), folder / label))
    return found


def _of_folders(
    folder: Path, description: Mapping[str, Any], channels: int, problems: list[str]
) -> tuple[list[_FoundFiles], tuple[str, ...]]:
    """The cases in `imagesTr` and `labelsTr`, those that are listed if some are; and warnings."""
    ending = _file_ending(description, folder / DATASET_JSON)
    label_files, label_notes = _files(folder / LABELS, ending, problems)
    images, image_notes = _files(folder / IMAGES, ending, problems)
    if problems:
        return [], ()
    notes = (*image_notes, *label_notes)
    listed = read_case_list(description, folder / DATASET_JSON, problems)
    if listed is None:
        return _paired(folder, images, label_files, channels, problems), notes
    found = _of_list(folder, listed, images, label_files, channels, problems)
    return found, (*notes, *_not_listed(folder, images, label_files, found))


def _paired(
    folder: Path,
    images: Mapping[str, Path],
    label_files: Mapping[str, Path],
    channels: int,
    problems: list[str],
) -> list[_FoundFiles]:
    """All images with their label maps."""
    of_cases = group_by_case(images, channels, label_files)
    found = []
    for case_id in sorted({*of_cases, *label_files}):
        if case_id not in label_files:
            name = f"{LABELS}/{case_id}{_ending(label_files)}"
            problems.append(f"{of_cases[case_id].paths[0]}: no label map {name}")
        elif case_id not in of_cases:
            name = f"{IMAGES}/{case_id}{_ending(images)}"
            problems.append(f"{label_files[case_id]}: no image {name}")
        else:
            found.append(_FoundFiles(case_id, of_cases[case_id], label_files[case_id]))
    return found


def _of_list(
    folder: Path,
    listed: Sequence[ListedCase],
    images: Mapping[str, Path],
    label_files: Mapping[str, Path],
    channels: int,
    problems: list[str],
) -> list[_FoundFiles]:
    """The cases that dataset.json lists."""
    by_channels = group_by_case(images, channels, label_files)
    found: dict[str, _FoundFiles] = {}
    for item in listed:
        label = folder / item.label
        case_id = image_stem(label)
        if case_id is None:
            problems.append(f"{folder / DATASET_JSON}: `training` lists {item.label}, no image")
            continue
        if case_id in found:
            problems.append(f"{folder / DATASET_JSON}: `training` lists {case_id} twice")
            continue
        if 1 < len(item.images) < channels:
            problems.append(
                f"{label}: `training` in {DATASET_JSON} lists {len(item.images)} images, but there "
                f"are {channels} channels"
            )
            continue
        files = item.image_files(folder, case_id, by_channels, images)
        if not os.path.lexists(label):
            label = label_files.get(case_id, label)
        if files is None:
            named = ", ".join(item.images)
            problems.append(f"{label}: no image {named}, which {DATASET_JSON} lists")
            continue
        if not os.path.lexists(label):
            problems.append(f"{files.paths[0]}: no label map {item.label}, as it is listed")
            continue
        found[case_id] = _FoundFiles(case_id, files, label)
    return [found[case_id] for case_id in sorted(found)]


def _not_listed(
    folder: Path,
    images: Mapping[str, Path],
    label_files: Mapping[str, Path],
    found: Sequence[_FoundFiles],
) -> tuple[str, ...]:
    """Say which files are there that dataset.json does not list."""
    used = {path.name for case in found for path in (*case.images.paths, case.label)}
    left = {
        name: sorted(path.name for path in files.values() if path.name not in used)
        for name, files in ((IMAGES, images), (LABELS, label_files))
    }
    return tuple(
        f"{folder / name}: {_counted(files)} not used, since `training` in {DATASET_JSON} does not "
        f"list them: {', '.join(files[:5])}{', ...' if len(files) > 5 else ''}"
        for name, files in left.items()
        if files
    )


def _counted(files: Sequence[str]) -> str:
    return "1 file is" if len(files) == 1 else f"{len(files)} files are"


def _shared_images(cases: Sequence[_FoundFiles]) -> list[str]:
    """Images that are those of two cases, which a split could put on two sides."""
    owners: dict[Path, str] = {}
    problems = []
    for case in cases:
        for path in case.images.paths:
            owner = owners.setdefault(path, case.case_id)
            if owner != case.case_id:
                problems.append(f"{path}: is the image of {owner} and of {case.case_id}")
    return problems


def _others(folder: Path) -> str:
    """Which other files are where the images should be."""
    names = [path.name for path in (folder / IMAGES).iterdir() if not path.name.startswith(".")]
    if not names:
        return ""
    return f" ({ALL_ENDINGS}), but {len(names)} others such as {min(names)}: convert them"


def _miscounted(description: Mapping[str, Any], cases: int) -> tuple[str, ...]:
    """Say that dataset.json counts other cases than there are."""
    declared = description.get("numTraining")
    if not isinstance(declared, int) or declared == cases:
        return ()
    return (f"{DATASET_JSON} says numTraining: {declared}, but there are {cases} cases",)


def _fits(
    case: _FoundFiles, channels: Sequence[str], problems: list[str], *, allowed: bool
) -> bool:
    """Whether the files of a case are all there; notes why not."""
    before = len(problems)
    paths = case.images.paths
    if (wrong := channels_problem(case.images, channels, allowed=allowed)) is not None:
        problems.append(wrong)
    for path in (*paths, case.label):
        if (problem := image_problem(path)) is not None:
            problems.append(f"{path}: {problem}")
    return len(problems) == before


def _read_description(path: Path) -> Mapping[str, Any]:
    problem = file_problem(path)
    if problem == MISSING:
        raise DatasetError(
            f"{path.parent} has no {DATASET_JSON}: it must be a folder in Medical Segmentation "
            f"Decathlon or nnU-Net layout ({IMAGES}, {LABELS}, {DATASET_JSON})"
        )
    if problem is not None:
        raise DatasetError(f"{path}: {problem}")
    try:
        description = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON: {reason_of(error)}") from error
    if not isinstance(description, dict):
        raise DatasetError(f"{path}: must hold a JSON object")
    return description


def _file_ending(description: Mapping[str, Any], path: Path) -> str | None:
    """nnU-Net's `file_ending`; None where it is not given."""
    ending = description.get("file_ending")
    if ending is None or (isinstance(ending, str) and ending.lower() in ENDINGS):
        return ending
    raise DatasetError(
        f"{path}: `file_ending` must be one of {', '.join(ENDINGS)}, but is {ending!r}"
    )


def _ending(files: Mapping[str, Path]) -> str:
    """What the names of files end in."""
    split = split_name(next(iter(files.values())).name) if files else None
    return ".nii.gz" if split is None else split[1]


def _files(
    folder: Path, ending: str | None, problems: list[str]
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Image files of a folder by stem, and which are not used; notes why there are none."""
    try:
        found = image_files(folder, ending)
        files = by_stem(found.files)
    except DatasetError as error:
        problems.append(str(error))
        return {}, ()
    if not found.others:
        return files, ()
    names = [path.name for path in found.others]
    return files, (
        f"{folder}: {_counted(names)} of another format than the {len(files)} that are used, and "
        f"left out: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''} (`file_ending` in "
        f"{DATASET_JSON} says which are meant)",
    )
