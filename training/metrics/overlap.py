"""Dice, intersection over union, and accuracy: what is counted voxel by voxel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from training.metrics.labels import (
    LabelArray,
    Reduction,
    check_logits,
    label_arrays,
    predict_labels,
    reduce_scores,
)


class OverlapScores(NamedTuple):
    """Scores of a batch.

    Attributes:
        dice: `(b, c)`, nan where a class is in neither prediction nor target.
        iou: `(b, c)`, likewise.
        accuracy: `(b,)`, nan where all voxels are left out.
    """

    dice: Tensor
    iou: Tensor
    accuracy: Tensor


def dice_coefficient(
    logits: Float[Tensor, "b c *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int = 3,
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Dice = 2|A∩B| / (|A| + |B|) of each item and class.

    Args:
        logits: Scores of the classes, in 2D or 3D.
        targets: Label map; voxels of `IGNORE_INDEX` are left out.
        num_classes: Classes, background included.
        reduction: "mean" over items, then over foreground classes, or "none".

    Returns:
        A scalar, or `(b, num_classes)`.

    Raises:
        ValueError: for shapes, types or labels that do not fit together.
    """
    return reduce_scores(_scores(logits, targets, num_classes).dice, reduction)


def jaccard_index(
    logits: Float[Tensor, "b c *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int = 3,
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Intersection over union, |A∩B| / |A∪B|, of each item and class.

    Arguments, result and errors are those of `dice_coefficient`.
    """
    return reduce_scores(_scores(logits, targets, num_classes).iou, reduction)


def accuracy(
    logits: Float[Tensor, "b c *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int = 3,
    *,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Share of voxels with the right label: a scalar, or `(b,)` for reduction "none".

    Arguments and errors are those of `dice_coefficient`.
    """
    share = _scores(logits, targets, num_classes).accuracy
    return share.mean() if reduction == "mean" else share


def overlap_scores(prediction: LabelArray, target: LabelArray, num_classes: int) -> OverlapScores:
    """Dice, IoU and accuracy of label maps `(b, *spatial)`; see `label_arrays`."""
    none = num_classes
    right = np.where(prediction == target, target, target.dtype.type(none))
    both, predicted, true = (
        torch.from_numpy(_voxels(labels, num_classes)) for labels in (right, prediction, target)
    )
    # 0/0 is nan: a class that is in neither is not defined
    return OverlapScores(
        dice=2 * both / (predicted + true),
        iou=both / (predicted + true - both),
        accuracy=both.sum(dim=1) / true.sum(dim=1),
    )


def _scores(logits: Tensor, targets: Tensor, num_classes: int) -> OverlapScores:
    check_logits(logits, targets, num_classes)
    prediction, target = label_arrays(predict_labels(logits), targets, num_classes)
    scores = overlap_scores(prediction, target, num_classes)
    return OverlapScores(*(score.to(targets.device) for score in scores))


def _voxels(labels: LabelArray, num_classes: int) -> NDArray[np.float64]:
    """Voxels of each item and class."""
    # for few classes faster than bincount, which widens each label to an index
    return np.array(
        [[np.count_nonzero(item == label) for label in range(num_classes)] for item in labels],
        dtype=np.float64,
    )
