"""Places of voxels: corners of grids, and the two conventions, RAS+ (nibabel) and LPS+ (ITK)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import DatasetError

GRID_TOLERANCE = 0.1
"""Share of a voxel by which corners of two grids may differ: what headers are rounded by."""

ORTHOGONAL = 1e-4
"""Cosine of the angle between two axes up to which they are taken to be orthogonal."""

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Places in RAS+ to places in LPS+, and back."""


def corners(shape: Sequence[int], affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places of the 8 corners of a grid in mm, `(3, 8)`."""
    ends = np.indices((2, 2, 2)).reshape(3, 8) * np.array(shape)[:, None]
    return np.asarray(affine[:3, :3] @ ends + affine[:3, 3:])


def spacing_text(spacing: Any) -> str:
    """A spacing as text, `0.7 x 0.7 x 5`."""
    return " x ".join(f"{size:.6g}" for size in spacing)


@dataclass(frozen=True)
class Place:
    """The place of a grid as ITK and DICOM have it, in LPS+.

    Attributes:
        spacing: Size of a voxel in mm along each axis.
        origin: Place of the first voxel in mm.
        direction: Unit vectors of the axes as columns, `(axes, axes)`.
    """

    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: NDArray[np.float64]

    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to millimetres in RAS+, `(4, 4)`; a third axis of 1 mm where there is none.

        Axes after the third are no place.
        """
        axes = min(3, len(self.spacing))
        whole = np.eye(4)
        whole[:axes, :axes] = self.direction[:axes, :axes] * np.array(self.spacing[:axes])
        whole[:axes, 3] = self.origin[:axes]
        return np.asarray(LPS @ whole)

    @classmethod
    def of_affine(cls, affine: NDArray[np.float64]) -> Place:
        """The place that an affine in RAS+ stands for.

        Raises:
            DatasetError: if its axes are not orthogonal, which ITK and DICOM cannot hold.
        """
        whole = LPS @ affine
        spacing = np.linalg.norm(whole[:3, :3], axis=0)
        direction = whole[:3, :3] / spacing
        if np.abs(direction.T @ direction - np.eye(3)).max() > ORTHOGONAL:
            raise DatasetError(
                "the axes of the image are not orthogonal (its affine is sheared), which only "
                "NIfTI can hold: write the label map with --format nifti"
            )
        first, second, third = (float(size) for size in spacing)
        x, y, z = (float(mm) for mm in whole[:3, 3])
        return cls((first, second, third), (x, y, z), direction)

    def flat(self) -> Place:
        """The first two axes of a slice, whose third axis is that of the plane's normal."""
        return Place(self.spacing[:2], self.origin[:2], self.direction[:2, :2])
