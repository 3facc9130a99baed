"""The data of a study: prepared once by the driver, read by every trial."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from training.config import ModelTrainingConfig
from training.data import (
    PHANTOM,
    DataSource,
    PreprocessedDataset,
    prepare_dataset,
    resolve_data_dir,
)
from training.models import build_model
from tuner.errors import StudyError
from tuner.spec import Override, StudySpec, parse_spec

NETWORKS_CHECKED = 10
"""Points of the space whose networks are tried before a study starts."""


@dataclass(frozen=True)
class StudyData:
    """Prepared data and the spec that was completed from them.

    Attributes:
        spec: The spec with `num_classes` and `input_channels` of the data.
        source: The folder of the user's files.
        preprocessed: The preprocessed folder in the cache.
        fingerprint: Of data and preprocessing settings.
        summary: One line about cases, classes and spacing.
    """

    spec: StudySpec
    source: Path
    preprocessed: Path
    fingerprint: str
    summary: str

    @property
    def for_trials(self) -> DataSource:
        """What a trial needs to find the data, on whatever node it runs."""
        given = self.spec.base_config().data_dir
        raw = given if str(given) == PHANTOM else self.source.absolute()
        return DataSource(self.preprocessed, raw, self.fingerprint)


def prepare_data(
    spec: StudySpec,
    on_progress: Callable[[str], None] | None = None,
    on_case: Callable[[str, int, int], None] | None = None,
) -> StudyData:
    """Preprocess the data of a study, or find them in the cache.

    Args:
        spec: The study's spec.
        on_progress: Told a line about each step.
        on_case: Told the step and how far it is, after each case.

    Raises:
        training.data.DatasetError: listing every problem of the data, by file.
        StudyError: if the spec contradicts the data.
    """
    config = spec.base_config()
    source = resolve_data_dir(config.data_dir)
    preprocessed = prepare_dataset(source, config, on_progress=on_progress, on_case=on_case)
    dataset = PreprocessedDataset.load(preprocessed)
    _check_against(dataset, config, spec)
    completed = parse_spec(
        spec.to_yaml(),
        source=str(spec.source),
        overrides={
            "num_classes": Override(dataset.num_classes, "the data"),
            "input_channels": Override(len(dataset.channels), "the data"),
        },
    )
    _check_networks(completed)
    splits = {name: len(cases) for name, cases in dataset.splits.items()}
    summary = (
        f"{dataset.name}: {dataset.modality}, {splits['train']} training, "
        f"{splits['val']} validation and {splits['test']} test cases; "
        f"labels {', '.join(dataset.labels)}"
    )
    return StudyData(completed, source, preprocessed, dataset.fingerprint, summary)


def _check_networks(spec: StudySpec) -> None:
    """Build the networks of some points of the space, without memory for their weights.

    Raises:
        StudyError: if none can be built, with the reason; a part that fails is left to its
            trials, which end with that reason.
    """
    rng = random.Random(0)
    problems: list[str] = []
    for _ in range(NETWORKS_CHECKED):
        try:
            with torch.device("meta"):
                build_model(spec.trial_config(spec.space.sample(rng)))
        except ValueError as error:
            problems.append(str(error))
        else:
            return
    raise StudyError(f"no network of this space can be built: {problems[0]}")


def _check_against(
    dataset: PreprocessedDataset, config: ModelTrainingConfig, spec: StudySpec
) -> None:
    for field, found in (
        ("num_classes", dataset.num_classes),
        ("input_channels", len(dataset.channels)),
    ):
        given = getattr(config, field)
        if field in spec.config and given != found:
            raise StudyError(
                f"config.{field}={given} but the data in {config.data_dir} have {found} "
                f"({', '.join(dataset.labels)}): correct it, or leave it out"
            )
    if not dataset.splits["val"]:
        raise StudyError(f"the data in {config.data_dir} have no case left for validation")
