"""The data of a study: prepared once by the driver, read by every trial."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from training.config import ModelTrainingConfig
from training.config.labels import loss_without_regions
from training.data import (
    PHANTOM,
    DataSource,
    PreprocessedDataset,
    RawDataset,
    prepare_dataset,
    read_layout,
    resolve_data_dir,
)
from training.data.patches.augmentation import preset_of
from training.data.patches.mirroring import LEFT_RIGHT, mirror_axes, sided_labels
from training.data.prepared.cache import MANIFEST
from training.data.prepared.config_check import check_config
from training.data.prepared.split_rules import split_of_file
from training.data.prepared.task import fields_of_data, region_warnings
from training.data.raw.label_values import named_labels
from training.local_path import is_url
from training.registry import REGION_LOSSES
from training.storage import address_of
from tuner.errors import SpecError, StudyError
from tuner.spec.study_spec import StudySpec
from tuner.study.channel_lines import channel_lines, dropout_lines
from tuner.study.config_files import AUTO, PLANNED

if TYPE_CHECKING:
    from training.planning import CaseSizes

WARNINGS_SHOWN = 20
"""Warnings about the data that are shown at most; all are in the preprocessed folder."""


@dataclass(frozen=True)
class StudyData:
    """Prepared data and the spec that was completed from them.

    Attributes:
        spec: The spec with what the data decide, such as `num_classes`.
        source: The folder of the user's files.
        preprocessed: The preprocessed folder in the cache.
        fingerprint: Of data and preprocessing settings.
        summary: One line about cases, classes and spacing.
        further_folds: Folder and fingerprint of each fold after the first: the same arrays, split
            otherwise.
    """

    spec: StudySpec
    source: Path
    preprocessed: Path
    fingerprint: str
    summary: str
    further_folds: tuple[tuple[Path, str], ...] = ()

    @property
    def given(self) -> str:
        """The folder of the user's files as any machine finds it: its path, or its address."""
        given = self.spec.base_config().data_dir
        return address_of(given) if is_url(given) else str(self.source)

    @property
    def for_trials(self) -> tuple[DataSource, ...]:
        """Where a trial finds the data of each fold, on any node."""
        given = self.spec.base_config().data_dir
        anywhere = str(given) == PHANTOM or is_url(given)
        raw = given if anywhere else self.source.absolute()
        splits = ((self.preprocessed, self.fingerprint), *self.further_folds)
        return tuple(DataSource(folder, raw, fingerprint) for folder, fingerprint in splits)

    @property
    def validation_cases(self) -> int:
        """Cases that a trial is validated on; of several folds the fewest."""
        folders = [self.preprocessed, *(folder for folder, _ in self.further_folds)]
        return min(len(PreprocessedDataset.load(folder).splits["val"]) for folder in folders)


def prepare_data(
    spec: StudySpec,
    on_progress: Callable[[str], None] | None = None,
    on_case: Callable[[str, int, int], None] | None = None,
    check: Callable[[StudySpec], None] | None = None,
) -> StudyData:
    """Preprocess the data of a study, or find them in the cache.

    Args:
        spec: The study's spec.
        on_progress: Called with a line about each step, and with each warning about the data.
        on_case: Called with the step and its progress, after each case.
        check: Given the completed spec before any volume is read; raises what is wrong with it.

    Raises:
        training.data.DatasetError: listing every problem of the data, by file, or what the spec
            says against them.
        StudyError: if the space does not fit the data.
    """
    report = on_progress or (lambda line: None)
    given = spec.base_config().data_dir
    if is_url(given):
        report(f"fetching what has changed of {address_of(given)}")
    source = resolve_data_dir(given)
    raw = read_layout(source.absolute(), spec.base_config().missing_channels)
    completed = complete_spec(spec, raw)
    if check is not None:
        check(completed)
    warnings: list[str] = []
    preprocessed = prepare_dataset(
        source,
        completed.base_config(),
        on_progress=report,
        on_case=on_case,
        on_warning=warnings.append,
    )
    for line in shown_warnings(warnings, f", see `warnings` in {preprocessed / MANIFEST}"):
        report(line)
    for line in dropout_lines(completed, raw):
        report(line)
    dataset = PreprocessedDataset.load(preprocessed)
    if not dataset.splits["val"]:
        raise StudyError(f"the data in {source} have no case left for validation")
    splits = {name: len(cases) for name, cases in dataset.splits.items()}
    folds = f" on the first of {completed.folds} folds" if completed.folds > 1 else ""
    mirroring = mirroring_line(completed, dataset.labels)
    if mirroring:
        report(mirroring)
    summary = (
        f"{dataset.name}: {dataset.modality}, {splits['train']} training, "
        f"{splits['val']} validation and {splits['test']} test cases{folds}; "
        f"labels {named_labels(dataset.labels, dataset.preprocessing.values)}"
    )
    return StudyData(
        completed,
        source,
        preprocessed,
        dataset.fingerprint,
        "; ".join(filter(None, [summary, mirroring])),
        tuple(_prepare_fold(completed, source, fold) for fold in range(1, completed.folds)),
    )


