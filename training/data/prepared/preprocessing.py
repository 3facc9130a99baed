"""Preprocesses an image for the network, and maps the prediction back.

Orient to (superior, anterior, right), crop to the body (and to the label, where there is one),
normalise each channel, resample to one spacing. The steps and their defaults follow nnU-Net
(Isensee et al., 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float, UInt
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy import ndimage
from torch import Tensor

from training.config.regions import Regions
from training.data.prepared.label_loss import lost_by_resampling, outside
from training.data.prepared.normalisation import ChannelNormalisation
from training.data.prepared.resampling import (
    PLANES,
    anisotropic_axis,
    resample_image,
    resample_label,
    resample_slabs,
)
from training.data.raw.formats.geometry import spacing_text
from training.data.raw.header import (
    SPACING_RATIO,
    check_same_grid,
    is_far_off,
    orientation_of,
    spacing_of,
)
from training.data.raw.label_values import label_dtype
from training.data.raw.layouts import Modality
from training.data.raw.volume import Volume, read_image, read_label
from training.errors import DatasetError
from training.ignored_voxels import is_ignored
from training.region_maps import THRESHOLD

AIR = -500.0
"""Hounsfield units below which a voxel of a CT is outside the body."""


MAX_VOXELS = 2**30
"""Voxels of a channel after resampling above which a spacing must be wrong: 1024 x 1024 x 1024."""

STORED = 65535
"""What a probability of 1 is stored as, in whole numbers of 16 bits."""

Box = tuple[tuple[int, int], ...]
"""First voxel and end on each axis."""


@dataclass(frozen=True)
class CaseGeometry:
    """The geometry that maps a prediction back to the file's own grid.

    Attributes:
        shape: Grid of the file.
        orientation: nibabel's orientation transform from the file to `AXES`, `(3, 2)`.
        crop: First voxel and end of what was kept on each oriented axis.
        anisotropic_axis: Oriented axis across thick slices, None where there are none.
    """

    shape: tuple[int, int, int]
    orientation: NDArray[np.float64]
    crop: Box
    anisotropic_axis: int | None


@dataclass(frozen=True)
class PreprocessedCase:
    """A case as the network sees it.

    Attributes:
        image: float32 `(channel, depth, height, width)`.
        label: uint8 `(depth, height, width)`, uint16 with more than 256 classes; None without a
            label map. Voxels that are left out are as in `training.ignored_voxels`.
        info: The way back.
        warnings: What is doubtful about the files, and what of the label is lost, by file.
    """

    image: Float[np.ndarray, "c d h w"]
    label: UInt[np.ndarray, "d h w"] | None
    info: CaseGeometry
    warnings: tuple[str, ...] = ()


class Preprocessing(BaseModel):
    """Settings of the preprocessing, fixed by the training data; part of the exported model.

    Attributes:
        spacing: Voxel spacing in mm that volumes are resampled to (depth, height, width).
        channels: Normalisation of each channel.
        num_classes: Number of labels, background included.
        label_values: Value of each class in the label files, background first; None for 0, 1, ...
        ignore: Values in the label files of voxels that are left out.
        label_names: Name of each class, background first, where label files tell their segments by
            name (DICOM-SEG, RTSTRUCT); else None.
        data_spacing: Median spacing of the training data, which an image to predict is compared
            with; None in bundles of older versions.
        missing_channels: Whether a case may lack channels, which are then 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spacing: tuple[float, float, float]
    channels: list[ChannelNormalisation]
    num_classes: int
    data_spacing: tuple[float, float, float] | None = None
    missing_channels: bool = False
    label_values: tuple[int, ...] | None = None
    ignore: tuple[int, ...] = ()
    label_names: tuple[str, ...] | None = None

    @property
    def values(self) -> Sequence[int]:
        """Value of each class in the label files, background first."""
        return range(self.num_classes) if self.label_values is None else self.label_values

    def apply(
        self,
        images: Sequence[Path],
        label: Path | None = None,
        channels: Sequence[int] | None = None,
        inspect: Callable[[NDArray[np.float32]], None] | None = None,
    ) -> PreprocessedCase:
        """Preprocess one case.

        Nothing is cropped away that carries a label. What the body is, and the statistics of
        its intensities, do not depend on the label.

        Args:
            images: Its image files: one, or one a channel.
            label: Its label map, if there is one.
            channels: Number of the channel that each image file is, where the case lacks others;
                these are 0 everywhere, as a normalised channel is on average.
            inspect: Called with the voxels of the files, `(c, i, j, k)`, before all else; what it
                raises ends the preprocessing.

        Raises:
            DatasetError: if a file is unreadable, or does not fit the others or the settings.
        """
        image = read_image(images)
        present = range(len(self.channels)) if channels is None else channels
        if len(image.data) != len(present):
            raise DatasetError(
                f"{images[0]}: {len(image.data)} channels, but {len(present)} are needed"
            )
        if inspect is not None:
            inspect(image.data)
        label_map = None if label is None else self.read_label(label, images[0])
        if label is not None and label_map is not None:
            check_same_grid(label, label_map, images[0], image)
        try:
            return self._apply(images, image, label, label_map, present)
        except MemoryError as error:
            raise DatasetError(f"{images[0]}: preprocessing it does not fit into memory") from error

    def read_label(self, label: Path, image: Path) -> Volume:
        """Read a label map as the classes of the settings, see `training.data.raw.volume`.

        Raises:
            DatasetError: if the file is unreadable, or holds other values.
        """
        return read_label(label, self.values, self.ignore, image=image, names=self.label_names)

    def _apply(
        self,
        images: Sequence[Path],
        image: Volume,
        label: Path | None,
        label_map: Volume | None,
        present: Sequence[int],
    ) -> PreprocessedCase:
        """Preprocess volumes that belong together."""
        path = images[0]
        orientation = orientation_of(image.affine)
        spacing = spacing_of(image.affine, orientation)
        oriented = reorient(image.data, orientation)
        if label is None:
            self._check_spacing(path, spacing, oriented.shape[1:])
        body = body_of(oriented, [self.channels[number].modality for number in present])
        crop = kept = bounding_box(body)
        labels = None if label_map is None else reorient(label_map.data, orientation)
        if labels is not None:
            foreground = (labels > 0) & ~is_ignored(labels, self.num_classes)
            if foreground.any():
                kept = _union(crop, bounding_box(foreground))
        shape = self._resampled_shape(path, spacing, [end - first for first, end in kept])
        axis = anisotropic_axis(spacing, self.spacing)
        normalised = np.zeros((len(self.channels), *shape), dtype=np.float32)
        found = self._normalise(images, oriented, body, crop, kept, present)
        for number, voxels in zip(present, found, strict=True):
            normalised[number] = resample_image(voxels, shape, axis)
        geometry = CaseGeometry(image.shape, orientation, kept, axis)
        if label_map is None or labels is None:
            return PreprocessedCase(normalised, None, geometry, image.warnings)
        before = labels[_slices(kept)]
        after = resample_label(before, shape, axis)
        losses = [
            f"{label}: {count} voxels of label {self.values[found]} lie outside the body (CT above "
            f"{AIR:g} HU, MR other than 0): they are trained on, but predictions are background "
            "there"
            for found, count in outside(labels, crop).items()
            if found < self.num_classes
        ] + [
            f"{label}: {count} voxels of label {self.values[found]} are lost by resampling from "
            f"{spacing_text(spacing)} to {spacing_text(self.spacing)} mm: the objects are too "
            "small for that grid; choose another target_spacing"
            for found, count in lost_by_resampling(before, after).items()
            if found < self.num_classes
        ]
        warnings = (*image.warnings, *label_map.warnings, *losses)
        return PreprocessedCase(normalised, after, geometry, warnings)

    def invert(
        self,
        probabilities: Float[np.ndarray, "k d h w"],
        info: CaseGeometry,
        regions: Regions | None = None,
    ) -> UInt[np.ndarray, "i j k"]:
        """Classes on the file's own grid, in the file's axis order.

        Args:
            probabilities: Class probabilities of the preprocessed case, in any precision.
            info: What `apply` returned with the case.
            regions: The regions that the probabilities are of; None for exclusive classes.
        """
        planes = probabilities.shape[1]
        slabs = (
            torch.from_numpy(np.array(probabilities[:, first : first + PLANES], dtype=np.float32))
            for first in range(0, planes, PLANES)
        )
        return self.invert_slabs(slabs, planes, info, regions=regions)

    def invert_slabs(
        self,
        slabs: Iterable[Float[Tensor, "k slab h w"]],
        planes: int,
        info: CaseGeometry,
        stored: UInt[np.ndarray, "i j k c"] | None = None,
        regions: Regions | None = None,
    ) -> UInt[np.ndarray, "i j k"]:
        """Classes on the file's own grid, of probabilities that come slab by slab.

        The probabilities are resampled class by class and a few planes at a time, and the class of
        the highest is kept, or that of the last region above 0.5 (nnU-Net's rule): a scan of the
        whole body with many classes would not fit in memory.

        Args:
            slabs: Class probabilities, slab by slab along the depth, on the CPU.
            planes: Depth of the preprocessed case.
            info: What `apply` returned with the case.
            stored: An array that gets the probabilities on the file's grid, as `STORED` has them.
            regions: The regions that the probabilities are of; None for exclusive classes.
        """
        size = tuple(end - first for first, end in info.crop)
        permuted = tuple(info.shape[int(source)] for source in np.argsort(info.orientation[:, 0]))
        whole = np.zeros(permuted, dtype=label_dtype(self.num_classes))
        inside = whole[_slices(info.crop)]
        kept: list[NDArray[np.uint16]] = []
        if stored is not None:
            # around the body is background
            stored[:] = 0
            if regions is None:
                stored[..., 0] = STORED
            kept = [
                reorient(stored[..., value], info.orientation)[_slices(info.crop)]
                for value in range(stored.shape[-1])
            ]
        for chosen, classes in resample_slabs(slabs, planes, size, info.anisotropic_axis):
            best = torch.full((chosen.stop - chosen.start, *size[1:]), -torch.inf)
            for value, probability in enumerate(classes):
                if regions is None:
                    np.copyto(inside[chosen], value, where=(probability > best).numpy())
                    torch.maximum(best, probability, out=best)
                else:
                    written = regions.order[value]
                    np.copyto(inside[chosen], written, where=(probability > THRESHOLD).numpy())
                if kept:
                    kept[value][chosen] = (probability * STORED).round().numpy()
        return np.ascontiguousarray(
            nib.orientations.apply_orientation(whole, _inverse(info.orientation))
        )

    def _normalise(
        self,
        images: Sequence[Path],
        oriented: NDArray[np.float32],
        body: NDArray[np.bool_],
        crop: Box,
        kept: Box,
        present: Sequence[int],
    ) -> Iterator[NDArray[np.float32]]:
        """The channels of an image, cropped to `kept`, normalised by what is in `crop`.

        Raises:
            DatasetError: if the intensities of a channel do not fit its scheme.
        """
        inside = None
        channels = [self.channels[number] for number in present]
        if any(channel.body_only for channel in channels):
            # 0 inside the body, such as a dark ventricle, is tissue as well
            whole = np.zeros_like(body)
            whole[_slices(crop)] = ndimage.binary_fill_holes(body[_slices(crop)])
            inside = whole[_slices(kept)]
        paths = images if len(images) == len(channels) else [images[0]] * len(channels)
        for path, channel, voxels in zip(paths, channels, oriented, strict=True):
            channel.check(path, voxels)
            yield channel.apply(
                voxels[_slices(kept)],
                inside if channel.body_only else None,
                voxels[_slices(crop)],
            )

    def _check_spacing(
        self, path: Path, spacing: tuple[float, float, float], shape: Sequence[int]
    ) -> None:
        """Check an image to predict against the data that the model was trained on.

        Raises:
            DatasetError: if they are further apart than any two scanners.
        """
        if self.data_spacing is None:
            return
        if is_far_off(spacing, self.data_spacing, shape):
            raise DatasetError(
                f"{path}: a spacing of {spacing_text(spacing)} mm (superior, anterior, right) is "
                f"{SPACING_RATIO:g} times off that of the training data or more, "
                f"{spacing_text(self.data_spacing)} mm: correct the header, or resample the image"
            )

    def _resampled_shape(
        self, path: Path, spacing: Sequence[float], shape: Sequence[int]
    ) -> tuple[int, ...]:
        """Grid of a case at the spacing of the settings.

        Raises:
            DatasetError: if it would be absurdly large, or an axis would vanish.
        """
        # an image of one slice stays one: the thickness of a slice alone says nothing
        exact = [
            size * old / new if size > 1 else 1.0
            for size, old, new in zip(shape, spacing, self.spacing, strict=True)
        ]
        resampled = tuple(max(1, round(size)) for size in exact)
        vanishes = any(
            old > 1 and new == 1 and size < old / SPACING_RATIO
            for old, new, size in zip(shape, resampled, exact, strict=True)
        )
        if vanishes or np.prod(resampled, dtype=float) > MAX_VOXELS:
            grids = [" x ".join(str(size) for size in grid) for grid in (shape, resampled)]
            raise DatasetError(
                f"{path}: its spacing of {spacing_text(spacing)} mm makes {grids[1]} voxels out of "
                f"{grids[0]} at the {spacing_text(self.spacing)} mm of the model: correct the "
                "header, or choose another target_spacing"
            )
        return resampled


