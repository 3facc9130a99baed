"""The files of one preprocessed case, each written in full or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.prepared.cache import LABELLED, CaseEntry
from training.data.prepared.label_arrays import class_boxes, voxel_counts
from training.data.prepared.preprocessing import Preprocessing
from training.data.prepared.stored_array import array_file, file_content
from training.data.raw.layouts import RawCase
from training.durable_write import write_durably
from training.ignored_voxels import is_ignored

FOREGROUND_CENTRES = 10_000
"""Voxels kept of each class of a case, as centres of patches."""


def store_case(
    case: RawCase, preprocessing: Preprocessing, folder: Path, *, compressed: bool = False
) -> CaseEntry:
    """Preprocess a case and write its arrays.

    Args:
        case: The case.
        preprocessing: The settings.
        folder: Where the arrays are written.
        compressed: Whether they are compressed.

    Raises:
        DatasetError: if a file is unreadable, or does not fit the others.
    """
    prepared = preprocessing.apply(case.images, case.label, case.channels)
    assert prepared.label is not None
    sizes = {}
    for kind, array in (("image", prepared.image), ("label", prepared.label)):
        content = file_content(array, compressed=compressed)
        write_durably(folder / array_file(f"{case.case_id}.{kind}", compressed=compressed), content)
        sizes[kind] = len(content)
        # a scan and its file do not fit into memory for long
        del content
    centres = _foreground_centres(prepared.label, preprocessing.num_classes)
    if preprocessing.ignore:
        centres[LABELLED] = _centres(~is_ignored(prepared.label, preprocessing.num_classes))
    foreground = io.BytesIO()
    np.savez(foreground, allow_pickle=False, **centres)
    write_durably(folder / f"{case.case_id}.foreground.npz", foreground.getvalue())
    counts = voxel_counts(prepared.label, preprocessing.num_classes)
    channels, depth, height, width = prepared.image.shape
    return CaseEntry(
        images=list(case.images),
        label=case.label,
        channels=None if case.channels is None else list(case.channels),
        shape=(channels, depth, height, width),
        voxel_counts=counts.tolist(),
        labelled=None if case.labelled is None else list(case.labelled),
        warnings=list(prepared.warnings),
        compressed=sizes if compressed else {},
    )


def _foreground_centres(
    labels: NDArray[np.unsignedinteger[Any]], num_classes: int
) -> dict[str, NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    centres = {}
    for label, box in class_boxes(labels, num_classes - 1):
        first = np.array([side.start for side in box], dtype=np.int32)
        centres[str(label)] = _centres(labels[box] == label, rng) + first
    return centres


def _centres(mask: NDArray[np.bool_], rng: np.random.Generator | None = None) -> NDArray[np.int32]:
    """Voxels `(n, 3)` of a mask, `FOREGROUND_CENTRES` at most."""
    found = np.argwhere(mask).astype(np.int32)
    if len(found) > FOREGROUND_CENTRES:
        rng = rng or np.random.default_rng(0)
        found = found[np.sort(rng.choice(len(found), FOREGROUND_CENTRES, replace=False))]
    return found
