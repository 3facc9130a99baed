"""Measures of one case: grid, intensities by channel, volumes and components by class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.affines import obliquity
from numpy.typing import NDArray
from scipy import ndimage

from training.data.raw.header import Grid, orientation_of, spacing_of
from training.data.raw.layouts import Modality

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
"""Percentiles of intensities that are kept; the outer two are nnU-Net's window of a CT."""

SAMPLES = 1_000_000
"""Random voxels that percentiles and deviations are of, where there are more."""

FEW_VALUES = 64
"""Different intensities up to which an image may be a label map."""

SLAB = 2**23
"""Voxels that are worked on at once, where a copy of all would take too much memory."""

AIR = -950.0
"""Hounsfield units below which a voxel is air; lungs are above it."""


@dataclass(frozen=True)
class GridMeasures:
    """The grid of a case.

    Attributes:
        shape: Voxels along superior, anterior and right.
        spacing: Spacing along them in mm.
        axes: Directions in which the axes of the file grow, such as `RAS`.
        oblique: Largest angle between an axis of the file and one of the scanner, in degrees.
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    axes: str
    oblique: float

    @property
    def extent(self) -> tuple[float, float, float]:
        """Size in mm along superior, anterior and right."""
        s, a, r = (size * step for size, step in zip(self.shape, self.spacing, strict=True))
        return s, a, r

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in ml."""
        return float(np.prod(self.spacing)) / 1000


@dataclass(frozen=True)
class ChannelMeasures:
    """Intensities of a channel.

    Attributes:
        low: The lowest.
        high: The highest.
        mean: Mean of all voxels.
        std: Standard deviation.
        percentiles: `PERCENTILES` of all voxels.
        foreground: `PERCENTILES` of the voxels that carry a label; None if none does.
        classes: Median of the voxels of each class, background first; None for an absent one.
        whole: Whether all are whole numbers.
        values: All intensities where they are `FEW_VALUES` or fewer; else empty.
    """

    low: float
    high: float
    mean: float
    std: float
    percentiles: tuple[float, ...]
    foreground: tuple[float, ...] | None
    classes: tuple[float | None, ...]
    whole: bool
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class ClassMeasures:
    """One class of a case.

    Attributes:
        voxels: Voxels of it.
        volume: Their volume in ml.
        components: Connected components (26 neighbours).
        largest: Share of its voxels that the largest component has, 0 for an absent class.
        centre: Its centre as shares of the grid along superior, anterior and right; None for an
            absent one.
    """

    voxels: int
    volume: float
    components: int
    largest: float
    centre: tuple[float, float, float] | None


@dataclass(frozen=True)
class CaseMeasures:
    """All measures of a case.

    Attributes:
        case_id: Its name.
        grid: Its grid.
        channels: Its channels; empty where only headers were read.
        classes: Its classes, background first; empty where only headers were read.
        content: Digest of the image in one orientation: equal for equal images.
        values: Digest of how often each intensity occurs: equal for mirrored images as well.
        in_air: Share of the labelled voxels that lie where every channel is empty.
    """

    case_id: str
    grid: GridMeasures
    channels: tuple[ChannelMeasures, ...] = ()
    classes: tuple[ClassMeasures, ...] = ()
    content: str = ""
    values: str = ""
    in_air: float = 0.0

    @property
    def foreground(self) -> int:
        """Voxels that carry a label."""
        return sum(each.voxels for each in self.classes[1:])


def measure_grid(grid: Grid) -> GridMeasures:
    """The grid of a volume."""
    orientation = orientation_of(grid.affine)
    depth, height, width = (grid.shape[int(axis)] for axis in np.argsort(orientation[:, 0]))
    return GridMeasures(
        shape=(depth, height, width),
        spacing=spacing_of(grid.affine, orientation),
        axes="".join(code or "?" for code in nib.aff2axcodes(grid.affine)),
        oblique=float(np.rad2deg(obliquity(grid.affine).max())),
    )


