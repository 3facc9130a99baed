"""Synthetic scans of a size that hospitals have, drawn by formula: noise of a CT, many organs."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

COARSE = 4
"""Organs are drawn on a grid that is this many times coarser, and enlarged."""


def draw_scan(
    rng: np.random.Generator, shape: tuple[int, int, int], organs: int
) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Draw a body of ellipsoids.

    Args:
        rng: Random numbers of the scan.
        shape: Voxels (x, y, z).
        organs: Number of labels besides the background.

    Returns:
        Intensities in Hounsfield units, and the label map, both of `shape`.
    """
    coarse = tuple(-(-size // COARSE) for size in shape)
    axes = np.meshgrid(
        *(np.linspace(-1, 1, size, dtype=np.float32) for size in coarse), indexing="ij", sparse=True
    )
    body = (axes[0] / 0.85) ** 2 + (axes[1] / 0.65) ** 2 + 0 * axes[2] < 1
    image = np.where(body, np.float32(40), np.float32(-1000))
    label = np.zeros(coarse, dtype=np.uint8)
    for organ in range(1, organs + 1):
        centre = rng.uniform((-0.5, -0.35, -0.85), (0.5, 0.35, 0.85))
        radii = rng.uniform(0.05, 0.25, size=3)
        inside = sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) < 1
        label[inside] = organ
        image[inside] = rng.uniform(-80, 250)
    cut = tuple(slice(size) for size in shape)
    fine = ndimage.zoom(image, COARSE, order=1, grid_mode=True, mode="nearest")[cut]
    # as reconstruction leaves it, noise is correlated
    noise = ndimage.uniform_filter(rng.standard_normal(fine.shape, dtype=np.float32), 2)
    voxels = np.round(fine + 50 * noise).astype(np.int16)
    for axis in range(3):
        label = label.repeat(COARSE, axis)
    return voxels, np.ascontiguousarray(label[cut])


def write_scans(
    folder: Path, cases: int, shape: tuple[int, int, int], organs: int, *, seed: int = 0
) -> None:
    """Write scans in nnU-Net's layout, each with a spacing of its own, so that all are resampled.

    Args:
        folder: An empty folder, or one that is not there.
        cases: Number of scans.
        shape: Voxels (x, y, z) of each.
        organs: Number of labels besides the background.
        seed: Seed of all scans.
    """
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for case in range(cases):
        rng = np.random.default_rng([seed, case])
        voxels, label = draw_scan(rng, shape, organs)
        step = 1 + 0.1 * (case % 3)
        affine = np.diag([-0.8 * step, -0.8 * step, step, 1])
        name = f"scan_{case:03d}"
        nib.save(nib.Nifti1Image(voxels, affine), folder / "imagesTr" / f"{name}_0000.nii.gz")
        nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"{name}.nii.gz")
    labels = {"background": 0, **{f"organ {organ}": organ for organ in range(1, organs + 1)}}
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "channel_names": {"0": "CT"},
                "labels": labels,
                "numTraining": cases,
                "file_ending": ".nii.gz",
            }
        )
    )
