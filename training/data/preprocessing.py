"""What happens to an image before the network sees it, and how its prediction comes back.

Orient to (superior, anterior, right), crop to the body, normalise by modality, resample to
one spacing. The steps and their defaults follow nnU-Net (Isensee et al., 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from training.data.errors import DatasetError
from training.data.volume import Volume, check_same_grid, read_image, read_label

AXES = ("S", "A", "R")
"""Direction in which each axis of a preprocessed volume grows."""

AIR = -500.0
"""Hounsfield units below which a voxel of a CT is outside the body."""


class ChannelNormalisation(BaseModel):
    """How the intensities of one channel are normalised.

    CT: clipped to [`low`, `high`], then (x - mean) / std with values of the training data's
    foreground. MR: (x - mean) / std of the case's own voxels that are not 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Literal["CT", "MR"]
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0

    def apply(self, voxels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Normalised intensities of one channel."""
        if self.modality == "CT":
            clipped = np.clip(voxels, self.low, self.high)
            return np.asarray((clipped - self.mean) / self.std, dtype=np.float32)
        inside = voxels[voxels != 0].astype(np.float64)
        if inside.size == 0:
            return np.zeros_like(voxels)
        spread = float(inside.std())
        # a constant image has nothing to scale
        return np.asarray((voxels - inside.mean()) / (spread or 1.0), dtype=np.float32)


@dataclass(frozen=True)
class CaseGeometry:
    """What is needed to bring a prediction back to the file's own grid.

    Attributes:
        shape: Grid of the file.
        orientation: nibabel's orientation transform from the file to `AXES`, `(3, 2)`.
        crop: First voxel and end of the body on each oriented axis.
    """

    shape: tuple[int, int, int]
    orientation: NDArray[np.float64]
    crop: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class PreprocessedCase:
    """A case as the network sees it.

    Attributes:
        image: float32 `(channel, depth, height, width)`.
        label: uint8 `(depth, height, width)`, None without a label map.
        info: The way back.
    """

    image: Float[np.ndarray, "c d h w"]
    label: UInt8[np.ndarray, "d h w"] | None
    info: CaseGeometry


class Preprocessing(BaseModel):
    """Settings of the preprocessing, fixed by the training data; part of the exported model.

    Attributes:
        spacing: Voxel spacing in mm that volumes are resampled to (depth, height, width).
        channels: Normalisation of each channel.
        num_classes: Number of labels, background included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spacing: tuple[float, float, float]
    channels: list[ChannelNormalisation]
    num_classes: int

    def apply(self, images: Sequence[Path], label: Path | None = None) -> PreprocessedCase:
        """Preprocess one case.

        Args:
            images: Its image files: one, or one a channel.
            label: Its label map, if there is one.

        Raises:
            DatasetError: if a file is unreadable, or does not fit the others or the settings.
        """
        image = read_image(images)
        if len(image.data) != len(self.channels):
            raise DatasetError(
                f"{images[0]}: {len(image.data)} channels, but {len(self.channels)} are needed"
            )
        orientation = orientation_of(image.affine)
        oriented = reorient(image.data, orientation)
        crop = self._crop(oriented)
        box = tuple(slice(first, end) for first, end in crop)
        cropped = oriented[:, *box]
        shape = self._resampled_shape(image.affine, orientation, cropped.shape[1:])
        normalised = np.stack(
            [
                resample_image(channel.apply(voxels), shape)
                for channel, voxels in zip(self.channels, cropped, strict=True)
            ]
        )
        labels = None
        if label is not None:
            label_map = read_label(label, self.num_classes)
            check_same_grid(label, label_map, images[0], image)
            labels = resample_label(reorient(label_map.data, orientation)[box], shape)
        return PreprocessedCase(normalised, labels, CaseGeometry(image.shape, orientation, crop))

    def invert(
        self, probabilities: Float[np.ndarray, "k d h w"], info: CaseGeometry
    ) -> UInt8[np.ndarray, "i j k"]:
        """Label map on the file's own grid, in the file's axis order.

        Args:
            probabilities: Class probabilities of the preprocessed case.
            info: What `apply` returned with the case.
        """
        size = tuple(end - first for first, end in info.crop)
        best = np.full(size, -np.inf, dtype=np.float32)
        inside = np.zeros(size, dtype=np.uint8)
        # class by class: a whole-body scan with many classes would not fit in memory
        for value, probability in enumerate(probabilities):
            resampled = _trilinear(probability, size)
            better = resampled > best
            best[better] = resampled[better]
            inside[better] = value
        permuted = tuple(info.shape[int(source)] for source in np.argsort(info.orientation[:, 0]))
        whole = np.zeros(permuted, dtype=np.uint8)
        whole[tuple(slice(first, end) for first, end in info.crop)] = inside
        return np.ascontiguousarray(
            nib.orientations.apply_orientation(whole, _inverse(info.orientation))
        )

    def _crop(self, oriented: NDArray[np.float32]) -> tuple[tuple[int, int], ...]:
        """Bounding box of the body over all channels; everything if there is none."""
        inside = np.zeros(oriented.shape[1:], dtype=bool)
        for channel, voxels in zip(self.channels, oriented, strict=True):
            inside |= voxels > AIR if channel.modality == "CT" else voxels != 0
        if not inside.any():
            inside[...] = True
        box = []
        for axis in range(3):
            others = tuple(other for other in range(3) if other != axis)
            found = np.flatnonzero(inside.any(axis=others))
            box.append((int(found[0]), int(found[-1]) + 1))
        return tuple(box)

    def _resampled_shape(
        self, affine: NDArray[np.float64], orientation: NDArray[np.float64], shape: Sequence[int]
    ) -> tuple[int, ...]:
        spacing = spacing_of(affine, orientation)
        return tuple(
            max(1, round(size * old / new))
            for size, old, new in zip(shape, spacing, self.spacing, strict=True)
        )


def orientation_of(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Transform (nibabel's) from the axes of `affine` to `AXES`, `(3, 2)`."""
    source = nib.orientations.io_orientation(affine)
    return np.asarray(nib.orientations.ornt_transform(source, nib.orientations.axcodes2ornt(AXES)))


def spacing_of(
    affine: NDArray[np.float64], orientation: NDArray[np.float64]
) -> tuple[float, float, float]:
    """Voxel spacing in mm along `AXES`."""
    sizes = voxel_sizes(affine)
    depth, height, width = (float(sizes[i]) for i in np.argsort(orientation[:, 0]))
    return depth, height, width


def reorient(voxels: NDArray[Any], orientation: NDArray[np.float64]) -> NDArray[Any]:
    """Voxels along `AXES`; a leading channel axis stays where it is."""
    if voxels.ndim == 4:
        return np.stack([reorient(channel, orientation) for channel in voxels])
    return np.asarray(nib.orientations.apply_orientation(voxels, orientation))


def resample_image(
    voxels: Float[np.ndarray, "d h w"], shape: tuple[int, ...]
) -> Float[np.ndarray, "d2 h2 w2"]:
    """Intensities on a grid of `shape` over the same extent, by a cubic spline."""
    if voxels.shape == shape:
        return np.ascontiguousarray(voxels)
    factors = [new / old for new, old in zip(shape, voxels.shape, strict=True)]
    resampled = ndimage.zoom(voxels, factors, order=3, mode="nearest", grid_mode=True)
    # a spline overshoots at sharp edges
    return np.asarray(np.clip(resampled, voxels.min(), voxels.max()), dtype=np.float32)


def resample_label(
    labels: UInt8[np.ndarray, "d h w"], shape: tuple[int, ...]
) -> UInt8[np.ndarray, "d2 h2 w2"]:
    """Labels on a grid of `shape` over the same extent: each class linearly, the most wins."""
    if labels.shape == shape:
        return np.ascontiguousarray(labels)
    best = np.zeros(shape, dtype=np.float32)
    resampled = np.zeros(shape, dtype=np.uint8)
    for value in np.unique(labels):
        share = _trilinear((labels == value).astype(np.float32), shape)
        better = share > best
        best[better] = share[better]
        resampled[better] = value
    return resampled


def _trilinear(
    voxels: Float[np.ndarray, "d h w"], shape: tuple[int, ...]
) -> Float[np.ndarray, "d2 h2 w2"]:
    if voxels.shape == shape:
        return voxels
    tensor = torch.from_numpy(np.ascontiguousarray(voxels))[None, None]
    resized = F.interpolate(tensor, size=shape, mode="trilinear", align_corners=False)
    return np.asarray(resized[0, 0].numpy())


def _inverse(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transform back: axis `orientation[i, 0]` came from axis i, flipped or not."""
    back = np.empty_like(orientation)
    for source, (target, flip) in enumerate(orientation):
        back[int(target)] = (source, flip)
    return back


def choose_spacing(
    spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]
) -> tuple[float, float, float]:
    """Median spacing; on a strongly anisotropic axis the 10th percentile, as nnU-Net plans.

    Args:
        spacings: Spacing of each training case along `AXES`.
        shapes: Its grid along `AXES`.
    """
    target = np.median(np.asarray(spacings), axis=0)
    size = np.median(np.asarray(shapes), axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > 3 * target[others].max() and 3 * size[worst] < size[others].min():
        low = float(np.percentile([spacing[worst] for spacing in spacings], 10))
        target[worst] = max(low, float(target[others].max()))
    depth, height, width = (round(float(value), 6) for value in target)
    return depth, height, width


def volume_spacing(volume: Volume) -> tuple[tuple[float, float, float], tuple[int, ...]]:
    """Spacing and grid of a volume along `AXES`."""
    orientation = orientation_of(volume.affine)
    shape = tuple(volume.shape[int(i)] for i in np.argsort(orientation[:, 0]))
    return spacing_of(volume.affine, orientation), shape