def measure_channel(
    voxels: NDArray[np.float32], labels: NDArray[Any] | None, num_classes: int
) -> ChannelMeasures:
    """Intensities of a channel `(i, j, k)`, beside the label map of the case on its grid.

    Percentiles, deviation and medians are those of `SAMPLES` random voxels where there are more.
    """
    rng = np.random.default_rng(0)
    # NIfTI files are read in Fortran's order: a copy in another one takes longer than the rest
    order: Literal["F", "C"] = "F" if voxels.flags.f_contiguous else "C"
    flat = voxels.ravel(order)
    chosen = _sampled(rng, flat.size)
    some = flat[chosen]
    foreground = None
    medians: list[float | None] = [None] * num_classes
    if labels is not None:
        marked = labels.ravel(order)
        found = np.flatnonzero((marked > 0) & (marked < num_classes))
        inside = found[_sampled(rng, found.size)]
        if inside.size:
            foreground = _percentiles(flat[inside])
        values = np.concatenate([some[marked[chosen] == 0], flat[inside]])
        classes = np.concatenate([np.zeros(len(values) - len(inside), int), marked[inside]])
        medians = [
            float(np.median(values[classes == value])) if (classes == value).any() else None
            for value in range(num_classes)
        ]
    different = np.unique(some)
    return ChannelMeasures(
        low=float(voxels.min()),
        high=float(voxels.max()),
        mean=float(voxels.mean(dtype=np.float64)),
        std=float(some.std(dtype=np.float64)),
        percentiles=_percentiles(some),
        foreground=foreground,
        classes=tuple(medians),
        whole=bool((different == np.rint(different)).all()),
        values=tuple(different.tolist()) if len(different) <= FEW_VALUES else (),
    )


def measure_classes(
    labels: NDArray[Any], affine: NDArray[np.float64], num_classes: int
) -> tuple[ClassMeasures, ...]:
    """Volume, components and place of each class of a label map `(i, j, k)`."""
    oriented = oriented_like_cache(labels, affine)
    voxel = abs(float(np.linalg.det(affine[:3, :3]))) / 1000
    counts = np.bincount(labels.ravel(order="K"), minlength=num_classes)[:num_classes]
    boxes = ndimage.find_objects(oriented, max_label=num_classes - 1)
    measured = [ClassMeasures(int(counts[0]), float(counts[0] * voxel), 0, 0.0, None)]
    for value, box in enumerate(boxes, start=1):
        count = int(counts[value])
        if box is None:
            measured.append(ClassMeasures(0, 0.0, 0, 0.0, None))
            continue
        inside = oriented[box] == value
        objects, number = ndimage.label(inside, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(objects.ravel())[1:]
        centre = [
            float(
                np.average(
                    np.arange(part.start, part.stop) + 0.5,
                    weights=np.count_nonzero(inside, axis=others),
                )
            )
            / size
            for part, size, others in zip(
                box, oriented.shape, ((1, 2), (0, 2), (0, 1)), strict=True
            )
        ]
        measured.append(
            ClassMeasures(
                count,
                count * voxel,
                int(number),
                float(sizes.max() / count),
                (centre[0], centre[1], centre[2]),
            )
        )
    return tuple(measured)


def oriented_like_cache(voxels: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Voxels with axes that grow to superior, anterior and right: a view of them."""
    return np.asarray(nib.orientations.apply_orientation(voxels, orientation_of(affine)))


def is_empty(voxels: NDArray[np.float32], modality: Modality) -> NDArray[np.bool_]:
    """Where a channel shows nothing: air in a CT, 0 elsewhere."""
    return np.asarray(voxels < AIR if modality == "CT" else voxels == 0)


def content_digest(channels: Sequence[NDArray[np.float32]], affine: NDArray[np.float64]) -> str:
    """SHA-256 of an image in one orientation, whatever the orientation and type of its file."""
    whole = hashlib.sha256()
    for voxels in channels:
        oriented = oriented_like_cache(voxels, affine)
        whole.update(repr(oriented.shape).encode())
        for plane in oriented:
            # -0.0 is 0.0
            whole.update(np.ascontiguousarray(plane + np.float32(0)).data)
    return whole.hexdigest()


def values_digest(channels: Sequence[NDArray[np.float32]]) -> str:
    """SHA-256 of how often each intensity occurs, in steps of its leading 20 bits."""
    whole = hashlib.sha256()
    for voxels in channels:
        counts = np.zeros(2**20, dtype=np.int64)
        flat = voxels.ravel(order="K")
        for first in range(0, flat.size, SLAB):
            bits = (flat[first : first + SLAB] + np.float32(0)).view(np.uint32) >> np.uint32(12)
            counts += np.bincount(bits, minlength=2**20)
        whole.update(counts.data)
    return whole.hexdigest()


def _sampled(rng: np.random.Generator, size: int) -> NDArray[np.int64] | slice:
    return slice(None) if size <= SAMPLES else rng.integers(size, size=SAMPLES)


def _percentiles(values: NDArray[np.float32]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.percentile(values, PERCENTILES))
