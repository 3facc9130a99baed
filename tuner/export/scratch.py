"""Large arrays on the disk while an export chooses, of which nothing is left afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tuner.errors import ExportError

SMALL = 2**20
"""Bytes of an array that stays in memory: a process may only have so many files open."""


class Scratch:
    """Memory-mapped arrays in temporary files of a folder.

    The files have no name: whatever ends the process, the disk that they take is free again.

    Args:
        folder: Where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def free(self) -> int:
        """Bytes of the disk that are free."""
        return shutil.disk_usage(self._folder).free

    def array(self, shape: Sequence[int], dtype: DTypeLike) -> NDArray[Any]:
        """A new array of zeros.

        Raises:
            ExportError: if the disk has no room for it.
        """
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size <= SMALL:
            return np.zeros(shape, dtype)
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                # a full disk is an error here, and would be the end of the process later
                os.posix_fallocate(file.fileno(), 0, size)
                return np.memmap(file, dtype, "r+", shape=tuple(shape))
        except OSError as error:
            raise ExportError(
                f"{self._folder} has no room for {size / 1e9:.2f} GB of predictions of validation "
                f"cases ({error.strerror or error}): make room, or export the winner alone with "
                "--ensemble 1"
            ) from error
