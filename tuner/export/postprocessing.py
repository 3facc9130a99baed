"""Chooses the postprocessing of what is exported, by label maps of validation cases."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from training.bundle.case_scores import task_target
from training.bundle.postprocessing import Case, Postprocessing, choose_postprocessing
from training.bundle.region_postprocessing import choose_for_regions
from training.data.prepared.cache import FORMAT_VERSION
from training.errors import DatasetError
from training.ignored_voxels import IGNORE_INDEX
from tuner.export.measure import Measure, without_missing
from tuner.export.predictions import Predicted, ValidationCases, mean_predictions
from tuner.export.selection import parts

if TYPE_CHECKING:
    from training.bundle.case_scores import Grid
    from training.config.regions import Regions
    from training.data import RawCase
    from tuner.export.data import ExportData
    from tuner.export.scratch import Scratch


def nested_postprocessing(
    cases: Sequence[Case], num_classes: int, regions: Regions | None = None
) -> tuple[Postprocessing, NDArray[np.float64]]:
    """The postprocessing that helps cases, and what it gives by cross-validation over them.

    Args:
        cases: Label maps.
        num_classes: Classes of the label maps, background included.
        regions: Regions that are scored in place of the classes.

    Returns:
        What all cases choose; and the gain of each case's mean Dice `(case,)` by what was chosen
        without it, NaN where there is none.
    """
    scored = num_classes - 1 if regions is None else len(regions)
    measure = Measure("dice", tuple(range(1, scored + 1)), regions)
    gains = np.full(len(cases), np.nan)
    for part, others in parts(len(cases)) if len(cases) > 1 else ():
        without = _chosen([cases[number] for number in others], num_classes, regions)
        for number in part:
            prediction, label, spacing = cases[number]
            cleaned = without.apply(prediction, spacing)
            scores = np.stack([measure.of_labels(p, label) for p in (prediction, cleaned)])
            before, after = measure.by_case(scores)
            gains[number] = after - before
    return _chosen(cases, num_classes, regions), gains


def _chosen(cases: Sequence[Case], num_classes: int, regions: Regions | None) -> Postprocessing:
    if regions is not None:
        return choose_for_regions(cases, regions)
    return choose_postprocessing(lambda: cases, num_classes).postprocessing


def label_maps(
    cases: ValidationCases, members: Sequence[tuple[float, Predicted]], data: ExportData
) -> tuple[Grid, list[Case]]:
    """Predicted and true label maps, in the images' own grids where the files are there.

    Args:
        cases: The validation cases.
        members: Weights, and what the networks predict.
        data: The study's data.
    """
    files = [data.cases[case.name] for case in cases.cases if case.name in data.cases]
    # an older version may have preprocessed the same file in another way
    same = data.dataset is None or data.dataset.format_version == FORMAT_VERSION
    if len(files) == len(cases) and same:
        try:
            return "file", _as_labelled(_on_file_grid(files, cases, members, data), cases, members)
        except DatasetError as error:
            data.note(str(error))
    predictions, targets = mean_predictions(members), cases.targets(members[0][1].candidate)
    maps: Iterator[Case] = (
        (
            _kept(cases.scratch, cases.decode(mean)),
            _kept(cases.scratch, label),
            data.preprocessing.spacing,
        )
        for mean, label in zip(predictions, targets, strict=True)
    )
    return "preprocessed", _as_labelled(maps, cases, members)


def _as_labelled(
    maps: Iterable[Case], cases: ValidationCases, members: Sequence[tuple[float, Predicted]]
) -> list[Case]:
    """Label maps in which what a case is not labelled for counts for nothing.

    A class is background then. Of regions, which share classes, the whole case is left out.
    """
    found: list[Case] = []
    masks = cases.labelled(members[0][1].candidate)
    for (prediction, label, spacing), labelled in zip(maps, masks, strict=True):
        if labelled is not None and cases.measure.regions is not None:
            label = _kept(cases.scratch, np.full(label.shape, IGNORE_INDEX, dtype=np.int8))
        elif labelled is not None:
            prediction[...] = without_missing(prediction, labelled)
        found.append((prediction, label, spacing))
    return found


def _on_file_grid(
    files: Sequence[RawCase],
    cases: ValidationCases,
    members: Sequence[tuple[float, Predicted]],
    data: ExportData,
) -> Iterator[Case]:
    config = members[0][1].candidate.config
    for case, mean in zip(files, mean_predictions(members), strict=True):
        # with its label, as it was preprocessed for the study
        prepared = data.preprocessing.apply(case.images, case.label, case.channels)
        if prepared.image.shape[1:] != mean.shape[1:]:
            raise DatasetError(f"{case.images[0]} has changed since it was preprocessed")
        label = data.preprocessing.read_label(case.label, case.images[0])
        true = task_target(label.data, config).numpy()
        spacing = tuple(float(size) for size in voxel_sizes(label.affine))
        prediction = data.preprocessing.invert(mean, prepared.info, cases.measure.regions)
        yield _kept(cases.scratch, prediction), _kept(cases.scratch, true), spacing


def _kept(scratch: Scratch, label: NDArray[Any]) -> NDArray[np.integer[Any]]:
    # signed where voxels are left out
    low, high = int(label.min(initial=0)), int(label.max(initial=0))
    kept = scratch.array(label.shape, np.promote_types(*map(np.min_scalar_type, (low, high))))
    kept[:] = label
    return kept
