"""Label maps: predicted from logits, checked, and as the small arrays that are compared.

Metrics are computed on the CPU by numpy; label maps of a GPU are copied. On one thread numpy
compares bytes about as fast as torch. With as many threads as cores, on a machine whose cores
are shared by trials, torch was 30 times as slow: each small operation waits for a busy core.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from training.ignored_voxels import IGNORE_INDEX

Reduction = Literal["mean", "none"]

LabelArray = NDArray[np.unsignedinteger[Any]]
"""A label map in the smallest type that holds its classes and one value more.

That value, the number of classes, is what voxels have that are left out, on both sides.
"""


def predict_labels(logits: Float[Tensor, "b c *spatial"]) -> Int[Tensor, "b *spatial"]:
    """Class of the greatest logit, the first of equal ones: `argmax` over the channels.

    On the CPU it is 4 to 10 times as fast as `torch.argmax`, which is slow across channels.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=1)
    # numpy has no bfloat16
    scores = logits.detach().float().numpy()
    labels = np.zeros((scores.shape[0], *scores.shape[2:]), dtype=np.int64)
    best = scores[:, 0].copy()
    for channel in range(1, scores.shape[1]):
        better = scores[:, channel] > best
        labels[better] = channel
        np.maximum(best, scores[:, channel], out=best)
    return torch.from_numpy(labels)


def check_logits(logits: Tensor, targets: Tensor, num_classes: int) -> None:
    """Check that logits and targets belong together; the labels are checked in `label_array`.

    Raises:
        ValueError: for shapes that do not fit together.
    """
    if logits.ndim not in (4, 5) or logits.shape[1] != num_classes:
        raise ValueError(
            f"logits must be (b, {num_classes}, *spatial) in 2D or 3D for "
            f"num_classes={num_classes}, but got shape {tuple(logits.shape)}"
        )
    check_shape(targets, (logits.shape[0], *logits.shape[2:]))


def check_shape(targets: Tensor, shape: Sequence[int]) -> None:
    """Check that targets have the shape of the prediction.

    Raises:
        ValueError: if they have not.
    """
    if tuple(targets.shape) != tuple(shape):
        raise ValueError(f"targets must be {tuple(shape)}, but got {tuple(targets.shape)}")


def label_arrays(
    prediction: Tensor, targets: Tensor, num_classes: int
) -> tuple[LabelArray, LabelArray]:
    """Predicted and true label maps, voxels that the targets leave out marked in both.

    Args:
        prediction: Integer labels.
        targets: Integer labels, with `IGNORE_INDEX` where a voxel is left out.
        num_classes: Classes, background included.

    Raises:
        ValueError: as `label_array`.
    """
    one = label_array(prediction, num_classes, "predictions")
    ignored = None
    if targets.dtype.is_signed and not targets.is_floating_point():
        ignored = (targets == IGNORE_INDEX).detach().cpu().numpy()
    if ignored is None or not ignored.any():
        return one, label_array(targets, num_classes, "targets")
    known = torch.where(targets == IGNORE_INDEX, 0, targets)
    other = label_array(known, num_classes, "targets")
    # what was given may share its memory
    one, other = one.copy(), other.copy()
    one[ignored] = other[ignored] = num_classes
    return one, other


def label_array(labels: Tensor, num_classes: int, name: str) -> LabelArray:
    """A label map as an array of the smallest type.

    Args:
        labels: Integer labels.
        num_classes: Classes, background included.
        name: What the labels are, for the message of an error.

    Raises:
        ValueError: if labels are empty, no integers, or no classes.
    """
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"{name} must be integer labels, but got {labels.dtype}")
    if labels.numel() == 0:
        raise ValueError(f"{name} are empty: shape {tuple(labels.shape)}")
    # negative labels are great ones without a sign, so that one pass finds both kinds
    array = labels.detach().cpu().numpy()
    if int(array.view(f"u{array.itemsize}").max()) >= num_classes:
        low, high = int(array.min()), int(array.max())
        raise ValueError(
            f"labels must be 0 to {num_classes - 1} for num_classes={num_classes}, "
            f"but {name} hold {low} to {high}"
        )
    return np.ascontiguousarray(array, dtype=np.min_scalar_type(num_classes))


def check_spacing(spacing: Sequence[float] | None, spatial_dims: int) -> tuple[float, ...]:
    """The spacing, 1 along each axis by default.

    Raises:
        ValueError: if it has not one positive number an axis.
    """
    if spacing is None:
        return (1.0,) * spatial_dims
    checked = tuple(float(size) for size in spacing)
    if len(checked) != spatial_dims:
        raise ValueError(f"spacing={checked} must have {spatial_dims} entries, one a spatial axis")
    if not all(size > 0 and math.isfinite(size) for size in checked):
        raise ValueError(f"spacing={checked} must be above 0 along each axis, in mm")
    return checked


def without_flat_axes(
    prediction: LabelArray, target: LabelArray, spacing: tuple[float, ...]
) -> tuple[LabelArray, LabelArray, tuple[float, ...]]:
    """Label maps `(b, *spatial)` without the axes of one voxel, as long as there are two others.

    A volume of one slice is an image: it has no surface above and below its slice, which would be
    most of its area.
    """
    axes = range(target.ndim - 1)
    flat = [axis for axis in axes if target.shape[axis + 1] == 1][: len(axes) - 2]
    if not flat:
        return prediction, target, spacing
    dropped = tuple(axis + 1 for axis in flat)
    left = tuple(size for axis, size in enumerate(spacing) if axis not in flat)
    return prediction.squeeze(dropped), target.squeeze(dropped), left


def check_tolerance(tolerance: float) -> float:
    """The tolerance.

    Raises:
        ValueError: if it is negative, infinite or nan.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"tolerance must be 0 or more, and finite, but got {tolerance}")
    return float(tolerance)


def reduce_scores(scores: Float[Tensor, "b c"], reduction: Reduction) -> Tensor:
    """Scores as they are, or the mean over items of each class, then over foreground classes."""
    return scores[:, 1:].nanmean(dim=0).nanmean() if reduction == "mean" else scores


def unknown_voxels(one: LabelArray, num_classes: int) -> NDArray[np.bool_] | None:
    """Which voxels of a label array are left out; None for none."""
    unknown = one == num_classes
    return unknown if unknown.any() else None
