"""What a search space must know of data: read once, and prepared as the study will use them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from training.config import ModelTrainingConfig
from training.data import (
    PHANTOM,
    PreprocessedDataset,
    prepare_dataset,
    read_layout,
    resolve_data_dir,
)
from training.data.prepared.resampling import choose_spacing
from training.data.raw.header_survey import survey_headers
from training.errors import DatasetError
from training.local_path import is_url
from training.storage import address_of

FEW_CASES = 10
"""Cases below which none is kept apart for a test: a score of one case says nothing."""


@dataclass(frozen=True)
class DataSurvey:
    """Data as they are after preprocessing.

    Attributes:
        data_dir: The folder as a search space names it.
        dataset: The preprocessed data.
        spacing: Voxel spacing that they are resampled to, in mm (depth, height, width).
        split: Fields of the config that divide the cases.
    """

    data_dir: str
    dataset: PreprocessedDataset
    spacing: tuple[float, float, float]
    split: dict[str, Any]

    @property
    def shape(self) -> tuple[float, float, float]:
        """Median size of a case in voxels."""
        return self.dataset.median_shape

    @property
    def of_slices(self) -> bool:
        """Whether each case is an image of one slice."""
        return all(entry.shape[1] == 1 for entry in self.dataset.cases.values())

    @property
    def voxels(self) -> float:
        """Voxels of all training cases."""
        return self.dataset.voxels("train")

    def shares(self) -> list[float]:
        """Share that each class has of the voxels of the training cases, background first."""
        counts = np.array(self.dataset.voxel_counts("train"), dtype=float)
        shares: list[float] = (counts / max(counts.sum(), 1)).tolist()
        return shares

    def base_config(self) -> ModelTrainingConfig:
        """The config of these data, with the default network."""
        return ModelTrainingConfig(
            data_dir=self.dataset.folder,
            num_classes=len(self.dataset.labels),
            label_values=self.dataset.preprocessing.label_values,
            input_channels=len(self.dataset.channels),
            target_spacing=self.spacing,
            spatial_dims=2 if self.of_slices else 3,
            **self.split,
        )


def survey_data(
    data_dir: str | Path,
    on_progress: Callable[[str], None] | None = None,
    on_case: Callable[[str, int, int], None] | None = None,
) -> DataSurvey:
    """Read data and prepare them: a study of the search space finds them in the cache.

    Args:
        data_dir: Folder in Decathlon or nnU-Net layout, its address, or `phantom`.
        on_progress: Called with a line about each step.
        on_case: Called with the step and its progress, after each case.

    Raises:
        DatasetError: for every problem of the data at once, by file.
    """
    given = str(data_dir)
    if is_url(given):
        given = address_of(given)
    elif given != PHANTOM:
        given = str(Path(data_dir).expanduser().absolute())
    source = resolve_data_dir(given)
    layout = read_layout(source)
    headers = survey_headers(layout)
    if headers.problems:
        raise DatasetError.of(source, list(headers.problems.values()))
    spacing = choose_spacing(list(headers.spacings.values()), list(headers.shapes.values()))
    split = split_of(len(layout.cases))
    config = ModelTrainingConfig(target_spacing=spacing, **split)
    folder = prepare_dataset(source, config, on_progress=on_progress, on_case=on_case)
    return DataSurvey(given, PreprocessedDataset.load(folder), spacing, split)


def split_of(cases: int) -> dict[str, Any]:
    """How so many cases are divided."""
    if cases < FEW_CASES:
        return {"test_fraction": 0.0, "val_fraction": 0.34}
    return {"test_fraction": 0.2, "val_fraction": 0.2}
