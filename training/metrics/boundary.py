"""Boundary F1: how much of the boundary lies within a tolerance of the other boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from training.metrics.distances import SLACK, ball, box_of_ball, nearest_distances
from training.metrics.labels import (
    LabelArray,
    Reduction,
    check_logits,
    check_spacing,
    check_tolerance,
    label_arrays,
    predict_labels,
    reduce_scores,
    unknown_voxels,
    without_flat_axes,
)

MAX_OFFSETS = 500
"""Offsets of the box around the tolerance up to which each is looked up for all classes."""

DENSE_SHARE = 0.05
"""Share of boundary voxels in an image above which whole images are compared, not voxels."""

NEAREST_OFFSETS = 7
"""Number of nearest offsets compared in this way: most voxels have a match by then."""


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
    (Csurka et al., 2013).

    Args:
        logits: Scores of the classes, in 2D or 3D.
        targets: Label map; voxels of `IGNORE_INDEX` are left out.
        num_classes: Classes, background included.
        tolerance: Greatest Euclidean distance, in voxels, or in mm when `spacing` is given.
        spacing: Size of a voxel in mm along each spatial axis.
        reduction: "mean" over items, then over foreground classes, or "none".

    Returns:
        A scalar, or `(b, num_classes)`.

    Raises:
        ValueError: for shapes, types or labels that do not fit together, a negative
            tolerance, or a spacing that is not one positive number an axis.
    """
    check_logits(logits, targets, num_classes)
    prediction, target = label_arrays(predict_labels(logits), targets, num_classes)
    scores = boundary_scores(
        prediction,
        target,
        num_classes,
        tolerance=tolerance,
        spacing=spacing,
        background=reduction == "none",
    )
    return reduce_scores(scores.to(targets.device), reduction)


def boundary_scores(
    prediction: LabelArray,
    target: LabelArray,
    num_classes: int,
    *,
    tolerance: float,
    spacing: Sequence[float] | None,
    background: bool = False,
) -> Float[Tensor, "b c"]:
    """Boundary F1 of label maps `(b, *spatial)`; nan for the background unless asked for."""
    sizes = check_spacing(spacing, target.ndim - 1)
    prediction, target, sizes = without_flat_axes(prediction, target, sizes)
    box = box_of_ball(check_tolerance(tolerance), sizes)
    near = math.prod(2 * steps + 1 for steps in box) <= MAX_OFFSETS
    offsets = ball(tolerance, sizes) if near else np.empty((0, len(sizes)), dtype=np.int64)
    reach = np.abs(offsets).max(axis=0, initial=1)
    scores = np.full((len(target), num_classes), np.nan)
    for item in range(len(target)):
        one, other = (
            _Boundary(labels[item], num_classes, reach, background=background)
            for labels in (prediction, target)
        )
        hits = [
            a.at_offsets(b, offsets) if near else a.within(b, tolerance, sizes)
            for a, b in ((one, other), (other, one))
        ]
        with np.errstate(invalid="ignore"):
            precision, recall = hits[0] / one.sizes, hits[1] / other.sizes
            f1 = 2 * precision * recall / (precision + recall)
        in_both, in_any = one.sizes * other.sizes > 0, one.sizes + other.sizes > 0
        missed = in_any & ~(in_both & (hits[0] + hits[1] > 0))
        if one.has_unknown:
            # of a class that both have, one may have no boundary that is known
            missed &= ~(one.holds & other.holds & ~in_both)
        scores[item] = np.where(missed, 0.0, f1)
    return torch.from_numpy(scores)


class _Boundary:
    """Boundary voxels of every class of a label map.

    Every voxel has one label, so one pass finds the boundaries of all classes: a voxel is on
    its class's boundary if any face neighbour has another label. A neighbour that is left out
    makes no boundary, for nobody knows its label.

    Attributes:
        sizes: Boundary voxels of each class.
        has_unknown: Whether there are voxels that are left out.
        holds: Whether each class has voxels; known where `has_unknown`.
    """

    def __init__(
        self,
        labels: LabelArray,
        num_classes: int,
        reach: NDArray[np.int64],
        *,
        background: bool,
    ) -> None:
        outside = labels.dtype.type(num_classes)
        # wide enough that no neighbour and no offset of the ball leaves the array
        self._reach = np.minimum(reach, labels.shape)
        widths = [(width, width) for width in self._reach]
        padded = np.pad(labels, widths, constant_values=outside)
        flat = padded.ravel()
        self._strides = np.array(padded.strides) // padded.itemsize
        self._shape = padded.shape
        edge = np.zeros(flat.shape, dtype=bool)
        left_out = unknown_voxels(labels, num_classes)
        self.has_unknown = left_out is not None
        self.holds = np.zeros(num_classes, dtype=bool)
        known = None
        if left_out is not None:
            known = ~np.pad(left_out, widths).ravel()
            found = np.unique(labels)
            self.holds[found[found < num_classes]] = True
        for stride in self._strides:
            differs = flat[stride:] != flat[:-stride]
            if known is not None:
                differs &= known[stride:] & known[:-stride]
            edge[stride:] |= differs
            edge[:-stride] |= differs
        edge &= flat != outside
        if not background:
            edge &= flat != 0
        self._num_classes = num_classes
        self._places = np.flatnonzero(edge)
        self._classes = flat[self._places]
        self._map = np.where(edge, flat, outside)
        self.sizes = self._count(self._classes)

    def at_offsets(self, other: _Boundary, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Boundary voxels of each class that have one of the other boundary at an offset."""
        fits = (np.abs(offsets) <= self._reach).all(axis=1)
        steps = offsets[fits] @ self._strides
        places, classes = self._places, self._classes
        if len(places) > DENSE_SHARE * self._map.size:
            places = self._unmatched(other, steps[:NEAREST_OFFSETS])
            steps, classes = steps[NEAREST_OFFSETS:], self._map[places]
        for offset in steps:
            # offsets come by length, and most voxels find their match early
            open_ = other._map[places + offset] != classes
            places, classes = places[open_], classes[open_]
        return self.sizes - self._count(classes)

    def _unmatched(self, other: _Boundary, steps: NDArray[np.int64]) -> NDArray[np.int64]:
        """Places of boundary voxels that have no match at any of a few steps."""
        margin = int(self._reach @ self._strides)
        inside = slice(margin, self._map.size - margin)
        mine = self._map[inside]
        open_ = mine != self._num_classes
        for step in steps:
            open_ &= other._map[inside.start + step : inside.stop + step] != mine
        return np.flatnonzero(open_) + margin

    def within(
        self, other: _Boundary, tolerance: float, spacing: Sequence[float]
    ) -> NDArray[np.int64]:
        """Boundary voxels of each class within a distance of the other boundary."""
        hits = np.zeros(self._num_classes, dtype=np.int64)
        for label in np.flatnonzero((self.sizes > 0) & (other.sizes > 0)):
            distances = nearest_distances(
                self._points(int(label)), other._points(int(label)), spacing, tolerance
            )
            hits[label] = np.count_nonzero(distances <= tolerance * (1 + SLACK))
        return hits

    def _points(self, label: int) -> NDArray[np.int64]:
        places = self._places[self._classes == label]
        return np.stack(np.unravel_index(places, self._shape), axis=1)

    def _count(self, classes: LabelArray) -> NDArray[np.int64]:
        return np.bincount(classes, minlength=self._num_classes)
