"""A file of voxels that was opened: its header is read, its voxels are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class OpenedFile:
    """What the header of a file says, and how its voxels are read.

    Attributes:
        path: The file, or the folder of a DICOM series.
        shape: `(i, j, k)`, with a fourth axis for channels; two axes in the file have k = 1.
        affine: Voxel indices to millimetres in RAS+, `(4, 4)`.
        dtype: Type of the voxels that are stored.
        read: Reads the voxels, in `shape`.
        flat: Whether the file has two spatial axes.
        scaling: Slope and intercept that the header applies to what is stored.
        unit: Unit of length that the header gives, where it is not mm.
        native: The header as the library of the format has it, for a label map in its place.
        doubts: Says what is doubtful about the header; called after the affine was checked.
    """

    path: Path
    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    dtype: np.dtype[Any]
    read: Callable[[], NDArray[Any]]
    flat: bool = False
    scaling: tuple[float, float] = (1.0, 0.0)
    unit: str = ""
    native: Any = None
    doubts: Callable[[], tuple[str, ...]] = tuple
