"""The preprocessed cache: each dataset is prepared once and then mapped by every trial."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from training.config import ModelTrainingConfig
from training.data.errors import DatasetError
from training.data.fingerprint import dataset_fingerprint
from training.data.layouts import RawCase, RawDataset, read_layout
from training.data.preprocessing import (
    ChannelNormalisation,
    Preprocessing,
    choose_spacing,
    volume_spacing,
)
from training.data.split import SPLITS, stratified_split
from training.data.volume import check_same_grid, read_image, read_label

FORMAT_VERSION = 1
MANIFEST = "dataset.json"

Result = TypeVar("Result")

FOREGROUND_SAMPLES = 10_000
"""Voxels kept of each class of a case, as centres of patches and for intensity statistics."""


class CaseEntry(BaseModel):
    """One preprocessed case: its files and what the split needs to know."""

    model_config = ConfigDict(extra="forbid")

    images: list[Path]
    label: Path
    shape: tuple[int, int, int, int]
    voxel_counts: list[int]


class PreprocessedDataset(BaseModel):
    """A preprocessed folder.

    Attributes:
        folder: The folder.
        name: Name of the dataset.
        labels: Name of each label value, background first.
        channels: Name of each channel.
        modality: `CT`, `MR`, or both joined by `+`.
        fingerprint: Of the files and the preprocessing settings.
        preprocessing: The settings, which an exported model takes along.
        splits: Case names of `train`, `val` and `test`.
        cases: Every case by name.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    folder: Path
    name: str
    labels: list[str]
    channels: list[str]
    modality: str
    fingerprint: str
    preprocessing: Preprocessing
    splits: dict[str, list[str]]
    cases: dict[str, CaseEntry]

    @classmethod
    def load(cls, folder: Path) -> PreprocessedDataset:
        """Open a preprocessed folder.

        Raises:
            DatasetError: if the folder is none, or is damaged.
        """
        path = Path(folder) / MANIFEST
        try:
            values = json.loads(path.read_text())
            # the cache can be moved
            return cls(**{**values, "folder": folder})
        except FileNotFoundError as error:
            raise DatasetError(
                f"{folder} is no preprocessed folder (it has no {MANIFEST}): make one with "
                "training.data.prepare_dataset(data_dir, config)"
            ) from error
        except (OSError, json.JSONDecodeError, ValidationError, TypeError) as error:
            raise DatasetError(
                f"{folder} is no preprocessed folder: its {MANIFEST} cannot be read as one; make "
                "one with training.data.prepare_dataset(data_dir, config)"
            ) from error

    @property
    def num_classes(self) -> int:
        """Number of labels, background included."""
        return len(self.labels)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel spacing in mm (depth, height, width)."""
        return self.preprocessing.spacing

    def voxel_counts(self, split: str) -> list[int]:
        """Voxels of each class over the cases of a split."""
        counts = np.zeros(self.num_classes, dtype=np.int64)
        for case in self.splits[split]:
            counts += self.cases[case].voxel_counts
        return [int(count) for count in counts]

    def image(self, case_id: str) -> NDArray[np.float32]:
        """The image of a case, float32 `(channel, depth, height, width)`, memory-mapped."""
        return self._map(f"{case_id}.image.npy")

    def label(self, case_id: str) -> NDArray[np.uint8]:
        """The label map of a case, uint8 `(depth, height, width)`, memory-mapped."""
        return self._map(f"{case_id}.label.npy")

    def foreground(self, case_id: str) -> dict[int, NDArray[np.int32]]:
        """Up to 10,000 voxels `(n, 3)` of each foreground class that the case has."""
        with np.load(self.folder / f"{case_id}.foreground.npz") as stored:
            return {int(label): stored[label] for label in stored.files}

    def image_paths(self, case_id: str) -> list[Path]:
        """The files that a case was read from."""
        return self.cases[case_id].images

    def is_complete(self) -> bool:
        """Whether every file is there with its full size."""
        for case_id, entry in self.cases.items():
            voxels = int(np.prod(entry.shape[1:]))
            for kind, size in (("image", 4 * voxels * entry.shape[0]), ("label", voxels)):
                path = self.folder / f"{case_id}.{kind}.npy"
                if not path.is_file() or path.stat().st_size < size:
                    return False
            if not (self.folder / f"{case_id}.foreground.npz").is_file():
                return False
        return True

    def _map(self, name: str) -> NDArray[Any]:
        try:
            return np.asanyarray(np.load(self.folder / name, mmap_mode="r"))
        except (OSError, ValueError) as error:
            raise DatasetError(
                f"{self.folder / name} is damaged or missing: remove {self.folder} and the data "
                "will be preprocessed again"
            ) from error


@dataclass(frozen=True)
class _Scan:
    """What a first look at a case brings."""

    spacing: tuple[float, float, float]
    shape: tuple[int, ...]
    voxel_counts: list[int]
    foreground: NDArray[np.float32]


def cache_root() -> Path:
    """Folder of all preprocessed data: `$SEGTUNE_CACHE`, or `segtune` in the user's cache."""
    if "SEGTUNE_CACHE" in os.environ:
        return Path(os.environ["SEGTUNE_CACHE"]).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "segtune"


