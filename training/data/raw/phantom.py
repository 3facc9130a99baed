"""The embedded data: a synthetic abdominal CT with liver and tumours, for every machine.

Each case is drawn by a formula from its seed: a body with fat, muscle, spine, kidneys, spleen,
stomach and vessels, a liver of varying shape, and up to four tumours in it; one case in five has
none. Intensities are in Hounsfield units with noise, slices are thicker than pixels are wide,
and files differ in orientation, as those of scanners do.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from scipy import ndimage

from training.data.cache_folder import cache_errors, cache_root
from training.data.raw.layouts import DATASET_JSON, IMAGES, LABELS
from training.data.raw.remote import fetch_data
from training.errors import DatasetError
from training.local_path import is_url

PHANTOM = "phantom"
"""Value of `data_dir` that names the embedded data."""

VERSION = 1
CASES = 24
SEED = 0

Grid = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def resolve_data_dir(data_dir: Path | str) -> Path:
    """The folder that a config's `data_dir` means.

    `phantom` is generated into the cache, and the files of an address are fetched there.

    Raises:
        DatasetError: if an address cannot be reached, something else has the phantom's name in the
            cache, or the cache cannot be written.
    """
    if is_url(data_dir):
        return fetch_data(data_dir)
    if str(data_dir) != PHANTOM:
        return Path(data_dir)
    root = cache_root()
    folder = root / f"liver_phantom-v{VERSION}"
    with cache_errors(root), _locked(root, folder.name):
        if not (folder / DATASET_JSON).is_file():
            if os.path.lexists(folder):
                raise DatasetError(
                    f"{folder} is where the embedded data would be made, and is something else "
                    f"(it has no {DATASET_JSON}): move it away, or choose another cache with the "
                    "environment variable SEGTUNE_CACHE"
                )
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=root) as partial:
                made = generate_phantom(Path(partial, PHANTOM), num_cases=CASES, seed=SEED)
                made.rename(folder)
    return folder


@contextmanager
def _locked(root: Path, name: str) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{name}.lock"):
        yield


def generate_phantom(folder: Path, *, num_cases: int = CASES, seed: int = SEED) -> Path:
    """Write phantom cases as NIfTI files in Decathlon layout.

    Args:
        folder: Where to write: a folder that is not there yet, or empty.
        num_cases: Number of cases.
        seed: Seed of all cases; the same seed writes the same voxels.

    Returns:
        `folder`.

    Raises:
        DatasetError: if the folder holds anything.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise DatasetError(f"{folder} is not empty: choose another folder for the phantom cases")
    for name in (IMAGES, LABELS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = []
    for index in range(num_cases):
        name = f"liver_{index:03d}.nii.gz"
        rng = np.random.default_rng([seed, index])
        image, label, spacing = draw_case(rng, tumours=index % 5 != 4)
        _save(folder / IMAGES / name, image, spacing, ORIENTATIONS[index % len(ORIENTATIONS)])
        _save(folder / LABELS / name, label, spacing, ORIENTATIONS[index % len(ORIENTATIONS)])
        names.append({"image": f"./{IMAGES}/{name}", "label": f"./{LABELS}/{name}"})
    description = {
        "name": "Liver phantom",
        "description": "Synthetic abdominal CT with liver and tumours",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
        "numTraining": num_cases,
        "training": names,
    }
    (folder / DATASET_JSON).write_text(json.dumps(description, indent=1))
    return folder


ORIENTATIONS = ("LPS", "RAS", "LPS", "LAS", "RPI")
"""Directions in which the axes of the files grow, in turn."""


def draw_case(
    rng: np.random.Generator, *, tumours: bool
) -> tuple[NDArray[np.int16], NDArray[np.uint8], tuple[float, float, float]]:
    """Draw one case.

    Args:
        rng: Random numbers of the case.
        tumours: Whether the liver has tumours.

    Returns:
        Image in Hounsfield units and label map, both `(x, y, z)` with axes that grow to
        left, posterior and superior, and the voxel spacing in mm.
    """
    pixel, slice_distance = rng.uniform(4.4, 5.2), rng.uniform(6.0, 8.0)
    shape = (int(rng.integers(64, 73)), int(rng.integers(52, 61)), int(rng.integers(24, 31)))
    spacing = (float(pixel), float(pixel), float(slice_distance))
    grid: Grid = tuple(
        (axis - (size - 1) / 2) * step
        for axis, size, step in zip(np.indices(shape), shape, spacing, strict=True)
    )
    half = np.array([size * step / 2 for size, step in zip(shape, spacing, strict=True)])
    image = _body(grid, half, rng)
    liver = _liver(grid, half, rng, spacing)
    image[liver] = rng.uniform(95, 125)
    image[_vessels(grid, liver, rng)] = rng.uniform(150, 175)
    tumour = np.zeros(shape, dtype=bool)
    if tumours:
        tumour = _tumours(grid, liver, rng)
        image[tumour] = rng.uniform(35, 60)
    # partial volume, then noise that is correlated as reconstruction leaves it
    image = ndimage.gaussian_filter(image, sigma=0.5)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma=(0.6, 0.6, 0.3))
    image += noise / noise.std() * rng.uniform(12, 22)
    label = liver.astype(np.uint8)
    label[tumour] = 2
    return np.clip(np.round(image), -1024, 3000).astype(np.int16), label, spacing


