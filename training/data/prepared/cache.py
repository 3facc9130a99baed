"""The preprocessed cache: arrays of every case, mapped by all who read them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from training.data.prepared.preprocessing import Preprocessing
from training.data.prepared.stored_array import StoredArray, array_file, open_array
from training.data.raw.label_values import label_dtype
from training.data.raw.layouts import RawCase
from training.errors import DatasetError
from training.partial_labels import labelled_mask

FORMAT_VERSION = 3
MANIFEST = "dataset.json"

LABELLED = "labelled"
"""Name of the voxels of any class, background included, among the centres of patches."""


class CaseEntry(BaseModel):
    """One preprocessed case: its files, its grid, its labels, and what is doubtful about it.

    Attributes:
        images: Its image files.
        label: Its label map.
        shape: Its grid, channels first.
        voxel_counts: Voxels of each class.
        warnings: What is doubtful about its files.
        channels: Numbers of the channels that it has, None for all; the others are 0.
        labelled: The foreground classes that it is labelled for, None for all.
    """

    model_config = ConfigDict(extra="forbid")

    images: list[Path]
    label: Path
    shape: tuple[int, int, int, int]
    voxel_counts: list[int]
    warnings: list[str] = []
    channels: list[int] | None = None
    compressed: dict[str, int] = {}
    """Bytes of each compressed array; empty where they are stored as they are."""
    labelled: list[int] | None = None

    def as_raw(self, case_id: str) -> RawCase:
        """The files that it was made from."""
        channels, labelled = (
            None if numbers is None else tuple(numbers)
            for numbers in (self.channels, self.labelled)
        )
        return RawCase(case_id, tuple(self.images), self.label, channels, labelled)

    def is_complete(self, arrays: Path, case_id: str) -> bool:
        """Whether every array of the case is there with its full size."""
        return (arrays / f"{case_id}.foreground.npz").is_file() and all(
            path.is_file() and path.stat().st_size >= size
            for path, size in self._sizes(arrays, case_id)
        )

    def _sizes(self, arrays: Path, case_id: str) -> list[tuple[Path, int]]:
        """The files of the arrays, and the bytes that each has at least."""
        voxels = int(np.prod(self.shape[1:]))
        label_bytes = label_dtype(len(self.voxel_counts)).itemsize
        sizes = {"image": 4 * voxels * self.shape[0], "label": label_bytes * voxels}
        compressed = bool(self.compressed)
        return [
            (arrays / array_file(f"{case_id}.{kind}", compressed=compressed), size)
            for kind, size in (self.compressed or sizes).items()
        ]


class PreprocessedDataset(BaseModel):
    """A split of preprocessed data: all cases, and which of them are for what.

    Splits of the same data share their arrays, so that another fold costs nothing.

    Attributes:
        folder: The folder of the split.
        arrays: The folder of the arrays, relative to it.
        name: Name of the dataset.
        labels: Name of each class, background first; `preprocessing` has their values.
        channels: Name of each channel.
        modality: `CT`, `MR`, or both joined by `+`.
        fingerprint: Of the files, the preprocessing settings and the split.
        preprocessing: The settings, which an exported model takes along.
        splits: Case names of `train`, `val` and `test`.
        cases: Every case by name.
        warnings: What is doubtful about the data, a line each.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    folder: Path
    arrays: Path
    name: str
    labels: list[str]
    channels: list[str]
    modality: str
    fingerprint: str
    preprocessing: Preprocessing
    splits: dict[str, list[str]]
    cases: dict[str, CaseEntry]
    warnings: list[str] = []

    @classmethod
    def load(cls, folder: Path) -> PreprocessedDataset:
        """Open a preprocessed folder.

        Raises:
            DatasetError: if it is not a preprocessed folder, or is damaged.
        """
        path = Path(folder) / MANIFEST
        try:
            values = json.loads(path.read_text())
            # the cache can be moved
            return cls(**{**values, "folder": folder})
        except FileNotFoundError as error:
            raise DatasetError(
                f"{folder} is not a preprocessed folder (it has no {MANIFEST}): make one with "
                "training.data.prepare_dataset(data_dir, config)"
            ) from error
        except (OSError, json.JSONDecodeError, ValidationError, TypeError) as error:
            raise DatasetError(
                f"{folder} is not a preprocessed folder: its {MANIFEST} cannot be read as one; "
                "make one with training.data.prepare_dataset(data_dir, config)"
            ) from error

    @property
    def num_classes(self) -> int:
        """Number of labels, background included."""
        return len(self.labels)

    @property
    def has_ignored(self) -> bool:
        """Whether there may be voxels that are left out, see `training.ignored_voxels`."""
        return bool(self.preprocessing.ignore)

    @property
    def is_partly_labelled(self) -> bool:
        """Whether a case is labelled for some classes only, see `training.partial_labels`."""
        return any(case.labelled is not None for case in self.cases.values())

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing in mm (depth, height, width)."""
        return self.preprocessing.spacing

    @property
    def median_shape(self) -> tuple[float, float, float]:
        """Median size of a case in voxels (depth, height, width)."""
        shapes = [entry.shape[1:] for entry in self.cases.values()]
        depth, height, width = np.median(shapes, axis=0).tolist()
        return depth, height, width

    def voxels(self, split: str) -> float:
        """Voxels of all cases of a split."""
        return float(sum(np.prod(self.cases[name].shape[1:]) for name in self.splits[split]))

    def voxel_counts(self, split: str) -> list[int]:
        """Voxels of each class over the cases of a split."""
        counts = np.zeros(self.num_classes, dtype=np.int64)
        for case in self.splits[split]:
            counts += self.cases[case].voxel_counts
        return [int(count) for count in counts]

    def known_counts(self, split: str) -> list[list[float]]:
        """Voxels of each class in each case of a split; nan where it is not labelled for it."""
        return [
            [
                float(count) if labelled else math.nan
                for count, labelled in zip(entry.voxel_counts, mask.tolist(), strict=True)
            ]
            for entry in (self.cases[case] for case in self.splits[split])
            for mask in (labelled_mask(entry.labelled, self.num_classes),)
        ]

    def channels_of(self, case_id: str) -> Sequence[int]:
        """Numbers of the channels that a case has; the others are 0 in its image."""
        present = self.cases[case_id].channels
        return range(len(self.channels)) if present is None else present

    def image(self, case_id: str) -> StoredArray:
        """The image of a case, float32 `(channel, depth, height, width)`, read where it is used."""
        return self._open(case_id, "image")

    def label(self, case_id: str) -> StoredArray:
        """The label map of a case, `(depth, height, width)`, read where it is used.

        It is uint8, or uint16 with more than 256 classes. Voxels that are left out are as in
        `training.ignored_voxels`.
        """
        return self._open(case_id, "label")

    def foreground(self, case_id: str) -> dict[int, NDArray[np.int32]]:
        """Up to 10,000 voxels `(n, 3)` of each foreground class that the case has."""
        with np.load(self.array_folder / f"{case_id}.foreground.npz") as stored:
            return {int(label): stored[label] for label in stored.files if label != LABELLED}

    def labelled(self, case_id: str) -> NDArray[np.int32]:
        """Up to 10,000 voxels `(n, 3)` that are not left out, of data with an ignore label."""
        with np.load(self.array_folder / f"{case_id}.foreground.npz") as stored:
            return np.asarray(stored[LABELLED])

    def is_complete(self) -> bool:
        """Whether every array is there with its full size."""
        return all(entry.is_complete(self.array_folder, case) for case, entry in self.cases.items())

    @property
    def array_folder(self) -> Path:
        """Where the arrays of all cases are."""
        return Path(os.path.normpath(self.folder / self.arrays))

    def _open(self, case_id: str, kind: str) -> StoredArray:
        compressed = bool(self.cases[case_id].compressed)
        return open_array(
            self.array_folder / array_file(f"{case_id}.{kind}", compressed=compressed)
        )
