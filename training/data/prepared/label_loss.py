"""Labels that a case loses on its way to the network, counted."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt
from scipy import ndimage

from training.data.prepared.label_arrays import class_boxes, voxel_counts

STRAY_SHARE = 7e-4
"""Share of a label's voxels in a case below which lost objects are stray voxels of its border."""


def lost_by_resampling(
    before: UInt[np.ndarray, "d h w"], after: UInt[np.ndarray, "d2 h2 w2"]
) -> dict[int, int]:
    """Voxels of objects that resampling removes completely, by label.

    An object is a connected component of one label. A border that moves by a part of a voxel does
    not count as a loss, nor do single stray voxels beside a large organ (`STRAY_SHARE`); a lesion
    of two voxels that falls between those of a coarser grid does.

    Args:
        before: The label map.
        after: The same extent on another grid.
    """
    if before.shape == after.shape:
        return {}
    nearest = [
        np.minimum(((np.arange(old) + 0.5) * new / old).astype(np.int64), new - 1)
        for old, new in zip(before.shape, after.shape, strict=True)
    ]
    back = after[np.ix_(*nearest)]
    lost = {}
    for label, box in class_boxes(before):
        objects, _ = ndimage.label(before[box] == label)
        sizes = np.bincount(objects.ravel())
        sizes[0] = 0
        sizes[np.unique(objects[back[box] == label])] = 0
        if sizes.sum() > STRAY_SHARE * np.count_nonzero(objects):
            lost[label] = int(sizes.sum())
    return lost


def outside(labels: UInt[np.ndarray, "d h w"], box: tuple[tuple[int, int], ...]) -> dict[int, int]:
    """Voxels of each label outside a box.

    Args:
        labels: The label map.
        box: First voxel and end of the box on each axis.
    """
    highest = int(labels.max(initial=0)) + 1
    inside = labels[tuple(slice(first, end) for first, end in box)]
    counts = voxel_counts(labels, highest) - voxel_counts(inside, highest)
    return {label: int(counts[label]) for label in range(1, highest) if counts[label]}
