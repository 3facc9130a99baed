"""Segmentation metrics of single cases, and their mean over cases, epochs and ranks.

Conventions, those of nnU-Net: a score is nan only where a class is in neither prediction nor
target; it is 0 for a class that is in one of them alone (a miss or a false positive). Means
leave nan out. The background is class 0 and does not count in a mean over classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

Reduction = Literal["mean", "none"]

__all__ = [
    "SegmentationMetrics",
    "accuracy",
    "boundary_f1_score",
    "dice_coefficient",
    "jaccard_index",
]


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
        targets: Label map.
        num_classes: Classes, background included.
        reduction: "mean" over items and foreground classes, or "none".

    Returns:
        A scalar, or `(b, num_classes)`.

    Raises:
        ValueError: for shapes, types or labels that do not fit together.
    """
    prediction = _predict(logits, targets, num_classes)
    return _reduce(_dice(_confusion(prediction, targets, num_classes)), reduction)


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
    prediction = _predict(logits, targets, num_classes)
    return _reduce(_iou(_confusion(prediction, targets, num_classes)), reduction)


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
    prediction = _predict(logits, targets, num_classes)
    share = _accuracy(_confusion(prediction, targets, num_classes))
    return share.mean() if reduction == "mean" else share


def boundary_f1_score(
    logits: Float[Tensor, "b c *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int = 3,
    *,
    tolerance: float = 1.0,
    spacing: Sequence[float] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """F1 of boundary voxels that have a boundary voxel of the other side within a tolerance.

    A boundary voxel is a voxel of the class with a face neighbour outside it; beyond the
    image is outside. Precision is the share of predicted boundary voxels within `tolerance`
    of a true one, recall the share of true ones within `tolerance` of a predicted one
    (Csurka et al., 2013; a voxel form of nnU-Net's normalised surface Dice).

    Args:
        logits: Scores of the classes, in 2D or 3D.
        targets: Label map.
        num_classes: Classes, background included.
        tolerance: Greatest Euclidean distance, in voxels, or in mm when `spacing` is given.
        spacing: Size of a voxel in mm along each spatial axis.
        reduction: "mean" over items and foreground classes, or "none".

    Returns:
        A scalar, or `(b, num_classes)`.

    Raises:
        ValueError: for shapes, types or labels that do not fit together, or a negative
            tolerance.
    """
    prediction = _predict(logits, targets, num_classes)
    scores = _boundary_f1(prediction, targets, num_classes, tolerance, spacing)
    return _reduce(scores, reduction)


class SegmentationMetrics(Metric):
    """Dice, IoU, boundary F1 and accuracy, averaged over cases.

    A class's score is the mean over the cases in which it is defined; `dice`, `iou` and
    `boundary_f1` are means over the foreground classes. Only sums and counts are kept, so
    the result does not depend on batches, and ranks add up exactly.

    Args:
        num_classes: Classes, background included.
        tolerance: Tolerance of the boundary F1.
        spacing: Size of a voxel in mm; without it the tolerance is in voxels.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    sums: Tensor
    counts: Tensor
    correct: Tensor
    cases: Tensor

    def __init__(
        self,
        num_classes: int,
        tolerance: float = 1.0,
        spacing: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.tolerance = tolerance
        self.spacing = spacing
        zeros = torch.zeros(3, num_classes, dtype=torch.float64)
        self.add_state("sums", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("counts", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("cases", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(
        self, prediction: Int[Tensor, "b *spatial"], targets: Int[Tensor, "b *spatial"]
    ) -> None:
        """Add cases (or patches) with their predicted and true label maps.

        Raises:
            ValueError: if the shapes differ or a label is no class.
        """
        _check_targets(targets, prediction.shape, self.num_classes)
        confusion = _confusion(prediction, targets, self.num_classes)
        scores = torch.stack(
            [
                _dice(confusion),
                _iou(confusion),
                _boundary_f1(prediction, targets, self.num_classes, self.tolerance, self.spacing),
            ]
        )
        self.sums += scores.nansum(dim=1)
        self.counts += (~scores.isnan()).sum(dim=1)
        self.correct += _accuracy(confusion).sum()
        self.cases += targets.shape[0]

    def compute(self) -> dict[str, Tensor]:
        """`dice`, `dice_{class}` of each foreground class, `iou`, `boundary_f1`, `accuracy`."""
        # 0/0 is nan: a class that no case has is not defined
        dice, iou, boundary = self.sums / self.counts
        return {
            "dice": dice[1:].nanmean(),
            **{f"dice_{label}": dice[label] for label in range(1, self.num_classes)},
            "iou": iou[1:].nanmean(),
            "boundary_f1": boundary[1:].nanmean(),
            "accuracy": self.correct / self.cases,
        }


def _predict(logits: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    if logits.ndim not in (4, 5) or logits.shape[1] != num_classes:
        raise ValueError(
            f"logits must be (b, {num_classes}, *spatial) in 2D or 3D for "
            f"num_classes={num_classes}, but got shape {tuple(logits.shape)}"
        )
    _check_targets(targets, (logits.shape[0], *logits.shape[2:]), num_classes)
    return logits.argmax(dim=1)


def _check_targets(targets: Tensor, shape: Sequence[int], num_classes: int) -> None:
    if tuple(targets.shape) != tuple(shape):
        raise ValueError(f"targets must be {tuple(shape)}, but got {tuple(targets.shape)}")
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"targets must be integer labels, but got {targets.dtype}")
    if targets.numel() == 0:
        raise ValueError(f"targets are empty: shape {tuple(targets.shape)}")
    low, high = (int(value) for value in torch.aminmax(targets))
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must be 0 to {num_classes - 1} for num_classes={num_classes}, "
            f"but targets hold {low} to {high}"
        )


def _reduce(scores: Float[Tensor, "b c"], reduction: Reduction) -> Tensor:
    return scores[:, 1:].nanmean() if reduction == "mean" else scores


def _confusion(
    prediction: Int[Tensor, "b *spatial"], targets: Int[Tensor, "b *spatial"], num_classes: int
) -> Float[Tensor, "b c c"]:
    """Voxel counts of each item by true (rows) and predicted (columns) class."""
    items = targets.shape[0]
    offset = torch.arange(items, device=targets.device).view(-1, *[1] * (targets.ndim - 1))
    cell = (offset * num_classes + targets.long()) * num_classes + prediction.long()
    counts = torch.bincount(cell.flatten(), minlength=items * num_classes**2)
    return counts.view(items, num_classes, num_classes).double()


def _dice(confusion: Float[Tensor, "b c c"]) -> Float[Tensor, "b c"]:
    both = confusion.diagonal(dim1=1, dim2=2)
    return 2 * both / (confusion.sum(dim=1) + confusion.sum(dim=2))


def _iou(confusion: Float[Tensor, "b c c"]) -> Float[Tensor, "b c"]:
    both = confusion.diagonal(dim1=1, dim2=2)
    return both / (confusion.sum(dim=1) + confusion.sum(dim=2) - both)


def _accuracy(confusion: Float[Tensor, "b c c"]) -> Float[Tensor, " b"]:
    return confusion.diagonal(dim1=1, dim2=2).sum(dim=1) / confusion.sum(dim=(1, 2))


def _boundary_f1(
    prediction: Int[Tensor, "b *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int,
    tolerance: float,
    spacing: Sequence[float] | None,
) -> Float[Tensor, "b c"]:
    if tolerance < 0:
        raise ValueError(f"tolerance must be 0 or more, but got {tolerance}")
    spatial_dims = targets.ndim - 1
    if spacing is not None and len(spacing) != spatial_dims:
        raise ValueError(f"spacing={tuple(spacing)} must have {spatial_dims} entries")
    offsets = _ball(tolerance, spacing or (1.0,) * spatial_dims)
    scores = [
        [
            _boundary_f1_of_masks(prediction[item] == label, targets[item] == label, offsets)
            for label in range(num_classes)
        ]
        for item in range(targets.shape[0])
    ]
    return torch.tensor(scores, dtype=torch.float64, device=targets.device)


def _boundary_f1_of_masks(
    prediction: Bool[Tensor, "*spatial"],
    target: Bool[Tensor, "*spatial"],
    offsets: Sequence[tuple[int, ...]],
) -> float:
    box = _bounding_box(prediction | target)
    if box is None:
        return math.nan
    predicted, true = _boundary(prediction[box]), _boundary(target[box])
    num_predicted, num_true = int(predicted.sum()), int(true.sum())
    if not num_predicted or not num_true:
        return 0.0
    precision = int((predicted & _dilate(true, offsets)).sum()) / num_predicted
    recall = int((true & _dilate(predicted, offsets)).sum()) / num_true
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _bounding_box(mask: Bool[Tensor, "*spatial"]) -> tuple[slice, ...] | None:
    """The smallest box that holds all of a mask; None for an empty one."""
    box = []
    for axis in range(mask.ndim):
        others = [other for other in range(mask.ndim) if other != axis]
        inside = mask.any(dim=others).nonzero()
        if not len(inside):
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _boundary(mask: Bool[Tensor, "*spatial"]) -> Bool[Tensor, "*spatial"]:
    """Voxels of a mask with a face neighbour outside it; beyond the array is outside."""
    inner = mask.clone()
    for axis in range(mask.ndim):
        size = mask.shape[axis]
        head, tail = mask.narrow(axis, 0, size - 1), mask.narrow(axis, 1, size - 1)
        inner.narrow(axis, 0, size - 1).logical_and_(tail)
        inner.narrow(axis, 1, size - 1).logical_and_(head)
        inner.narrow(axis, 0, 1).fill_(False)
        inner.narrow(axis, size - 1, 1).fill_(False)
    return mask & ~inner


def _ball(tolerance: float, spacing: Sequence[float]) -> list[tuple[int, ...]]:
    """Voxel offsets whose length is within the tolerance."""
    reach = [int(tolerance / size + 1e-9) for size in spacing]
    # a relative slack, so that a distance equal to the tolerance is within it
    limit = tolerance**2 * (1 + 1e-9)
    return [
        offset
        for offset in itertools.product(*(range(-steps, steps + 1) for steps in reach))
        if sum((step * size) ** 2 for step, size in zip(offset, spacing, strict=True)) <= limit
    ]


def _dilate(
    mask: Bool[Tensor, "*spatial"], offsets: Sequence[tuple[int, ...]]
) -> Bool[Tensor, "*spatial"]:
    """Voxels within one of `offsets` of a voxel of the mask."""
    dilated = mask.clone()
    for offset in offsets:
        if any(abs(step) >= size for step, size in zip(offset, mask.shape, strict=True)):
            continue
        to = tuple(slice(max(0, step), min(0, step) or None) for step in offset)
        source = tuple(slice(max(0, -step), min(0, -step) or None) for step in offset)
        dilated[to] |= mask[source]
    return dilated