def prepare_dataset(
    data_dir: Path,
    config: ModelTrainingConfig,
    *,
    cache_dir: Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Path:
    """Preprocess a dataset into the cache, or find it there.

    Two processes that ask for the same data at once prepare it once: one works, the other
    waits. A cut-off preparation leaves nothing behind that could be taken for a whole one.

    Args:
        data_dir: Folder in Decathlon or nnU-Net layout.
        config: Its spacing, window and split settings are used.
        cache_dir: The cache, `cache_root()` by default.
        on_progress: Told a line about each step.

    Returns:
        The preprocessed folder.

    Raises:
        DatasetError: for every problem of the data at once, by file; or if the cache cannot
            be written.
    """
    tell = on_progress or (lambda line: None)
    dataset = read_layout(Path(data_dir).absolute())
    root = cache_dir or cache_root()
    with _writable(root):
        root.mkdir(parents=True, exist_ok=True)
        fingerprint = dataset_fingerprint(dataset, _settings(config), root)
        folder = root / f"{dataset.folder.name}-{fingerprint}"
        with FileLock(root / f"{folder.name}.lock"):
            if _is_prepared(folder):
                return folder
            tell(f"preprocessing {len(dataset.cases)} cases of {dataset.folder}")
            partial = root / f".{folder.name}.partial"
            for stale in (folder, partial):
                shutil.rmtree(stale, ignore_errors=True)
            partial.mkdir()
            _prepare(dataset, config, partial, fingerprint, tell)
            partial.rename(folder)
    return folder


def _is_prepared(folder: Path) -> bool:
    if not (folder / MANIFEST).is_file():
        return False
    try:
        return PreprocessedDataset.load(folder).is_complete()
    except DatasetError:
        return False


def _settings(config: ModelTrainingConfig) -> dict[str, Any]:
    fields = {
        "target_spacing",
        "intensity_window",
        "val_fraction",
        "test_fraction",
        "split_seed",
    }
    return {"format": FORMAT_VERSION, **config.model_dump(mode="json", include=fields)}


def _prepare(
    dataset: RawDataset,
    config: ModelTrainingConfig,
    folder: Path,
    fingerprint: str,
    tell: Callable[[str], None],
) -> None:
    scans = _for_each_case(dataset, lambda case: _scan(case, dataset))
    splits = stratified_split(
        {case: scan.voxel_counts for case, scan in scans.items()},
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        seed=config.split_seed,
    )
    training = [scans[case] for case in splits["train"]]
    preprocessing = Preprocessing(
        spacing=config.target_spacing
        or choose_spacing([scan.spacing for scan in training], [scan.shape for scan in training]),
        channels=_normalisations(dataset, config, training),
        num_classes=len(dataset.labels),
    )
    entries = _for_each_case(dataset, lambda case: _store(case, preprocessing, folder))
    manifest = PreprocessedDataset(
        folder=folder,
        name=dataset.name,
        labels=list(dataset.labels),
        channels=list(dataset.channels),
        modality="+".join(sorted(set(dataset.modalities))),
        fingerprint=fingerprint,
        preprocessing=preprocessing,
        splits=splits,
        cases=entries,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1))
    parts = ", ".join(f"{len(splits[name])} {name}" for name in SPLITS)
    tell(f"preprocessed at {' x '.join(f'{s:g}' for s in preprocessing.spacing)} mm: {parts}")