def _prepare_fold(spec: StudySpec, source: Path, fold: int) -> tuple[Path, str]:
    """Folder and fingerprint of a further fold, whose arrays are there."""
    preprocessed = prepare_dataset(source, spec.trial_config({}, fold))
    return preprocessed, PreprocessedDataset.load(preprocessed).fingerprint


def shown_warnings(warnings: Sequence[str], where: str = "") -> list[str]:
    """Warnings about the data to print: some of each kind, up to a total.

    Args:
        warnings: All of them.
        where: Where those are that are not shown, for the last line.
    """
    kinds: dict[str, list[int]] = {}
    for index, line in enumerate(warnings):
        # lines of one kind differ in the file, and in numbers
        kind = re.sub(r"[\d.]+", "#", line.rpartition(": ")[2] if "/" in line else line)
        kinds.setdefault(kind, []).append(index)
    in_turn = [
        index for turn in zip_longest(*kinds.values()) for index in turn if index is not None
    ]
    shown = [f"warning: {warnings[index]}" for index in sorted(in_turn[:WARNINGS_SHOWN])]
    if len(warnings) > len(shown):
        shown.append(f"warning: {len(warnings) - len(shown)} more{where}")
    return shown


def complete_spec(spec: StudySpec, dataset: RawDataset) -> StudySpec:
    """The spec with what the data decide, see `fields_of_data`.

    Args:
        spec: A spec; what it says about the data is checked.
        dataset: The data that it is for.

    Raises:
        training.data.DatasetError: if a fixed value contradicts the data.
        StudyError: if a value that varies does, or there is nothing to confirm on.
    """
    config = spec.base_config()
    check_config(config, dataset, spec.config)
    cases = [case.case_id for case in dataset.cases]
    given = split_of_file(cases, config)
    for fold in range(1, spec.folds):
        other = split_of_file(cases, spec.trial_config({}, fold))
        if given is not None and other is not None and other["test"] != given["test"]:
            raise StudyError(
                f"folds 0 and {fold} of {config.splits_file} have different parts `test`: with "
                f"folds={spec.folds} they must be the same, since no trial may see a test case"
            )
    if spec.confirm is not None and given is not None and not given["test"]:
        raise StudyError(
            f"confirm judges trials on test cases, but fold {config.fold} of {config.splits_file} "
            "has none: give it a part `test`, or remove confirm"
        )
    try:
        decided = fields_of_data(dataset, config.regions, config.regions_class_order)
        losses = spec.space.domains["loss"].options or () if "loss" in spec.space.domains else ()
        of_regions = [loss for loss in losses if loss in REGION_LOSSES]
        if of_regions and "regions" not in decided:
            raise SpecError(f"{spec.source}: {loss_without_regions(of_regions[0])}")
        return spec.completed(decided, origin="the data")
    except SpecError as error:
        raise StudyError(
            f"{error}\n  the data in {dataset.folder} have {len(dataset.labels)} labels "
            f"({named_labels(dataset.labels, dataset.label_values)}) and "
            f"{len(dataset.channels)} channels ({', '.join(dataset.channels)}): correct the search "
            "space"
        ) from error


