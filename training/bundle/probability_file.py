"""Writes class probabilities as NIfTI, in the geometry of an image.

The file is 4D: (i, j, k, class), the classes in the order of the network's labels. Probabilities
are stored as whole numbers of 16 bits with a scale in the header (`scl_slope`), which every reader
applies: half the size of floats, rounded to 1/65535, and far better to compress. It is NIfTI for
images of all formats: that can be written piece by piece, and ITK and its viewers read it as well.
"""

from __future__ import annotations

import gzip
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.prepared.preprocessing import STORED
from training.data.raw.formats.nifti import header_like
from training.data.raw.header import open_volume
from training.durable_write import durable_file

CHUNK = 2**26
"""Bytes that are compressed at once."""


@contextmanager
def room_for_probabilities(
    folder: Path, shape: Sequence[int], num_classes: int
) -> Iterator[NDArray[np.uint16]]:
    """An array (i, j, k, class) on the disk, in the order of a NIfTI file; it is gone afterwards.

    Args:
        folder: Where there is room; the array's file has no name in it.
        shape: The image's grid.
        num_classes: Classes of the network.

    Raises:
        OSError: if the disk has not that much room.
    """
    whole = (*shape, num_classes)
    with tempfile.TemporaryFile(dir=folder) as file:
        # a memory map that finds the disk full would end the process
        os.posix_fallocate(file.fileno(), 0, int(np.prod(whole)) * 2)
        yield np.memmap(file, dtype=np.uint16, mode="r+", shape=whole, order="F")


def write_probabilities(stored: NDArray[np.uint16], image: Path, output: Path) -> None:
    """Write probabilities in the geometry of an image, whole or not at all.

    Args:
        stored: What `Preprocessing.invert_slabs` stored, in the order of a NIfTI file.
        image: The image, of any format.
        output: File to write, `.nii.gz`; its folder must be there.

    Raises:
        OSError: if the file cannot be written; one that was there stays.
    """
    source, _ = open_volume(image)
    header, _ = header_like(source, stored.dtype, stored.shape)
    header.set_slope_inter(1 / STORED, 0)
    header["vox_offset"] = header.single_vox_offset
    voxels = stored.T.data.cast("B")
    with (
        durable_file(output) as file,
        # without name and time, so that the same probabilities are the same file
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
    ):
        packed.write(header.binaryblock.ljust(header.single_vox_offset, b"\0"))
        for start in range(0, len(voxels), CHUNK):
            packed.write(voxels[start : start + CHUNK])
