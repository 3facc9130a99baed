"""Volumes on another grid: images by splines, labels and probabilities linearly.

Where slices are more than 3 times as thick as pixels are wide, a spline across slices would
mix tissue that has nothing to do with each other. nnU-Net resamples such volumes slice by
slice and takes the nearest slice across them (Isensee et al., 2021, supplement); so does this.
Voxel centres are aligned, not corners, as in ITK and torch's `align_corners=False`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from training.data.prepared.label_arrays import class_boxes

ANISOTROPY = 3.0
"""Ratio of spacings above which a grid is strongly anisotropic, as nnU-Net has it."""

PLANES = 32
"""Planes of the new grid that are resampled at once, where a volume comes slab by slab."""

NEGLIGIBLE = 1e-8
"""Weight of a voxel in a spline below which it is left out: below the rounding of float32."""

SAME_SPACING = 1e-3
"""Relative difference below which two spacings of a file are the same but for rounding."""


def choose_spacing(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]
) -> tuple[float, float, float]:
    """Median spacing; on a strongly anisotropic axis the 10th percentile, as nnU-Net plans.

    Args:
        spacings: Spacing of each case in mm (depth, height, width).
        shapes: Its grid, cropped to the body.
    """
    target = np.median(np.asarray(spacings), axis=0)
    size = np.median(np.asarray(shapes), axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    thick = target[worst] > ANISOTROPY * target[others].max()
    if thick and ANISOTROPY * size[worst] < size[others].min():
        low = float(np.percentile([spacing[worst] for spacing in spacings], 10))
        target[worst] = max(low, float(target[others].max()))
    depth, height, width = (round(float(value), 6) for value in target)
    return depth, height, width


def anisotropic_axis(current: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis across thick slices, if the grid before or after has one.

    Args:
        current: Spacing of a volume in mm.
        target: Spacing that it is resampled to.

    Returns:
        The axis of the largest spacing where it is more than 3 times the smallest; None where
        none is, or where two axes share the largest.
    """
    for spacing in (current, target):
        if max(spacing) / min(spacing) > ANISOTROPY:
            coarse = np.flatnonzero(np.isclose(spacing, max(spacing), rtol=SAME_SPACING))
            return int(coarse[0]) if len(coarse) == 1 else None
    return None


def resample_image(
    voxels: Float[np.ndarray, "d h w"], shape: tuple[int, ...], axis: int | None = None
) -> Float[np.ndarray, "d2 h2 w2"]:
    """Intensities on a grid of `shape` over the same extent, by a cubic spline.

    Args:
        voxels: The volume.
        shape: The new grid.
        axis: Axis across thick slices: splines within a slice, the nearest slice across.
    """
    if voxels.shape == shape:
        return np.ascontiguousarray(voxels)
    if axis is None:
        return _spline(voxels, shape)
    slices = np.moveaxis(voxels, axis, 0)
    plane = _without(shape, axis)
    chosen = _nearest(len(slices), shape[axis])
    resampled = {index: _spline(slices[index], plane) for index in np.unique(chosen).tolist()}
    stacked = np.stack([resampled[index] for index in chosen.tolist()])
    return np.ascontiguousarray(np.moveaxis(stacked, 0, axis))


def resample_label(
    labels: UInt[np.ndarray, "d h w"], shape: tuple[int, ...], axis: int | None = None
) -> UInt[np.ndarray, "d2 h2 w2"]:
    """Labels on a grid of `shape` over the same extent: each class linearly, the most wins.

    Of several that have as much the lowest wins. Each class is resampled in its own box alone, as
    most organs are small; the background has what they leave.
    """
    if labels.shape == shape:
        return np.ascontiguousarray(labels)
    between = [
        _between(old, new, nearest=index == axis)
        for index, (old, new) in enumerate(zip(labels.shape, shape, strict=True))
    ]
    best = np.zeros(shape, dtype=np.float32)
    others = np.zeros(shape, dtype=np.float32)
    resampled = np.zeros(shape, dtype=labels.dtype)
    for value, box in class_boxes(labels):
        share = (labels[box] == value).astype(np.float32)
        place = []
        for index, (source, (below, above, weight)) in enumerate(zip(box, between, strict=True)):
            # planes that lie between two of which one is in the box
            touched = np.flatnonzero((above >= source.start) & (below < source.stop))
            if not len(touched):
                break
            chosen = slice(int(touched[0]), int(touched[-1]) + 1)
            place.append(chosen)
            near = below[chosen] - source.start, above[chosen] - source.start, weight[chosen]
            share = _lerp(share, index, *near)
        if len(place) < 3:
            # it falls between the planes of a coarser grid
            continue
        there = tuple(place)
        others[there] += share
        better = share > best[there]
        best[there][better] = share[better]
        resampled[there][better] = value
    np.subtract(1, others, out=others)
    resampled[others >= best] = 0
    return resampled


