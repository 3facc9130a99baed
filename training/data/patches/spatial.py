"""Rotation and scaling of a patch as one resampling, from no more of a case than it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

PROBABILITY = 0.2
"""Of a rotation, and of a scaling, at strength 1."""

FLAT = 3.0
"""Ratio of a patch's longest side to a side above which it is turned within slices alone."""


def flat_axis(patch_size: Sequence[int]) -> int | None:
    """The axis along which a patch is too thin to be turned over, as nnU-Net has it."""
    axis = int(np.argmin(patch_size))
    return axis if max(patch_size) / patch_size[axis] > FLAT else None


def draw_matrix(
    rng: np.random.Generator, patch_size: Sequence[int], strength: float
) -> NDArray[np.float64] | None:
    """Draw a rotation and a scaling with nnU-Net's probabilities and ranges.

    Rotation by up to 30 degrees about each axis, or by up to 180 degrees within slices where
    the patch is flat; scaling by 0.7 to 1.4, above 1 for smaller objects.

    Args:
        rng: Random numbers.
        patch_size: Size of the patch.
        strength: Multiplies the probabilities and angles; scaling is raised to its power.

    Returns:
        The matrix `(3, 3)` from offsets in the patch to offsets in the case, in voxels; None
        where nothing was drawn.
    """
    rotate, scale = rng.random(2) < PROBABILITY * strength
    if not (rotate or scale):
        return None
    flat = flat_axis(patch_size)
    matrix = np.eye(3)
    if scale:
        factor = rng.uniform(0.7**strength, 1.4**strength)
        matrix *= [1.0 if axis == flat else factor for axis in range(3)]
    if rotate:
        largest = np.deg2rad(30 if flat is None else 180) * strength
        for axis in range(3):
            if flat in (None, axis):
                matrix = _rotation(axis, rng.uniform(-largest, largest)) @ matrix
    return matrix


def _rotation(axis: int, angle: float) -> NDArray[np.float64]:
    """Rotation about an axis, `(3, 3)`."""
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[one, one] = matrix[other, other] = np.cos(angle)
    matrix[one, other], matrix[other, one] = -np.sin(angle), np.sin(angle)
    return matrix


@dataclass(frozen=True)
class Region:
    """The part of a case that a turned and scaled patch is sampled from.

    Attributes:
        box: Its voxels, within the case.
        size: Size of the patch.
        theta: The sampling, `(3, 4)`, as `torch.nn.functional.affine_grid` has it.
    """

    box: tuple[slice, ...]
    size: tuple[int, ...]
    theta: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        corner: NDArray[np.int64],
        patch_size: NDArray[np.int64],
        matrix: NDArray[np.float64],
        shape: Sequence[int],
    ) -> Region:
        """The region of a patch.

        Args:
            corner: First voxel of the patch before it is turned about its centre.
            patch_size: Size of the patch.
            matrix: From `draw_matrix`.
            shape: Size of the case.
        """
        half = (patch_size - 1) / 2
        centre = corner + half
        reach = np.abs(matrix) @ half
        first = np.maximum(np.floor(centre - reach).astype(np.int64), 0)
        end = np.minimum(np.ceil(centre + reach).astype(np.int64) + 1, shape)
        size = end - first
        # voxel i of n has the coordinate (2 i + 1) / n - 1, and torch counts axes from the last
        turn = (2 / size)[:, None] * matrix * (patch_size / 2)
        shift = (2 * (centre - first) + 1) / size - 1
        theta = np.concatenate([turn[::-1, ::-1], shift[::-1, None]], axis=1)
        box = tuple(slice(int(low), int(high)) for low, high in zip(first, end, strict=True))
        return cls(box, tuple(patch_size.tolist()), theta)

    def sample(
        self, image: NDArray[Any], label: NDArray[Any], around: int = 0
    ) -> tuple[Float[Tensor, "c d h w"], Int64[Tensor, "d h w"]]:
        """Resample the voxels of `box`: the image linearly, of the labels the most wins.

        Args:
            image: Voxels `(c, *box)`.
            label: Labels `(*box)`.
            around: Label of what is around the case.
        """
        voxels = torch.from_numpy(np.array(image, dtype=np.float32))
        # torch compares no uint16
        labels = torch.from_numpy(np.asarray(label, dtype=np.int32))
        # what is sampled around the case is 0 in all channels, so it needs none of its own
        values = [int(value) for value in np.unique(label) if value != around]
        channels = torch.cat([voxels, *((labels == value)[None].float() for value in values)])
        theta = torch.from_numpy(self.theta).float()[None]
        grid = F.affine_grid(theta, [1, 1, *self.size], align_corners=False)
        # around the case is background, whose normalised intensity is near 0
        sampled = F.grid_sample(channels[None], grid, padding_mode="zeros", align_corners=False)[0]
        turned, shares = sampled[: len(voxels)], sampled[len(voxels) :]
        target = torch.full(self.size, around, dtype=torch.int64)
        best = 1 - shares.sum(dim=0)
        for value, share in zip(values, shares, strict=True):
            better = share > best
            target[better] = value
            best = torch.maximum(best, share)
        return turned.contiguous(), target
