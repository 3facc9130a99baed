"""Volumes on another grid: images by splines, labels and probabilities linearly.

Where slices are more than 3 times as thick as pixels are wide, a spline across slices would
mix tissue that has nothing to do with each other. nnU-Net resamples such volumes slice by
slice and takes the nearest slice across them (Isensee et al., 2021, supplement); so does this.
Voxel centres are aligned, not corners, as in ITK and torch's `align_corners=False`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt
from numpy.typing import NDArray
from scipy import ndimage

ANISOTROPY = 3.0
"""Ratio of spacings above which a grid is strongly anisotropic, as nnU-Net has it."""

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
    """Labels on a grid of `shape` over the same extent: each class linearly, the most wins."""
    if labels.shape == shape:
        return np.ascontiguousarray(labels)
    best = np.zeros(shape, dtype=np.float32)
    resampled = np.zeros(shape, dtype=labels.dtype)
    for value in np.unique(labels):
        share = resample_linear((labels == value).astype(np.float32), shape, axis)
        better = share > best
        best[better] = share[better]
        resampled[better] = value
    return resampled


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


def _spline(voxels: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.float32]:
    if voxels.shape == shape:
        return np.asarray(voxels, dtype=np.float32)
    factors = [new / old for new, old in zip(shape, voxels.shape, strict=True)]
    resampled = ndimage.zoom(voxels, factors, order=3, mode="nearest", grid_mode=True)
    # a spline overshoots at sharp edges
    return np.asarray(np.clip(resampled, voxels.min(), voxels.max()), dtype=np.float32)


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
