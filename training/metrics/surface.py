"""Normalised surface Dice, 95 % Hausdorff distance, average symmetric surface distance.

The surface is that of DeepMind's `surface-distance`; `training.metrics` says what that means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.metrics.distances import SLACK, nearest_distances
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

PERCENTILE = 0.95


class SurfaceScores(NamedTuple):
    """Scores of a batch by item and class, each `(b, c)`.

    Attributes:
        nsd: Normalised surface Dice; nan where the class is in neither, 0 where it is in one.
        hd95: 95 % Hausdorff distance; nan where the class is not in both.
        assd: Average symmetric surface distance; nan where the class is not in both.
        missing: Whether the class is in one of prediction and target alone, so that its
            distances are missing.
    """

    nsd: Float[Tensor, "b c"]
    hd95: Float[Tensor, "b c"]
    assd: Float[Tensor, "b c"]
    missing: Bool[Tensor, "b c"]


def surface_scores(
    logits: Float[Tensor, "b c *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int = 3,
    *,
    tolerance: float = 1.0,
    spacing: Sequence[float] | None = None,
    background: bool = False,
) -> SurfaceScores:
    """All surface scores of each item and class, at the cost of one.

    Args:
        logits: Scores of the classes, in 2D or 3D.
        targets: Label map; voxels of `IGNORE_INDEX` are left out.
        num_classes: Classes, background included.
        tolerance: Of the normalised surface Dice, in voxels, or in mm when `spacing` is given.
        spacing: Size of a voxel in mm along each spatial axis.
        background: Whether class 0 is measured too; otherwise it is nan.

    Raises:
        ValueError: for shapes, types or labels that do not fit together, a negative
            tolerance, or a spacing that is not one positive number an axis.
    """
    check_logits(logits, targets, num_classes)
    prediction, target = label_arrays(predict_labels(logits), targets, num_classes)
    scores = surface_scores_of_labels(
        prediction,
        target,
        num_classes,
        tolerance=tolerance,
        spacing=spacing,
        background=background,
    )
    if not background:
        nsd, hd95, assd = (functional.pad(each, (1, 0), value=math.nan) for each in scores[:3])
        scores = SurfaceScores(nsd, hd95, assd, functional.pad(scores.missing, (1, 0)))
    return SurfaceScores(*(score.to(targets.device) for score in scores))


def normalised_surface_dice(
    logits: Float[Tensor, "b c *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int = 3,
    *,
    tolerance: float = 1.0,
    spacing: Sequence[float] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Share of both surfaces' area within a tolerance of the other surface.

    Nikolov et al., 2018 (arXiv 1809.04430).

    Args:
        logits: Scores of the classes, in 2D or 3D.
        targets: Label map; voxels of `IGNORE_INDEX` are left out.
        num_classes: Classes, background included.
        tolerance: Greatest distance, in voxels, or in mm when `spacing` is given.
        spacing: Size of a voxel in mm along each spatial axis.
        reduction: "mean" over items, then over foreground classes, or "none".

    Returns:
        A scalar, or `(b, num_classes)`.

    Raises:
        ValueError: as `surface_scores`.
    """
    scores = surface_scores(
        logits,
        targets,
        num_classes,
        tolerance=tolerance,
        spacing=spacing,
        background=reduction == "none",
    )
    return reduce_scores(scores.nsd, reduction)