def _lerp(
    voxels: Float[np.ndarray, "..."],
    axis: int,
    below: NDArray[np.int64],
    above: NDArray[np.int64],
    share: NDArray[np.float32],
) -> Float[np.ndarray, "..."]:
    """Values between two planes each along an axis; planes that are not there are 0."""
    padded = np.pad(voxels, [(1, 1) if index == axis else (0, 0) for index in range(voxels.ndim)])
    last = padded.shape[axis] - 1
    lower = padded.take(np.clip(below + 1, 0, last), axis)
    if not share.any():
        return lower
    upper = padded.take(np.clip(above + 1, 0, last), axis)
    weight = share.reshape([-1 if index == axis else 1 for index in range(voxels.ndim)])
    return np.asarray(lower + (upper - lower) * weight)


def resample_linear(
    voxels: Float[np.ndarray, "d h w"], shape: tuple[int, ...], axis: int | None = None
) -> Float[np.ndarray, "d2 h2 w2"]:
    """Values on a grid of `shape`, linearly; across thick slices (`axis`) the nearest."""
    if voxels.shape == shape:
        return voxels
    if axis is None:
        return np.asarray(_interpolate(voxels[None, None], shape, "trilinear")[0, 0])
    slices = np.moveaxis(voxels, axis, 0)
    chosen = slices[_nearest(len(slices), shape[axis])]
    resampled = _interpolate(chosen[:, None], _without(shape, axis), "bilinear")[:, 0]
    return np.ascontiguousarray(np.moveaxis(resampled, 0, axis))


def resample_slabs(
    slabs: Iterable[Float[Tensor, "k slab h w"]],
    planes: int,
    shape: tuple[int, ...],
    axis: int | None = None,
) -> Iterator[tuple[slice, Iterator[Float[Tensor, "new h2 w2"]]]]:
    """Volumes of several classes on a grid of `shape`, as `resample_linear` makes them of each.

    Neither the volumes nor the resampled ones are ever whole in memory.

    Args:
        slabs: The volumes, slab by slab along their first axis.
        planes: Planes of all slabs together.
        shape: The new grid, over the same extent.
        axis: Axis across thick slices, along which the nearest is taken.

    Yields:
        Which planes of the new grid, a few at a time; and their values for each class, one class
        after the other.
    """
    below, above, share = _between(planes, shape[0], nearest=axis == 0)
    first = done = 0
    carried: Tensor | None = None
    for slab in slabs:
        held = slab[:, :0] if carried is None else carried
        end = first + held.shape[1] + slab.shape[1]
        ready = int(np.searchsorted(above, end))
        for start in range(done, ready, PLANES):
            chosen = slice(start, min(start + PLANES, ready))
            near = below[chosen] - first, above[chosen] - first, share[chosen]
            yield chosen, _classes_between(held, slab, *near, shape[1:], axis)
        done = ready
        # of what is left the next planes may need the last ones
        needed = min(int(below[done]), end) if done < shape[0] else end
        both = torch.cat([held, slab[:, max(needed - first - held.shape[1], 0) :]], dim=1)
        carried = both[:, both.shape[1] - (end - needed) :].clone()
        first = needed


