"""What data decide of a config: classes, their values, channels, and regions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.config import ModelTrainingConfig
from training.config.regions import brats_regions, derived_order
from training.data.raw.label_values import gapped
from training.data.raw.layouts import RawDataset, read_layout
from training.data.raw.phantom import resolve_data_dir
from training.errors import DatasetError, FieldsError


def fields_of_data(
    dataset: RawDataset, regions: Mapping[str, list[int]] | str | None, order: list[int] | None
) -> dict[str, Any]:
    """Config fields that data decide; those of label values and regions only where there are such.

    Args:
        dataset: The data.
        regions: The config's own regions, which come before those of the data.
        order: The config's own order of them.

    Raises:
        DatasetError: if a preset does not fit the labels.
    """
    decided: dict[str, Any] = {
        "num_classes": len(dataset.labels),
        "input_channels": len(dataset.channels),
    }
    values = gapped(dataset.label_values)
    if values is not None:
        decided["label_values"] = list(values)
    if regions is None and dataset.regions is not None:
        regions = {name: list(of) for name, of in dataset.regions.items()}
        order = order or list(dataset.regions_class_order or ())
    if isinstance(regions, str):
        regions = brats_regions(dataset.labels, dataset.label_values, str(dataset.folder))
    if regions is not None:
        decided["regions"] = {name: list(of) for name, of in regions.items()}
        try:
            decided["regions_class_order"] = order or derived_order(regions)
        except FieldsError as error:
            raise DatasetError(str(error)) from error
    return decided


def task_of_data(config: ModelTrainingConfig, data_dir: Path | str) -> ModelTrainingConfig:
    """A config with what its data decide: classes, label values, channels, and regions.

    Regions come from the config (a preset is resolved by the labels), else from `dataset.json`.

    Args:
        config: The config.
        data_dir: Folder in Decathlon or nnU-Net layout, or `phantom`.

    Raises:
        DatasetError: if the folder has not that layout, or a preset does not fit its labels.
        pydantic.ValidationError: (a `ValueError`) if the config contradicts what the data decide.

    Example:
        >>> config = task_of_data(ModelTrainingConfig(regions="brats"), "BraTS2015_small")
        >>> config.regions["enhancing_tumour"], config.regions_class_order
        ([4], [2, 1, 4])
    """
    dataset = read_layout(resolve_data_dir(data_dir))
    given = {name: getattr(config, name) for name in config.model_fields_set}
    regions, order = config.regions, config.regions_class_order
    return ModelTrainingConfig(**{**given, **fields_of_data(dataset, regions, order)})


def region_warnings(config: ModelTrainingConfig, dataset: RawDataset) -> list[str]:
    """Lines about labels that `regions_class_order` cannot write."""
    decided = fields_of_data(dataset, config.regions, config.regions_class_order)
    if "regions" not in decided:
        return []
    plain = {name: decided[name] for name in decided if name != "input_channels"}
    regions = ModelTrainingConfig(**plain).label_regions
    assert regions is not None
    values = dataset.label_values
    return [
        f"label {values[value]} ({dataset.labels[value]}) is written as {values[written]} "
        f"({dataset.labels[written]}) by regions_class_order={decided['regions_class_order']}, "
        "which is in other regions: predictions of it cannot be right; order regions from the "
        "outer to the inner"
        for value, written in regions.not_restored().items()
    ]
