"""Data folders as they are shared: Medical Segmentation Decathlon and nnU-Net (v1 and v2).

Both have `imagesTr`, `labelsTr` and `dataset.json`. In the Decathlon an image is one file
`CASE.nii.gz`, with the channels as a 4th axis; in nnU-Net each channel is a file
`CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ...
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from training.data.errors import DatasetError

DATASET_JSON = "dataset.json"
IMAGES = "imagesTr"
LABELS = "labelsTr"
NIFTI = (".nii.gz", ".nii")

Modality = Literal["CT", "MR"]


@dataclass(frozen=True)
class RawCase:
    """One labelled case: its files."""

    case_id: str
    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True)
class RawDataset:
    """A folder of labelled cases.

    Attributes:
        folder: The folder.
        name: Its name by dataset.json, or the folder's.
        labels: Name of each label value, background first.
        channels: Name of each channel.
        cases: All labelled cases, by name.
    """

    folder: Path
    name: str
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    cases: tuple[RawCase, ...]

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Modality of each channel: CT has absolute intensities, all else is treated as MR."""
        return tuple("CT" if re.match(r"CT\b", name.upper()) else "MR" for name in self.channels)


def read_layout(folder: Path) -> RawDataset:
    """Read a folder in Decathlon or nnU-Net layout.

    Raises:
        DatasetError: for all that is missing or does not fit, by file.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"there is no data folder {folder}: give one with `--data-dir` or `data_dir`, in "
            "Medical Segmentation Decathlon or nnU-Net layout, or `phantom` for the embedded data"
        )
    description = _read_description(folder / DATASET_JSON)
    problems: list[str] = []
    labels = _labels(description, folder / DATASET_JSON)
    channels = _channels(description, folder / DATASET_JSON)
    images = _files(folder / IMAGES, problems)
    label_files = _files(folder / LABELS, problems)
    if problems:
        raise DatasetError.of(folder, problems)
    image_files = _by_case(images, set(label_files), len(channels))
    cases = []
    for case_id in sorted({*image_files, *label_files, *_declared(description)}):
        found = image_files.get(case_id, ())
        if case_id not in label_files:
            where = found[0] if found else folder / IMAGES / f"{case_id}.nii.gz"
            problems.append(f"{where}: no label map {LABELS}/{case_id}.nii.gz")
        elif not found:
            problems.append(f"{label_files[case_id]}: no image {IMAGES}/{case_id}.nii.gz")
        elif len(found) not in (1, len(channels)):
            problems.append(
                f"{found[0]}: {len(found)} channel files, but {DATASET_JSON} declares "
                f"{len(channels)} ({', '.join(channels)})"
            )
        else:
            cases.append(RawCase(case_id, found, label_files[case_id]))
    if problems:
        raise DatasetError.of(folder, problems)
    if not cases:
        raise DatasetError(f"the data in {folder} are empty: {IMAGES} holds no NIfTI file")
    name = str(description.get("name") or folder.name)
    return RawDataset(folder, name, labels, channels, tuple(cases))


def _read_description(path: Path) -> Mapping[str, Any]:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path.parent} has no {DATASET_JSON}: it must be a folder in Medical Segmentation "
            f"Decathlon or nnU-Net layout ({IMAGES}, {LABELS}, {DATASET_JSON})"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(description, dict):
        raise DatasetError(f"{path}: must hold a JSON object")
    return description


def _labels(description: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """Label names by value; the Decathlon maps value to name, nnU-Net v2 name to value."""
    given = description.get("labels")
    if not isinstance(given, dict) or len(given) < 2:
        raise DatasetError(f"{path}: `labels` must name background and at least one structure")
    by_value: dict[int, str] = {}
    for key, value in given.items():
        number, name = (key, value) if str(key).isdecimal() else (value, key)
        if not str(number).isdecimal():
            raise DatasetError(
                f"{path}: `labels` maps {key!r} to {value!r}; one of the two must be the label "
                "value, a whole number (nnU-Net's regions are not supported)"
            )
        by_value[int(number)] = str(name)
    if sorted(by_value) != list(range(len(given))):
        raise DatasetError(
            f"{path}: label values must be 0 to {len(given) - 1} without gaps, but are "
            f"{sorted(by_value)}"
        )
    return tuple(by_value[value] for value in sorted(by_value))


def _channels(description: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    given = description.get("channel_names", description.get("modality"))
    if not isinstance(given, dict) or sorted(given) != [str(i) for i in range(len(given))]:
        raise DatasetError(
            f"{path}: `modality` (or nnU-Net's `channel_names`) must name each channel, "
            'e.g. {"0": "CT"}'
        )
    if not given:
        raise DatasetError(f"{path}: `modality` names no channel")
    return tuple(str(given[str(index)]) for index in range(len(given)))


def _declared(description: Mapping[str, Any]) -> set[str]:
    """Cases that dataset.json lists; nnU-Net v2 lists none."""
    listed = description.get("training", [])
    names = [item.get("label", "") for item in listed if isinstance(item, dict)]
    return {stem for name in names if (stem := _stem(Path(str(name)))) is not None}


def _files(folder: Path, problems: list[str]) -> dict[str, Path]:
    """NIfTI files of a folder by stem, without those that macOS hides in archives."""
    if not folder.is_dir():
        problems.append(f"{folder}: this folder is missing")
        return {}
    return {
        stem: path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and (stem := _stem(path)) is not None
    }


def _stem(path: Path) -> str | None:
    for suffix in NIFTI:
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return None


def _by_case(
    images: Mapping[str, Path], labelled: set[str], num_channels: int
) -> dict[str, tuple[Path, ...]]:
    """Image files of each case: one by its own name, or one a channel by `_0000` names."""
    cases: dict[str, tuple[Path, ...]] = {}
    for stem, path in images.items():
        match = re.fullmatch(r"(.+)_(\d{4})", stem)
        if stem in labelled or match is None:
            cases[stem] = (path,)
        elif int(match[2]) < num_channels or num_channels == 1:
            cases[match[1]] = (*cases.get(match[1], ()), path)
    return cases
