"""Planes of a case to look at: one of each direction, through the largest part of its label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.case_label import read_case_label
from training.data.raw.layouts import RawCase, RawDataset
from training.data.raw.volume import read_image
from training.data.statistics.measures import measure_grid, oriented_like_cache
from training.ignored_voxels import is_ignored

DIRECTIONS = ("axial", "coronal", "sagittal")


@dataclass(frozen=True)
class Plane:
    """A plane as it is looked at: the patient's right is on the left, front on top or left.

    Attributes:
        direction: One of `DIRECTIONS`.
        position: Its index along its axis, counted from inferior, posterior or left.
        images: Intensities `(channel, row, column)`.
        labels: Classes `(row, column)`.
        spacing: Distance of rows and of columns in mm.
    """

    direction: str
    position: int
    images: NDArray[np.float32]
    labels: NDArray[Any]
    spacing: tuple[float, float]


def case_planes(case: RawCase, dataset: RawDataset) -> list[Plane]:
    """Three planes of a case, or one of a picture.

    Raises:
        DatasetError: naming the file that cannot be used.
    """
    image = read_image(case.images)
    classes = read_case_label(case, dataset).data
    # what nobody labelled has no contour
    classes[is_ignored(classes, len(dataset.labels))] = 0
    labels = oriented_like_cache(classes, image.affine)
    channels = [oriented_like_cache(voxels, image.affine) for voxels in image.data]
    marked = labels > 0
    spacing = measure_grid(image).spacing
    planes = []
    for axis, direction in enumerate(DIRECTIONS):
        rows, columns = (other for other in range(3) if other != axis)
        if min(labels.shape[rows], labels.shape[columns]) == 1:
            continue
        counts = np.count_nonzero(marked, axis=(rows, columns))
        position = int(counts.argmax()) if counts.any() else labels.shape[axis] // 2
        planes.append(
            Plane(
                direction,
                position,
                np.stack([_turned(voxels, axis, position) for voxels in channels]),
                _turned(labels, axis, position),
                (spacing[rows], spacing[columns]),
            )
        )
    return planes


def _turned(voxels: NDArray[Any], axis: int, position: int) -> NDArray[Any]:
    """A plane with superior or anterior on top, and the right or the front on the left."""
    return np.ascontiguousarray(np.take(voxels, position, axis=axis)[::-1, ::-1])
