"""Small folders of NIfTI files in Decathlon layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (12, 11, 10)


def save(path: Path, voxels: Any, affine: Any = None) -> Path:
    """Write a NIfTI file; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)
    return path


def boxes(*labels: int) -> np.ndarray:
    """A label map with a box of 3 x 3 x 3 voxels of each label."""
    voxels = np.zeros(SHAPE, dtype=np.uint16 if max(labels, default=0) > 255 else np.uint8)
    for index, label in enumerate(labels):
        first = 1 + 4 * index
        voxels[1:4, 1:4, first : first + 3] = label
    return voxels


def make_data(
    folder: Path,
    cases: dict[str, Any],
    *,
    names: tuple[str, ...] = ("background", "organ", "lesion"),
    modality: str = "MRI",
    affine: Any = None,
    **description: Any,
) -> Path:
    """Write a folder of one-channel cases.

    Args:
        folder: Where.
        cases: Label map of each case.
        names: Name of each label.
        modality: That of the one channel.
        affine: Place of all volumes.
        description: What else dataset.json says.
    """
    rng = np.random.default_rng(0)
    for case, label in cases.items():
        image = rng.normal(100, 10, size=label.shape[:3]).astype(np.float32)
        save(folder / "imagesTr" / f"{case}.nii.gz", image, affine)
        save(folder / "labelsTr" / f"{case}.nii.gz", label, affine)
    values = {
        "modality": {"0": modality},
        "labels": {str(value): name for value, name in enumerate(names)},
        **description,
    }
    (folder / "dataset.json").write_text(json.dumps(values))
    return folder