def mirroring_line(spec: StudySpec, labels: Sequence[str]) -> str:
    """A line on mirroring from left to right; empty where no label names a side."""
    config = spec.base_config()
    sided = sided_labels(labels)
    domains = spec.space.domains
    mirrors = "augmentation" in domains or preset_of(config.augmentation).mirroring
    if not sided or not mirrors:
        return ""
    names = ", ".join(sided[:4]) + (", ..." if len(sided) > 4 else "")
    # what varies is resolved by each trial
    varied = (domains["mirror_axes"].options or ()) if "mirror_axes" in domains else ()
    choices = [
        mirror_axes(ModelTrainingConfig(mirror_axes=value), labels)
        for value in varied or [config.mirror_axes]
    ]
    for axes in choices:
        if LEFT_RIGHT in axes:
            return (
                f"warning: labels name sides ({names}), and mirror_axes={axes} mirrors left to "
                "right: a left one is then shown as a right one"
            )
    if varied:
        return f"patches are not mirrored from left to right: labels name sides ({names})"
    if not choices[0]:
        return f"patches are not mirrored (mirror_axes=[]); labels name sides ({names})"
    return (
        f"patches are mirrored along {' and '.join(choices[0])} alone, not from left to "
        f"right: labels name sides ({names}); mirror_axes changes it"
    )


def _region_lines(spec: StudySpec) -> list[str]:
    """A line on the regions that are trained, if there are some."""
    config = spec.base_config()
    if not isinstance(config.regions, dict):
        return []
    named = ", ".join(f"{name} {values}" for name, values in config.regions.items())
    return [f"          regions {named}, written in the order {config.regions_class_order}"]


def check_data(spec: StudySpec) -> tuple[StudySpec, list[str]]:
    """Look at the data folder of a spec and at the headers of its files; no voxel is read.

    Args:
        spec: A valid spec.

    Returns:
        The spec with what the data decide, and lines about the data. Where the folder is not
        there, the spec as it is and a line that says so.

    Raises:
        training.data.DatasetError: for all that is wrong with the folder, or contradicts it.
        StudyError: if a value that varies contradicts the data.
    """
    from training.data import PHANTOM, read_layout
    from training.data.prepared.labelled import labelled_lines
    from training.data.raw.formats.geometry import spacing_text
    from training.data.raw.header_survey import median_spacing, survey_headers
    from training.errors import DatasetError

    folder = spec.base_config().data_dir
    if str(folder) == PHANTOM:
        return spec, [f"data      {PHANTOM}: the embedded CT of a liver with tumours"]
    if not folder.exists() and not folder.is_symlink():
        return spec, [f"data      {folder} is not there: nothing is checked against it"]
    dataset = read_layout(folder, spec.base_config().missing_channels)
    completed = complete_spec(spec, dataset)
    survey = survey_headers(dataset)
    if survey.problems:
        raise DatasetError.of(folder, list(survey.problems.values()))
    spacing = spacing_text(median_spacing(list(survey.spacings.values())))
    shape = np.median(list(survey.shapes.values()), axis=0)
    lines = [
        f"data      {dataset.name}: {len(dataset.cases)} cases of {', '.join(dataset.channels)}; "
        f"labels {named_labels(dataset.labels, dataset.label_values)}",
        f"          median {' x '.join(f'{size:.0f}' for size in shape)} voxels of {spacing} mm "
        "(superior, anterior, right)",
        *_region_lines(completed),
        *(f"          {line}" for line in labelled_lines({}, dataset)),
        *shown_warnings(
            [
                *dataset.warnings,
                *region_warnings(completed.base_config(), dataset),
                *survey.warnings,
            ]
        ),
        *channel_lines(completed, dataset),
        mirroring_line(completed, dataset.labels),
    ]
    return completed, [line for line in lines if line]


def case_sizes(spec: StudySpec) -> CaseSizes | None:
    """Sizes of the cases by their headers, once they are resampled; preparation may crop them.

    None where no `patch_size` or `train_batch_size` of the spec is `auto`, for which alone they
    matter, and where the data are not there.
    """
    from training.data import PHANTOM, read_layout
    from training.data.prepared.resampling import choose_spacing
    from training.data.raw.header_survey import survey_headers
    from training.planning import CaseSizes

    config = spec.base_config()
    given = [getattr(config, name) for name in PLANNED]
    for name in PLANNED:
        domain = spec.space.domains.get(name)
        given += [] if domain is None or domain.options is None else domain.options
    folder = config.data_dir
    if AUTO not in given or str(folder) == PHANTOM or not folder.exists():
        return None
    survey = survey_headers(read_layout(folder))
    spacings, shapes = list(survey.spacings.values()), list(survey.shapes.values())
    spacing = config.target_spacing or choose_spacing(spacings, shapes)
    resampled = np.array(shapes) * np.array(spacings) / np.array(spacing)
    depth, height, width = np.median(resampled, axis=0).tolist()
    return CaseSizes((depth, height, width), spacing, float(resampled.prod(axis=1).sum()))