def _ellipsoid(
    grid: Grid, centre: NDArray[np.float64], radii: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Below 1 inside the ellipsoid."""
    squared = [((axis - c) / r) ** 2 for axis, c, r in zip(grid, centre, radii, strict=True)]
    return np.asarray(np.sqrt(np.sum(squared, axis=0)))


def _body(grid: Grid, half: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Air, body and the organs that are not segmented."""
    x, y, _ = grid
    left, back, up = half
    image = np.full(x.shape, -1000.0)
    across = np.sqrt((x / (0.92 * left)) ** 2 + (y / (0.9 * back)) ** 2)
    image[across < 1] = -100.0  # fat
    image[across < 0.9] = 50.0  # muscle
    image[across < 0.8] = rng.uniform(10, 30)  # abdomen
    for side in (-1, 1):  # lung bases
        lung = _ellipsoid(
            grid, np.array([side * 0.4 * left, 0, 1.15 * up]), np.array([0.33, 0.6, 0.5]) * half
        )
        image[lung < 1] = -850.0
    spine = np.hypot(x, y - 0.58 * back)
    image[spine < 20] = 250.0
    image[spine < 12] = 150.0
    image[np.hypot(x - 8, y - 0.3 * back) < 10] = rng.uniform(140, 180)  # aorta
    for side in (-1, 1):  # kidneys
        centre = np.array([side * 0.38 * left, 0.38 * back, rng.uniform(-0.7, -0.5) * up])
        image[_ellipsoid(grid, centre, np.array([26.0, 22.0, 45.0])) < 1] = rng.uniform(140, 190)
    spleen = np.array([0.6 * left, 0.25 * back, 0.25 * up])
    image[_ellipsoid(grid, spleen, np.array([30.0, 38.0, 45.0])) < 1] = rng.uniform(100, 130)
    stomach = np.array([0.42 * left, -0.3 * back, 0.3 * up])
    inside = _ellipsoid(grid, stomach, np.array([35.0, 32.0, 40.0])) < 1
    image[inside] = 20.0
    image[inside & (y < stomach[1] - 8)] = -900.0  # gas rises to the front
    return image


def _liver(
    grid: Grid,
    half: NDArray[np.float64],
    rng: np.random.Generator,
    spacing: tuple[float, float, float],
) -> NDArray[np.bool_]:
    """A right and a left lobe with an uneven surface, on the patient's right."""
    left, back, up = half
    shift = rng.uniform(-8, 8, size=3)
    right = _ellipsoid(
        grid,
        np.array([-0.42 * left, -0.02 * back, 0.2 * up]) + shift,
        np.array([0.4 * left, 0.52 * back, 0.62 * up]) * rng.uniform(0.85, 1.1, size=3),
    )
    lobe = _ellipsoid(
        grid,
        np.array([-0.02 * left, -0.3 * back, 0.35 * up]) + shift,
        np.array([0.38 * left, 0.24 * back, 0.35 * up]) * rng.uniform(0.8, 1.15, size=3),
    )
    uneven = ndimage.gaussian_filter(
        rng.normal(size=grid[0].shape), sigma=[22 / step for step in spacing]
    )
    distance = np.minimum(right, lobe) + 0.09 * uneven / uneven.std()
    across = np.sqrt((grid[0] / (0.92 * left)) ** 2 + (grid[1] / (0.9 * back)) ** 2)
    return np.asarray((distance < 1) & (across < 0.8))


def _vessels(grid: Grid, liver: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Two straight vessels through the liver; they belong to its label."""
    x, y, z = grid
    middle = [float(axis[liver].mean()) for axis in grid]
    vessels = np.zeros(liver.shape, dtype=bool)
    for _ in range(2):
        direction = rng.normal(size=3)
        direction /= np.linalg.norm(direction)
        offset = np.stack([axis - m for axis, m in zip((x, y, z), middle, strict=True)])
        along = np.tensordot(direction, offset, axes=1)
        vessels |= np.sqrt(np.maximum((offset**2).sum(axis=0) - along**2, 0)) < 5
    return vessels & liver


def _tumours(grid: Grid, liver: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """One to four round tumours of 8 to 28 mm radius, with their centre inside the liver."""
    inner = np.argwhere(ndimage.binary_erosion(liver, iterations=2))
    tumours = np.zeros(liver.shape, dtype=bool)
    for _ in range(int(rng.integers(1, 5))):
        voxel = tuple(inner[rng.integers(len(inner))])
        centre = np.array([axis[voxel] for axis in grid])
        radii = rng.uniform(8, 28) * rng.uniform(0.8, 1.2, size=3)
        tumours |= _ellipsoid(grid, centre, radii) < 1
    return tumours & liver


def _save(
    path: Path,
    voxels: NDArray[np.int16] | NDArray[np.uint8],
    spacing: tuple[float, float, float],
    orientation: str,
) -> None:
    """Write a volume whose axes grow to left, posterior, superior along other axes."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = [120.0, 110.0, -300.0]
    image = nib.Nifti1Image(voxels, affine)
    source = nib.orientations.io_orientation(affine)
    target = nib.orientations.axcodes2ornt(orientation)
    oriented = image.as_reoriented(nib.orientations.ornt_transform(source, target))
    oriented.header.set_xyzt_units("mm")
    nib.save(oriented, path)