def _classes_between(
    held: Tensor,
    slab: Tensor,
    below: NDArray[np.int64],
    above: NDArray[np.int64],
    share: NDArray[np.float32],
    plane: tuple[int, ...],
    axis: int | None,
) -> Iterator[Tensor]:
    """Planes between those of `held` and `slab` together, class by class."""
    low, high = int(below[0]), int(above[-1]) + 1
    lower, upper = torch.from_numpy(below - low), torch.from_numpy(above - low)
    weight = torch.from_numpy(share)[:, None, None]
    for of_held, of_slab in zip(held, slab, strict=True):
        skipped = max(low - len(of_held), 0)
        source = torch.cat([of_held[low:high], of_slab[skipped : max(high - len(of_held), 0)]])
        source = _resized_planes(source, plane, None if axis == 0 else axis)
        values = source[lower]
        yield torch.lerp(values, source[upper], weight) if share.any() else values


def _resized_planes(
    planes: Float[Tensor, "n h w"], shape: tuple[int, ...], axis: int | None
) -> Float[Tensor, "n h2 w2"]:
    """Each plane on another grid, linearly; along the axis 1 or 2 the nearest, if it is given."""
    if tuple(planes.shape[1:]) == shape:
        return planes
    if axis is not None:
        chosen = torch.from_numpy(_nearest(planes.shape[axis], shape[axis - 1]))
        planes = planes.index_select(axis, chosen)
    return F.interpolate(planes[:, None], size=shape, mode="bilinear", align_corners=False)[:, 0]


def _between(
    old: int, new: int, *, nearest: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each new plane the old ones below and above its centre, and the share of the latter."""
    if nearest:
        chosen = _nearest(old, new)
        return chosen, chosen, np.zeros(new, dtype=np.float32)
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    below = np.floor(centres).astype(np.int64)
    share = centres - below
    return (
        below,
        np.where(share > 0, np.minimum(below + 1, old - 1), below),
        share.astype(np.float32),
    )


def _spline(voxels: Float[np.ndarray, "..."], shape: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """Values on another grid by a cubic spline, as `scipy.ndimage.zoom` has them.

    A spline is linear in the values and acts along one axis after the other, so each axis is a
    product with a matrix: 4 times as fast, without a copy in float64.
    """
    resampled = np.asarray(voxels, dtype=np.float32)
    # what shrinks the volume most comes first
    for axis in sorted(range(voxels.ndim), key=lambda axis: shape[axis] / voxels.shape[axis]):
        if voxels.shape[axis] != shape[axis]:
            resampled = _spline_along(resampled, axis, shape[axis])
    # a spline overshoots at sharp edges
    return np.clip(resampled, voxels.min(), voxels.max(), out=resampled)


def _spline_along(
    voxels: Float[np.ndarray, "..."], axis: int, size: int
) -> Float[np.ndarray, "..."]:
    """A spline along one axis, a few new planes at a time."""
    matrix = _spline_matrix(voxels.shape[axis], size)
    before, after = voxels.shape[:axis], voxels.shape[axis + 1 :]
    columns = torch.from_numpy(
        np.ascontiguousarray(voxels).reshape(math.prod(before), voxels.shape[axis], -1)
    )
    new = torch.empty((len(columns), size, columns.shape[2]))
    for first in range(0, size, PLANES):
        rows = slice(first, min(first + PLANES, size))
        # of planes further away a spline has nothing
        used = np.flatnonzero(np.abs(matrix[rows]).max(axis=0) > NEGLIGIBLE)
        source = slice(int(used[0]), int(used[-1]) + 1)
        weights = torch.from_numpy(np.ascontiguousarray(matrix[rows, source]))
        new[:, rows] = torch.matmul(weights, columns[:, source])
    return new.numpy().reshape(*before, size, *after)


@lru_cache(maxsize=64)
def _spline_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Weight of each old value in each new one, of a cubic spline along an axis."""
    unit = np.eye(old)
    return np.stack(
        [ndimage.zoom(one, new / old, order=3, mode="nearest", grid_mode=True) for one in unit],
        axis=1,
    ).astype(np.float32)


def _interpolate(voxels: NDArray[Any], shape: tuple[int, ...], mode: str) -> NDArray[np.float32]:
    tensor = torch.from_numpy(np.ascontiguousarray(voxels))
    resized = F.interpolate(tensor, size=shape, mode=mode, align_corners=False)
    return np.asarray(resized.numpy())


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """The old slice whose extent holds the centre of each new one."""
    centres = np.floor((np.arange(new) + 0.5) * old / new).astype(np.int64)
    return np.minimum(centres, old - 1)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
