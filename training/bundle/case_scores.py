"""Scores of test cases: against their label files, or on the grid of the preprocessed cases.

A network predicts on the preprocessed grid. Its prediction is brought back to the grid of the
image file, as `tune predict` does it, and compared with the label file as it is, surfaces by the
size of the file's voxels. So what resampling and cropping lose costs, and the scores of networks
with different preprocessing can be compared, with those of nnU-Net as well. Where the files are
gone, the preprocessed cases that are left can still be compared with each other: `Grid` says which
of the two was done.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from torch import Tensor

from training.bundle.case_prediction import Tell
from training.bundle.member import Member, label_map_of, load_checkpoint, preprocessed_label_map_of
from training.bundle.postprocessing import Postprocessing
from training.config import ModelTrainingConfig
from training.data import PreprocessedDataset, Preprocessing, RawCase
from training.errors import DatasetError
from training.ignored_voxels import IGNORE_INDEX, is_ignored
from training.lightning_module import SegmentationLightningModule
from training.metrics import SegmentationMetrics, SurfaceMetrics
from training.metrics.own import measure
from training.partial_labels import hide_missing, labelled_mask
from training.registry import is_plugin
from training.trainer import choose_devices

Grid = Literal["file", "preprocessed"]
"""Whether a score was measured against the label file or on the preprocessed grid."""

NOTHING = Postprocessing()
"""Leaves label maps as they are predicted."""

logger = logging.getLogger(__name__)

Metric = TypeVar("Metric", SegmentationMetrics, SurfaceMetrics)


@dataclass(frozen=True)
class PredictedCase:
    """A case with its label map and the predicted one, on the same grid.

    With a target label both are 0 and 1.

    Attributes:
        case_id: Its name.
        prediction: Predicted label map.
        target: True label map.
        spacing: Size of a voxel in mm along each axis.
        labelled: Which classes it is labelled for, `(c,)`, see `training.partial_labels`; None for
            all.
    """

    case_id: str
    prediction: Int[Tensor, "i j k"]
    target: Int[Tensor, "i j k"]
    spacing: tuple[float, ...]
    labelled: Bool[Tensor, " c"] | None = None

    def batched(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Prediction, target and `labelled` as a batch of one."""
        labelled = None if self.labelled is None else self.labelled[None]
        return self.prediction[None], self.target[None], labelled


def files_of(dataset: PreprocessedDataset, split: str) -> list[RawCase]:
    """The files that the cases of a split were read from, by its manifest."""
    return [dataset.cases[case].as_raw(case) for case in dataset.splits[split]]


def missing_files(cases: Iterable[RawCase]) -> list[Path]:
    """Files of cases that are not there any more."""
    return [path for case in cases for path in (*case.images, case.label) if not path.exists()]


def on_file_grid(
    members: Sequence[Member],
    preprocessing: Preprocessing,
    cases: Iterable[RawCase],
    tell: Tell = lambda line: None,
    postprocessing: Postprocessing = NOTHING,
) -> Iterator[PredictedCase]:
    """Predict cases from their image files, beside their label files; one after the other.

    Args:
        members: The networks that predict it, one or an ensemble.
        preprocessing: How an image becomes the network's input, and back.
        cases: The cases.
        tell: Called when a case is predicted on the CPU because GPU memory runs out.
        postprocessing: What is done to the predicted label maps.

    Raises:
        DatasetError: if a file cannot be read, or image and label differ in shape.
    """
    for case in cases:
        prepared = preprocessing.apply(case.images, channels=case.channels)
        prediction = label_map_of(members, preprocessing, prepared, tell)
        label = preprocessing.read_label(case.label, case.images[0])
        if label.shape != prediction.shape:
            raise DatasetError(
                f"{case.label}: shape {label.shape} differs from {prediction.shape} of its image"
            )
        spacing = tuple(float(size) for size in voxel_sizes(label.affine))
        prediction = postprocessing.apply(prediction, spacing)
        yield PredictedCase(
            case.case_id,
            torch.from_numpy(np.ascontiguousarray(prediction)),
            task_target(label.data, members[0].config),
            spacing,
            task_labelled(case.labelled, members[0].config),
        )


def on_preprocessed_grid(
    members: Sequence[Member],
    dataset: PreprocessedDataset,
    split: str = "test",
    tell: Tell = lambda line: None,
    postprocessing: Postprocessing = NOTHING,
) -> Iterator[PredictedCase]:
    """Predict the preprocessed cases of a split, one after the other.

    Args:
        members: The networks that predict it, one or an ensemble.
        dataset: The preprocessed data.
        split: `val` or `test`.
        tell: Called when a case is predicted on the CPU because GPU memory runs out.
        postprocessing: What is done to the predicted label maps.

    Raises:
        DatasetError: if an array is damaged or missing.
    """
    for case in dataset.splits[split]:
        image = torch.from_numpy(np.array(dataset.image(case)))
        target = task_target(np.array(dataset.label(case)), members[0].config)
        predicted = preprocessed_label_map_of(members, image, tell)
        prediction = torch.from_numpy(postprocessing.apply(predicted, dataset.spacing))
        labelled = task_labelled(dataset.cases[case].labelled, members[0].config)
        yield PredictedCase(case, prediction, target, dataset.spacing, labelled)