def body_of(voxels: NDArray[np.float32], modalities: Sequence[Modality]) -> NDArray[np.bool_]:
    """Where any channel of `(c, i, j, k)` is not empty; everywhere if all is empty."""
    # in the order in which the voxels are stored, or each would be sought for
    body = np.zeros_like(voxels[0], dtype=bool)
    for modality, channel in zip(modalities, voxels, strict=True):
        body |= channel > AIR if modality == "CT" else channel != 0
    return body if body.any() else ~body


def bounding_box(body: NDArray[np.bool_]) -> Box:
    """First voxel and end of what is True, on each axis."""
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(body.any(axis=others))
        box.append((int(found[0]), int(found[-1]) + 1))
    return tuple(box)


def _union(one: Box, other: Box) -> Box:
    """The smallest box around two."""
    return tuple(
        (min(first, other_first), max(end, other_end))
        for (first, end), (other_first, other_end) in zip(one, other, strict=True)
    )


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(first, end) for first, end in box)


def reorient(voxels: NDArray[Any], orientation: NDArray[np.float64]) -> NDArray[Any]:
    """Voxels along `AXES`; a leading channel axis stays where it is."""
    if voxels.ndim == 4:
        # a view: what is cropped away is never copied
        turned = nib.orientations.apply_orientation(np.moveaxis(voxels, 0, 3), orientation)
        return np.asarray(np.moveaxis(turned, 3, 0))
    return np.asarray(nib.orientations.apply_orientation(voxels, orientation))


def _inverse(orientation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The transform back: axis `orientation[i, 0]` came from axis i, flipped or not."""
    back = np.empty_like(orientation)
    for source, (target, flip) in enumerate(orientation):
        back[int(target)] = (source, flip)
    return back
