"""What members, mirroring and postprocessing are chosen by: Dice or IoU of validation cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.ignored_voxels import IGNORE_INDEX
from training.region_maps import region_mask

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from training.config.regions import Regions


Labelled = NDArray[np.bool_] | None
"""Which classes of the network a case is labelled for `(class,)`; None for all."""


def without_missing(prediction: NDArray[Any], labelled: Labelled) -> NDArray[Any]:
    """Predicted classes, background in place of those that a case is not labelled for."""
    if labelled is None:
        return prediction
    return np.where(labelled[prediction], prediction, 0).astype(prediction.dtype)


@dataclass(frozen=True)
class Measure:
    """An overlap score, of one class or the mean over several.

    Attributes:
        kind: `dice` or `iou`.
        classes: The classes of the network that count; with regions their numbers, from 1.
        regions: The regions that are scored in place of classes.
    """

    kind: Literal["dice", "iou"]
    classes: tuple[int, ...]
    regions: Regions | None = None

    @classmethod
    def of(cls, metric: str, config: ModelTrainingConfig) -> Measure:
        """The study's metric where it is Dice or IoU, else the mean Dice.

        Args:
            metric: The study's metric, e.g. `val_dice` or `val_iou_2`.
            config: A config of the study.
        """
        kind, _, label = metric.removeprefix("val_").partition("_")
        names = config.score_names
        classes = tuple(range(1, len(names) + 1))
        if kind not in ("dice", "iou") or (label and label not in names):
            return cls("dice", classes, config.label_regions)
        if label:
            classes = (names.index(label) + 1,)
        return cls("dice" if kind == "dice" else "iou", classes, config.label_regions)

    def name(self, num_classes: int) -> str:
        """Its name in words."""
        words = {"dice": "Dice", "iou": "IoU"}[self.kind]
        scored = num_classes - 1 if self.regions is None else len(self.regions)
        return f"mean {words}" if len(self.classes) == scored > 1 else words

    def count(
        self, predicted: NDArray[Any], true: NDArray[Any], num_classes: int
    ) -> NDArray[np.int64]:
        """Voxels `(3, class)` of each class, or region from 1 on: in both, predicted, and true."""
        if self.regions is None:
            both = predicted[predicted == true]
            return np.stack(
                [np.bincount(found, minlength=num_classes) for found in (both, predicted, true)]
            )
        counts = np.zeros((3, len(self.regions) + 1), dtype=np.int64)
        for region in range(len(self.regions)):
            masks = [region_mask(labels, self.regions, region) for labels in (predicted, true)]
            counts[:, region + 1] = [
                np.count_nonzero(found) for found in (masks[0] & masks[1], *masks)
            ]
        return counts

    def by_class(self, counts: NDArray[np.int64], labelled: Labelled = None) -> NDArray[np.float64]:
        """Scores `(class,)` of a case; NaN where a class is in neither, or not labelled.

        Args:
            counts: Voxels `(3, class)` in both, predicted, and true.
            labelled: Which classes the case is labelled for.
        """
        both, predicted, true = counts[:, list(self.classes)].astype(np.float64)
        union = predicted + true - both
        scores = np.full(len(both), np.nan)
        there = union > 0
        top = 2 * both if self.kind == "dice" else both
        bottom = predicted + true if self.kind == "dice" else union
        scores[there] = top[there] / bottom[there]
        if labelled is not None:
            scores[[not self._is_labelled(number, labelled) for number in self.classes]] = np.nan
        return scores

    def _is_labelled(self, number: int, labelled: NDArray[np.bool_]) -> bool:
        classes = [number] if self.regions is None else list(self.regions.classes[number - 1])
        return bool(labelled[classes].all())

    def of_labels(
        self, prediction: NDArray[Any], label: NDArray[Any], labelled: Labelled = None
    ) -> NDArray[np.float64]:
        """Scores `(class,)` of a predicted label map.

        Args:
            prediction: Predicted classes.
            label: True classes; voxels of `IGNORE_INDEX` are left out.
            labelled: Which classes the case is labelled for.
        """
        if self.regions is not None:
            known = label != IGNORE_INDEX
            counts = self.count(without_missing(prediction[known], labelled), label[known], 0)
            return self.by_class(counts, labelled)
        counts = np.zeros((3, max(self.classes) + 1), dtype=np.int64)
        known = label != IGNORE_INDEX
        for value in self.classes:
            predicted, true = (prediction == value) & known, label == value
            counts[:, value] = [
                np.count_nonzero(found) for found in (predicted & true, predicted, true)
            ]
        return self.by_class(counts, labelled)

    def by_case(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over the classes `(case,)` of scores `(case, class)`, NaN where none is defined."""
        return np.array([_mean(case) for case in scores])

    def mean(self, scores: NDArray[np.float64]) -> float:
        """Mean over the cases of each class, then over the classes, as `training.metrics` has it.

        It is 0 where no score is defined.
        """
        value = _mean(np.array([_mean(of_class) for of_class in scores.T]))
        return 0.0 if np.isnan(value) else value


def _mean(values: NDArray[np.float64]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
