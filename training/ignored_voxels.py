"""Voxels that nobody labelled: left out of losses, statistics, sampling and metrics.

Data with an `ignore` label, as in nnU-Net, say of each voxel that has it: not known. Its class is
neither background nor any other. In an array of the cache or of a file that was read, such a voxel
has the largest value of the array's type (255 in uint8), which is then no class. In the tensors
that losses and metrics get, it has `IGNORE_INDEX`, as torch's own losses have it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt
from numpy.typing import DTypeLike, NDArray

IGNORE = "ignore"
"""Name of the label in `dataset.json`, as in nnU-Net."""

IGNORE_INDEX = -100
"""Label of a voxel that is left out, in the targets of losses and metrics; torch's default."""


def ignored_value(kind: DTypeLike) -> int:
    """Label of a voxel that is left out, in an array of an unsigned type: its largest value."""
    return int(np.iinfo(np.dtype(kind)).max)


def is_ignored(labels: UInt[np.ndarray, "*grid"], num_classes: int) -> Bool[np.ndarray, "*grid"]:
    """Which voxels of an array are left out: those of no class."""
    return np.asarray(labels >= num_classes)


def as_targets(
    labels: NDArray[np.unsignedinteger[Any]], num_classes: int, kind: DTypeLike = np.int64
) -> Int[np.ndarray, "*grid"]:
    """Labels of an array as losses and metrics take them.

    Args:
        labels: Classes from 0 to `num_classes - 1`, and `ignored_value` of voxels that are left
            out; a label map without such voxels may have all values of its type as classes.
        num_classes: Classes, background included.
        kind: Type of the result, which is signed.
    """
    targets = labels.astype(kind)
    targets[is_ignored(labels, num_classes)] = IGNORE_INDEX
    return np.asarray(targets)
