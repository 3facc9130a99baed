"""Values of label files and the classes that they stand for.

A label file may have any whole numbers: 0, 1, 2, 4 or 0, 255. From the cache on, classes are 0, 1,
2, ... in the order of their values, and what is written for users has the values of the files
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt
from numpy.typing import NDArray

from training.errors import DatasetError
from training.ignored_voxels import ignored_value

MAX_VALUE = 2**16 - 1
"""Largest value of a label, which must fit into uint16; so there are 65,536 classes at most."""


def label_dtype(num_classes: int) -> np.dtype[Any]:
    """The type of a label map: uint8, or uint16 for more than 256 classes.

    Raises:
        DatasetError: if uint16 cannot hold that many classes.
    """
    if num_classes > MAX_VALUE + 1:
        raise DatasetError(f"{num_classes} classes are too many: at most {MAX_VALUE + 1} can be")
    return np.dtype(np.min_scalar_type(num_classes - 1))


def shown_values(values: Sequence[int]) -> str:
    """Label values as text: `0 to 3`, or each of them where there are gaps."""
    if are_consecutive(values):
        return f"0 to {len(values) - 1}"
    shown = ", ".join(str(value) for value in values[:20])
    return shown + (", ..." if len(values) > 20 else "")


def named_labels(names: Sequence[str], values: Sequence[int]) -> str:
    """Labels as text, with their values where those have gaps."""
    if are_consecutive(values):
        return ", ".join(names)
    return ", ".join(f"{name} ({value})" for name, value in zip(names, values, strict=True))


def are_consecutive(values: Sequence[int]) -> bool:
    """Whether label values are 0, 1, 2, ..., so that each value is its class."""
    return list(values) == list(range(len(values)))


def gapped(values: Sequence[int]) -> tuple[int, ...] | None:
    """Label values, None where each value is its class."""
    return None if are_consecutive(values) else tuple(values)


def unknown_values(voxels: NDArray[Any], values: Sequence[int]) -> NDArray[Any]:
    """Those of whole numbers that are none of `values`."""
    if are_consecutive(values):
        return np.asarray(voxels[(voxels < 0) | (voxels >= len(values))])
    return np.asarray(voxels[~np.isin(voxels, values)])


def to_classes(
    voxels: NDArray[Any], values: Sequence[int], ignore: Sequence[int] = ()
) -> UInt[np.ndarray, "*grid"]:
    """The class of each voxel, which must have one of `values`; see `label_dtype`.

    A voxel with one of `ignore` has the largest value of the type, see `training.ignored_voxels`;
    with some, the type has a value that is no class.
    """
    kind = label_dtype(len(values) + bool(ignore))
    if are_consecutive(values) and not ignore:
        return voxels.astype(kind)
    table = np.zeros(max(*values, *ignore) + 1, dtype=kind)
    table[list(values)] = np.arange(len(values))
    table[list(ignore)] = ignored_value(kind)
    return np.asarray(table[voxels.astype(np.uint16)])


def to_values(
    classes: UInt[np.ndarray, "*grid"], values: Sequence[int]
) -> NDArray[np.unsignedinteger[Any]]:
    """The label map of a file, of classes: uint8, or uint16 for values above 255."""
    if are_consecutive(values):
        return classes.astype(label_dtype(len(values)), copy=False)
    table = np.array(values, dtype=np.min_scalar_type(max(values)))
    return np.asarray(table[classes])
