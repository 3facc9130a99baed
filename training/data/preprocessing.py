"""What happens to an image before the network sees it, and how its prediction comes back.

Orient to (superior, anterior, right), crop to the body, normalise by modality, resample to
one spacing. The steps and their defaults follow nnU-Net (Isensee et al., 2021).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, UInt8
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from training.data.errors import DatasetError
from training.data.layouts import Modality
from training.data.resampling import (
    anisotropic_axis,
    resample_image,
    resample_label,
    resample_linear,
)
from training.data.volume import check_same_grid, read_image, read_label

AXES = ("S", "A", "R")
"""Direction in which each axis of a preprocessed volume grows."""

AIR = -500.0
"""Hounsfield units below which a voxel of a CT is outside the body."""


class ChannelNormalisation(BaseModel):
    """How the intensities of one channel are normalised.

    CT: clipped to [`low`, `high`], then (x - mean) / std with values of the labelled data's
    foreground. MR: (x - mean) / std of the case's own voxels. With `body_only`, those are the
    voxels of the body alone, and what is around it becomes 0: where most of an image is empty
    (a brain without its skull), the empty part would otherwise decide the statistics.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    modality: Modality
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    body_only: bool = False

    def apply(
        self, voxels: NDArray[np.float32], body: NDArray[np.bool_] | None = None
    ) -> NDArray[np.float32]:
        """Normalised intensities of one channel.

        Args:
            voxels: The channel, cropped to the body.
            body: Where the body is, for `body_only`.
        """
        if self.modality == "CT":
            clipped = np.clip(voxels, self.low, self.high)
            return np.asarray((clipped - self.mean) / self.std, dtype=np.float32)
        inside = np.asarray(voxels if body is None else voxels[body], dtype=np.float64)
        if inside.size == 0:
            return np.zeros_like(voxels)
        # a constant image has nothing to scale
        normalised = (voxels - inside.mean()) / (float(inside.std()) or 1.0)
        if body is not None:
            normalised[~body] = 0
        return np.asarray(normalised, dtype=np.float32)


@dataclass(frozen=True)
class CaseGeometry:
    """What is needed to bring a prediction back to the file's own grid.

    Attributes:
        shape: Grid of the file.
        orientation: nibabel's orientation transform from the file to `AXES`, `(3, 2)`.
        crop: First voxel and end of the body on each oriented axis.
        anisotropic_axis: Oriented axis across thick slices, None where there are none.
    """

    shape: tuple[int, int, int]
    orientation: NDArray[np.float64]
    crop: tuple[tuple[int, int], ...]
    anisotropic_axis: int | None


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
        body = body_of(oriented, [channel.modality for channel in self.channels])
        crop = bounding_box(body)
        box = tuple(slice(first, end) for first, end in crop)
        spacing = spacing_of(image.affine, orientation)
        shape = self._resampled_shape(spacing, [end - first for first, end in crop])
        axis = anisotropic_axis(spacing, self.spacing)
        normalised = np.stack(
            [
                resample_image(voxels, shape, axis)
                for voxels in self._normalise(oriented[:, *box], body[box])
            ]
        )
        labels = None
        if label is not None:
            label_map = read_label(label, self.num_classes)
            check_same_grid(label, label_map, images[0], image)
            labels = resample_label(reorient(label_map.data, orientation)[box], shape, axis)
        geometry = CaseGeometry(image.shape, orientation, crop, axis)
        return PreprocessedCase(normalised, labels, geometry)

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
            resampled = resample_linear(probability, size, info.anisotropic_axis)
            better = resampled > best
            best[better] = resampled[better]
            inside[better] = value
        permuted = tuple(info.shape[int(source)] for source in np.argsort(info.orientation[:, 0]))
        whole = np.zeros(permuted, dtype=np.uint8)
        whole[tuple(slice(first, end) for first, end in info.crop)] = inside
        return np.ascontiguousarray(
            nib.orientations.apply_orientation(whole, _inverse(info.orientation))
        )

    def _normalise(
        self, cropped: NDArray[np.float32], body: NDArray[np.bool_]
    ) -> Iterator[NDArray[np.float32]]:
        """The channels of a cropped image, normalised."""
        if any(channel.body_only for channel in self.channels):
            # 0 inside the body, such as a dark ventricle, is tissue as well
            body = np.asarray(ndimage.binary_fill_holes(body))
        for channel, voxels in zip(self.channels, cropped, strict=True):
            yield channel.apply(voxels, body if channel.body_only else None)

    def _resampled_shape(self, spacing: Sequence[float], shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            max(1, round(size * old / new))
            for size, old, new in zip(shape, spacing, self.spacing, strict=True)
        )


def body_of(voxels: NDArray[np.float32], modalities: Sequence[Modality]) -> NDArray[np.bool_]:
    """Where any channel of `(c, i, j, k)` is not empty; everywhere if all is empty."""
    body = np.zeros(voxels.shape[1:], dtype=bool)
    for modality, channel in zip(modalities, voxels, strict=True):
        body |= channel > AIR if modality == "CT" else channel != 0
    return body if body.any() else ~body


def bounding_box(body: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """First voxel and end of what is True, on each axis."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(body.any(axis=others))
        box.append((int(found[0]), int(found[-1]) + 1))
    return tuple(box)


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


def _inverse(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transform back: axis `orientation[i, 0]` came from axis i, flipped or not."""
    back = np.empty_like(orientation)
    for source, (target, flip) in enumerate(orientation):
        back[int(target)] = (source, flip)
    return back