def mean_scores(
    module: SegmentationLightningModule, cases: Iterable[PredictedCase]
) -> dict[str, float]:
    """All metrics of cases: means as `training.metrics` has them, and counts of missing distances.

    Args:
        module: Its config says which classes and tolerances.
        cases: Predicted cases; each is let go of before the next.
    """
    overlap = _fresh(module.metrics["test_metrics"], SegmentationMetrics)
    surface = _fresh(module.surface_metrics["test_surface"], SurfaceMetrics)
    for case in cases:
        prediction, target, labelled = case.batched()
        overlap.update(prediction, target, labelled)
        surface.update(prediction, target, case.spacing, labelled)
    scores = {**overlap.compute(), **surface.compute()}
    return {name: float(value) for name, value in scores.items()}


def scores_by_case(
    module: SegmentationLightningModule, cases: Iterable[PredictedCase], metric: str
) -> dict[str, float]:
    """One metric of each case by itself, without cases for which it is not defined.

    Args:
        module: Its config says which classes and tolerances.
        cases: Predicted cases.
        metric: Name of the metric without its stage, e.g. `dice`, `dice_2` or `nsd`, or the
            import path of one of the user's own.
    """
    scores = {}
    for case in cases:
        prediction, target, labelled = case.batched()
        if is_plugin(metric):
            value = measure(
                metric,
                prediction[0] if labelled is None else hide_missing(prediction, labelled)[0],
                case.target,
                spacing=case.spacing,
                num_classes=module.config.task_classes,
            )
        elif metric.startswith("nsd"):
            surface = _fresh(module.surface_metrics["test_surface"], SurfaceMetrics)
            surface.update(prediction, target, case.spacing, labelled)
            value = float(surface.compute()[metric])
        else:
            overlap = _fresh(module.metrics["test_metrics"], SegmentationMetrics)
            overlap.update(prediction, target, labelled)
            value = float(overlap.compute()[metric])
        if math.isfinite(value):
            scores[case.case_id] = value
    return scores


def score_test_cases(
    config: ModelTrainingConfig, checkpoint: Path, metric: str
) -> tuple[dict[str, float], Grid]:
    """A metric of each test case, predicted with the weights of a checkpoint.

    Args:
        config: Config of the training; its `data_dir` is a preprocessed folder.
        checkpoint: The weights.
        metric: Name of the metric without its stage, e.g. `dice`, `dice_2`, `nsd` or `loss`, or the
            import path of one of the user's own.

    Returns:
        Score by name of the case, without cases for which it is not defined; and the grid that it
        was measured on: that of the files, or of the preprocessed cases where a file is gone or
        cannot be read. The loss is that of the network's own output, on the preprocessed grid.

    Raises:
        DatasetError: if the preprocessed data cannot be read.
    """
    dataset = PreprocessedDataset.load(config.data_dir)
    module = load_for_scoring(checkpoint, config)
    if metric == "loss":
        return _losses(module, dataset), "preprocessed"
    members = [Member(config, module)]
    cases = files_of(dataset, "test")
    if not missing_files(cases):
        predicted = on_file_grid(members, dataset.preprocessing, cases)
        try:
            return scores_by_case(module, predicted, metric), "file"
        except DatasetError as error:
            logger.warning("the test cases are scored on the preprocessed grid: %s", error)
    return scores_by_case(module, on_preprocessed_grid(members, dataset), metric), "preprocessed"


def load_for_scoring(checkpoint: Path, config: ModelTrainingConfig) -> SegmentationLightningModule:
    """The module of a checkpoint on the device that its config asks for, in evaluation mode.

    Raises:
        BundleError: if the checkpoint is missing, damaged, or of another network.
    """
    return load_checkpoint(checkpoint, config).to(scoring_device(config)).eval()


def scoring_device(config: ModelTrainingConfig) -> torch.device:
    """The device that a config asks for."""
    return torch.device("cuda" if choose_devices(config)["accelerator"] == "gpu" else "cpu")


def _losses(module: SegmentationLightningModule, dataset: PreprocessedDataset) -> dict[str, float]:
    losses = {}
    for case in dataset.splits["test"]:
        image = torch.from_numpy(np.array(dataset.image(case)))[None].to(module.device)
        target = task_target(np.array(dataset.label(case)), module.config).long()
        with torch.inference_mode():
            logits = module.predict_logits(image)
            mask = task_labelled(dataset.cases[case].labelled, module.config)
            labelled = None if mask is None else mask[None].to(module.device)
            loss = float(module.training_loss([logits], target[None].to(module.device), labelled))
        if math.isfinite(loss):
            losses[case] = loss
    return losses


def task_target(label: NDArray[Any], config: ModelTrainingConfig) -> Tensor:
    """A label map as the network is to predict it.

    It is signed, with `IGNORE_INDEX`, where voxels are left out.
    """
    ignored = is_ignored(label, config.num_classes)
    if config.target_class is not None:
        label = (label == config.target_class).astype(np.uint8)
    if ignored.any():
        label = label.astype(np.int16 if label.dtype == np.uint8 else np.int32)
        label[ignored] = IGNORE_INDEX
    return torch.from_numpy(np.ascontiguousarray(label))


def task_labelled(
    classes: Sequence[int] | None, config: ModelTrainingConfig
) -> Bool[Tensor, " c"] | None:
    """Which classes of a task a case is labelled for; None for all.

    Args:
        classes: The foreground classes of the data that it is labelled for; None for all.
        config: Says which of them the task has.
    """
    if classes is None:
        return None
    mask = labelled_mask(classes, config.num_classes)
    return mask if config.target_class is None else mask[[0, config.target_class]]


def _fresh(metric: object, kind: type[Metric]) -> Metric:
    """A metric with the settings of another, without its cases, on the CPU."""
    assert isinstance(metric, kind)
    fresh = copy.deepcopy(metric).cpu()
    fresh.reset()
    return fresh
