"""Where the classes of a label map are, and how many voxels they have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt
from numpy.typing import NDArray
from scipy import ndimage


def class_boxes(
    labels: UInt[np.ndarray, "d h w"], max_label: int = 0
) -> Iterator[tuple[int, tuple[slice, ...]]]:
    """Each class that a label map has, in order and without the background, and the box around it.

    Args:
        labels: The label map.
        max_label: The highest value that is looked for; 0 for all, those of voxels that are left
            out included.
    """
    for value, box in enumerate(ndimage.find_objects(labels, max_label), start=1):
        if box is not None:
            yield value, box


def voxel_counts(labels: UInt[np.ndarray, "..."], num_classes: int) -> NDArray[np.int64]:
    """Voxels of each class, counted plane by plane: `np.bincount` needs a copy of 8 bytes a voxel.

    Args:
        labels: A label map, in any order in memory.
        num_classes: Number of classes, background included; higher values are not counted.
    """
    if labels.ndim and labels.strides[0] < labels.strides[-1]:
        labels = labels.T
    counts = np.zeros(num_classes, dtype=np.int64)
    for plane in labels:
        counts += np.bincount(plane.ravel(order="K"), minlength=num_classes)[:num_classes]
    return counts