def _for_each_case(dataset: RawDataset, work: Callable[[RawCase], Result]) -> dict[str, Result]:
    """Do `work` on every case in threads; raise the problems of all cases together."""

    def attempt(case: RawCase) -> tuple[Result | None, str]:
        try:
            return work(case), ""
        except DatasetError as error:
            return None, str(error)

    # reading, resampling and hashing release the interpreter lock
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        outcomes = list(pool.map(attempt, dataset.cases))
    problems = [problem for _, problem in outcomes if problem]
    if problems:
        raise DatasetError.of(dataset.folder, problems)
    return {
        case.case_id: result
        for case, (result, _) in zip(dataset.cases, outcomes, strict=True)
        if result is not None
    }


def _scan(case: RawCase, dataset: RawDataset) -> _Scan:
    """Check the files of a case, and read what the settings depend on."""
    image = read_image(case.images)
    if len(image.data) != len(dataset.channels):
        raise DatasetError(
            f"{case.images[0]}: {len(image.data)} channels, but dataset.json declares "
            f"{len(dataset.channels)} ({', '.join(dataset.channels)})"
        )
    label = read_label(case.label, len(dataset.labels))
    check_same_grid(case.label, label, case.images[0], image)
    spacing, shape = volume_spacing(image)
    inside = label.data > 0
    voxels = image.data[:, inside]
    if voxels.shape[1] > FOREGROUND_SAMPLES:
        rng = np.random.default_rng(0)
        voxels = voxels[:, rng.choice(voxels.shape[1], FOREGROUND_SAMPLES, replace=False)]
    counts = np.bincount(label.data.ravel(), minlength=len(dataset.labels))
    return _Scan(spacing, shape, [int(count) for count in counts], voxels)


def _normalisations(
    dataset: RawDataset, config: ModelTrainingConfig, training: Iterable[_Scan]
) -> list[ChannelNormalisation]:
    """Normalisation of each channel, CT by the foreground of the training cases."""
    intensities = np.concatenate([scan.foreground for scan in training], axis=1, dtype=np.float64)
    normalisations = []
    for modality, foreground in zip(dataset.modalities, intensities, strict=True):
        if modality == "MR":
            normalisations.append(ChannelNormalisation(modality="MR"))
            continue
        if foreground.size == 0:
            raise DatasetError(
                f"the training labels in {dataset.folder} have no foreground voxel: the CT "
                "window cannot be chosen, and there is nothing to learn"
            )
        low, high = config.intensity_window or np.percentile(foreground, (0.5, 99.5))
        clipped = np.clip(foreground, low, high)
        normalisations.append(
            ChannelNormalisation(
                modality="CT",
                low=float(low),
                high=float(high),
                mean=float(clipped.mean()),
                std=float(clipped.std()) or 1.0,
            )
        )
    return normalisations


def _store(case: RawCase, preprocessing: Preprocessing, folder: Path) -> CaseEntry:
    """Preprocess a case and write its arrays."""
    prepared = preprocessing.apply(case.images, case.label)
    assert prepared.label is not None
    np.save(folder / f"{case.case_id}.image.npy", prepared.image)
    np.save(folder / f"{case.case_id}.label.npy", prepared.label)
    rng = np.random.default_rng(0)
    centres = {}
    for label in range(1, preprocessing.num_classes):
        found = np.argwhere(prepared.label == label).astype(np.int32)
        if len(found) > FOREGROUND_SAMPLES:
            found = found[np.sort(rng.choice(len(found), FOREGROUND_SAMPLES, replace=False))]
        if len(found):
            centres[str(label)] = found
    np.savez(folder / f"{case.case_id}.foreground.npz", allow_pickle=False, **centres)
    counts = np.bincount(prepared.label.ravel(), minlength=preprocessing.num_classes)
    channels, depth, height, width = prepared.image.shape
    return CaseEntry(
        images=list(case.images),
        label=case.label,
        shape=(channels, depth, height, width),
        voxel_counts=[int(count) for count in counts],
    )


@contextmanager
def _writable(root: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"the cache {root} cannot be used ({error.strerror or error}): make room, or choose "
            "another folder with the environment variable SEGTUNE_CACHE"
        ) from error
