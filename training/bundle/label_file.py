"""Writes label maps, with the geometry of an image and nothing else of its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.raw.formats.file_format import FORMATS, WRITTEN, written_format
from training.data.raw.header import open_volume
from training.errors import BundleError, DatasetError


def check_label_file(output: Path) -> None:
    """Check that a label map can be written with a name.

    Raises:
        BundleError: if its ending is of no format that is written.
    """
    if written_format(output) is None:
        raise BundleError(
            f"{output}: a label map is written as {', '.join(WRITTEN)}; end its name with one of "
            "them"
        )


def write_label_map(
    label: NDArray[np.unsignedinteger[Any]],
    image: Path,
    output: Path,
    *,
    names: Mapping[int, str] | None = None,
    file_format: str | None = None,
) -> None:
    """Write a label map in the geometry of an image, whole or not at all.

    What is taken over of the image's header is said where each format is written, see
    `training.data.raw.formats`.

    Args:
        label: Label map on the image's grid, `(i, j, k)`.
        image: The image, of any format.
        output: File to write; its ending says the format, and its folder must be there.
        names: Name of each value, for formats that hold names (DICOM-SEG, RTSTRUCT).
        file_format: Format of `OUTPUT_FORMATS`, where several have the ending.

    Raises:
        BundleError: if its ending is of no format that is written.
        DatasetError: if the format cannot hold the label map.
        OSError: if the file cannot be written; one that was there stays.
    """
    check_label_file(output)
    name = written_format(output, file_format)
    assert name is not None
    source, _ = open_volume(image)
    try:
        FORMATS[name].module.write_label(label, source, output, names=names)
    except DatasetError as error:
        raise DatasetError(f"{image}: {error}") from error
