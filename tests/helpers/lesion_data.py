"""A small data folder in Decathlon layout: boxes of two classes in noise, voxels of any size."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (12, 14, 16)


def write_lesions(
    folder: Path,
    *,
    cases: int = 6,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    labels: Sequence[str] = ("background", "organ", "lesion"),
    modality: str = "MRI",
) -> Path:
    """Cases `case_0`, `case_1`, ...; the lesion is a thin plate in the organ."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    affine = np.diag([*spacing, 1.0])
    for number in range(cases):
        rng = np.random.default_rng(number)
        label = np.zeros(SHAPE, dtype=np.uint8)
        i, j, k = rng.integers(1, 4, 3)
        label[i : i + 7, j : j + 7, k : k + 7] = 1
        label[i + 3, j + 1 : j + 6, k + 1 : k + 6] = 2
        image = (rng.normal(100, 5, SHAPE) + 60 * label).astype(np.float32)
        name = f"case_{number}.nii.gz"
        nib.save(nib.Nifti1Image(image, affine), folder / "imagesTr" / name)
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / name)
    description = {
        "name": "lesions",
        "modality": {"0": modality},
        "labels": {str(value): name for value, name in enumerate(labels)},
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder
