"""Checks that a config agrees with the data."""

from __future__ import annotations

from collections.abc import Collection

from training.config import ModelTrainingConfig
from training.config.labels import loss_without_regions
from training.data.prepared.normalisation import normalisation_problems
from training.data.prepared.split import split_cases
from training.data.prepared.task import fields_of_data
from training.data.raw.label_values import named_labels, shown_values
from training.data.raw.layouts import RawDataset
from training.errors import DatasetError
from training.registry import REGION_LOSSES


def check_config(
    config: ModelTrainingConfig, dataset: RawDataset, given: Collection[str] | None = None
) -> None:
    """Check what a config says about the data, before any file of them is read.

    Args:
        config: Its fields that speak of labels, channels and the split are checked.
        dataset: The data.
        given: Fields that somebody chose; by default those that were set. `num_classes` and
            `input_channels` that nobody chose are the data's to decide.

    Raises:
        DatasetError: naming what the config says and what the data are.
    """
    chosen = config.model_fields_set if given is None else given
    labels, channels = dataset.labels, dataset.channels
    problems = [
        f"{field}={getattr(config, field)}, but the data in {dataset.folder} have {len(found)} "
        f"({', '.join(found)}): correct it, or leave it out"
        for field, found in (("num_classes", labels), ("input_channels", channels))
        if field in chosen and getattr(config, field) != len(found)
    ]
    values = dataset.label_values
    if config.label_values is not None and tuple(config.label_values) != values:
        problems.append(
            f"label_values={config.label_values}, but those of the data in {dataset.folder} are "
            f"{shown_values(values)} ({', '.join(labels)}): correct them, or leave them out"
        )
    if config.target_label is not None and config.target_label not in values:
        problems.append(
            f"target_label={config.target_label}, but the labels of the data in {dataset.folder} "
            f"are {shown_values(values)} ({', '.join(labels)})"
        )
    if config.loss in REGION_LOSSES and config.regions is None and dataset.regions is None:
        problems.append(loss_without_regions(config.loss))
    if config.regions is not None:
        problems += _region_problems(config, dataset)
    elif isinstance(config.class_weights, list) and len(config.class_weights) != len(labels):
        problems.append(
            f"class_weights has {len(config.class_weights)} entries ({config.class_weights}), but "
            f"the data in {dataset.folder} have {len(labels)} labels ({', '.join(labels)}): give "
            "one weight a label, background first"
        )
    problems += normalisation_problems(config, dataset)
    if problems:
        raise DatasetError("\n  ".join(problems))
    # too few cases, or a rule that does not fit them, is found without their labels
    split_cases({case.case_id: [1] * len(labels) for case in dataset.cases}, config)


def _region_problems(config: ModelTrainingConfig, dataset: RawDataset) -> list[str]:
    """What a config's own regions say that the labels of the data do not have."""
    try:
        decided = fields_of_data(dataset, config.regions, config.regions_class_order)
    except DatasetError as error:
        return [str(error)]
    labels = named_labels(dataset.labels, dataset.label_values)
    return [
        f"the region {name!r} has the label {value}, but the labels of the data in "
        f"{dataset.folder} are {shown_values(dataset.label_values)} ({labels})"
        for name, values in decided["regions"].items()
        for value in values
        if value not in dataset.label_values
    ]