def hausdorff_distance_95(
    logits: Float[Tensor, "b c *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int = 3,
    *,
    spacing: Sequence[float] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Distance within which 95 % of each surface's area lies from the other surface.

    A mean leaves missing distances out: use `surface_scores` or `SurfaceMetrics` to count them.
    In mm when `spacing` is given, else in voxels; other arguments, result and errors are those
    of `normalised_surface_dice`.
    """
    scores = surface_scores(
        logits, targets, num_classes, spacing=spacing, background=reduction == "none"
    )
    return reduce_scores(scores.hd95, reduction)


def average_symmetric_surface_distance(
    logits: Float[Tensor, "b c *spatial"],
    targets: Int[Tensor, "b *spatial"],
    num_classes: int = 3,
    *,
    spacing: Sequence[float] | None = None,
    reduction: Reduction = "mean",
) -> Float[Tensor, "..."]:
    """Mean distance to the other surface over the area of both surfaces (Heimann et al., 2009).

    A mean over cases leaves missing distances out: use `surface_scores` or `SurfaceMetrics` to
    count them. In mm when `spacing` is given, else in voxels; other arguments, result and
    errors are those of `normalised_surface_dice`.
    """
    scores = surface_scores(
        logits, targets, num_classes, spacing=spacing, background=reduction == "none"
    )
    return reduce_scores(scores.assd, reduction)


def surface_scores_of_labels(
    prediction: LabelArray,
    target: LabelArray,
    num_classes: int,
    *,
    tolerance: float,
    spacing: Sequence[float] | None,
    distances: bool = True,
    background: bool = False,
) -> SurfaceScores:
    """Surface scores of label maps `(b, *spatial)` of each class, see `label_arrays`.

    Without `distances`, HD95 and ASSD are nan, and the NSD costs a fraction. Without `background`,
    class 0 is left out.
    """
    classes = range(0 if background else 1, num_classes)
    sizes = check_spacing(spacing, target.ndim - 1)
    prediction, target, sizes = without_flat_axes(prediction, target, sizes)
    check_tolerance(tolerance)
    scores = np.array(
        [
            [
                _class_scores(
                    one == label, other == label, unknown, tolerance, sizes, distances=distances
                )
                for label in classes
            ]
            for one, other in zip(prediction, target, strict=True)
            for unknown in (unknown_voxels(other, num_classes),)
        ]
    )
    nsd, hd95, assd, missing = (torch.from_numpy(scores[..., index]) for index in range(4))
    return SurfaceScores(nsd, hd95, assd, missing.bool())


def _class_scores(
    prediction: NDArray[np.bool_],
    target: NDArray[np.bool_],
    unknown: NDArray[np.bool_] | None,
    tolerance: float,
    spacing: tuple[float, ...],
    *,
    distances: bool,
) -> tuple[float, float, float, bool]:
    """NSD, HD95 and ASSD of two masks, and whether the distances are missing.

    The surface beside a voxel of `unknown` is left out: nobody knows whether it is there.
    """
    box = _bounding_box(prediction | target)
    if box is None:
        return np.nan, np.nan, np.nan, False
    left_out = None
    if unknown is not None:
        # what touches the masks from outside their box counts as well
        box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in box)
        left_out = unknown[box]
    one, other = (_Surface.of(mask[box], spacing, left_out) for mask in (prediction, target))
    if not one.areas.size or not other.areas.size:
        if prediction.any() and target.any():
            # both have the class, and the surface of one is not known anywhere
            return np.nan, np.nan, np.nan, False
        return 0.0, np.nan, np.nan, True
    limit = math.inf if distances else tolerance
    sides = [one.distances_to(other, spacing, limit), other.distances_to(one, spacing, limit)]
    found = np.concatenate(sides)
    areas = np.concatenate([one.areas, other.areas])
    nsd = float(areas[found <= tolerance * (1 + SLACK)].sum() / areas.sum())
    if not distances:
        return nsd, np.nan, np.nan, False
    hd95 = max(_percentile(one.areas, sides[0]), _percentile(other.areas, sides[1]))
    return nsd, hd95, float((areas * found).sum() / areas.sum()), False


def _percentile(areas: NDArray[np.float64], distances: NDArray[np.float64]) -> float:
    """Least distance within which 95 % of the area lies."""
    order = np.lexsort((areas, distances))
    shares = np.cumsum(areas[order]) / areas[order].sum()
    last = len(order) - 1
    return float(distances[order[min(int(np.searchsorted(shares, PERCENTILE)), last)]])


@dataclass(frozen=True)
class _Surface:
    """Surface elements of a mask.

    Attributes:
        codes: For each corner of voxels, which of the voxels around it are in the mask.
        places: Flat indices into `codes` of the corners that have a surface element.
        areas: Area of each in mm², or length in mm in 2D.
    """

    codes: NDArray[np.uint8]
    places: NDArray[np.int64]
    areas: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        mask: NDArray[np.bool_],
        spacing: tuple[float, ...],
        left_out: NDArray[np.bool_] | None = None,
    ) -> _Surface:
        codes = _neighbour_codes(mask)
        table = _area_of_codes(spacing)
        if left_out is not None:
            # as if there were nothing, so that it is no other surface's nearest element either
            codes[_neighbour_codes(left_out) != 0] = 0
        flat = codes.ravel()
        places = np.flatnonzero((flat != 0) & (flat != len(table) - 1))
        return cls(codes, places, table[flat[places]])

    def distances_to(
        self, other: _Surface, spacing: Sequence[float], limit: float
    ) -> NDArray[np.float64]:
        """Distance of each element to the nearest of the other surface; infinite above `limit`."""
        distances = np.zeros(len(self.places))
        codes = other.codes.ravel()[self.places]
        full = 2 ** (2**self.codes.ndim) - 1
        apart = (codes == 0) | (codes == full)
        if apart.any():
            points = self._points(self.places[apart])
            others = other._points(other.places)
            distances[apart] = nearest_distances(points, others, spacing, limit)
        return distances

    def _points(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack(np.unravel_index(places, self.codes.shape), axis=1)


def _neighbour_codes(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """For each corner of voxels, a bit for each of the 4 or 8 voxels around it.

    The first voxel has the highest bit, and the last axis changes fastest.
    """
    codes = np.pad(mask, 1).view(np.uint8)
    for step, axis in enumerate(reversed(range(mask.ndim))):
        size = codes.shape[axis]
        before, after = (
            codes[tuple(part if a == axis else slice(None) for a in range(mask.ndim))]
            for part in (slice(0, size - 1), slice(1, size))
        )
        codes = (before << 2**step) | after
    return codes


@lru_cache
def _area_of_codes(spacing: tuple[float, ...]) -> NDArray[np.float64]:
    """Area (length in 2D) of the surface in a neighbourhood, by its code."""
    # MONAI takes seconds to import, which a user of the overlap scores never needs
    from monai.metrics import utils

    if len(spacing) == 2:
        lengths, _ = utils.create_table_neighbour_code_to_contour_length(spacing)
        return np.asarray(lengths, dtype=np.float64)
    # the normals are exact in fp32, areas are not: MONAI's own table would cost 7 digits
    normals = utils._get_neighbour_code_to_normals_table().numpy().astype(np.float64)
    depth, height, width = spacing
    faces = np.array([height * width, depth * width, depth * height])
    return np.asarray(np.linalg.norm(normals * faces, axis=-1).sum(axis=-1))


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """The smallest box that holds all of a mask; None for an empty one."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        inside = np.flatnonzero(mask.any(axis=others))
        if not len(inside):
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)
