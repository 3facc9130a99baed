"""Writes the files of a case in nnU-Net's layout, each in full or not at all."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.data.raw.formats.file_format import known_format, parts_of, split_name
from training.data.raw.formats.nifti import header_like
from training.data.raw.formats.opened_file import OpenedFile
from training.data.raw.header import VolumeHeader, check_same_grid, open_volume, unreadable
from training.data.raw.layouts import IMAGES, LABELS
from training.data.sources.source import SourceCase
from training.durable_write import PARTIAL, durable_file, write_durably
from training.errors import DatasetError

Overlap = Literal["error", "first", "last"]
"""What a voxel of two masks becomes: nothing, of the first class, or of the last."""

NIFTI = ".nii.gz"

BLOCK = 2**24
"""Bytes of a file that are copied at once."""

NARROWER = {"float64": "float32", "int64": "int32", "uint64": "uint32", "bool": "uint8"}
"""Types that NIfTI lacks, or that tell no more than a narrower one; `>` and `<` do not matter."""


@dataclass(frozen=True)
class Target:
    """Where and how cases are written.

    Attributes:
        folder: The folder.
        ending: Ending of all files.
        channels: Number of channels of a case.
        labels: Value of each class by name.
        link: Whether files that stay as they are become links.
        overlap: What a voxel of two masks becomes.
    """

    folder: Path
    ending: str
    channels: int
    labels: Mapping[str, int]
    link: bool = False
    overlap: Overlap = "error"


@dataclass(frozen=True)
class WrittenCase:
    """A case that was written.

    Attributes:
        notes: What a person should know, a line each.
        labelled: Classes that it is labelled for, where it has masks, but not one of each class.
    """

    notes: tuple[str, ...] = ()
    labelled: tuple[str, ...] | None = None


def write_case(case: SourceCase, target: Target) -> WrittenCase:
    """Write the files of a case that are not there yet.

    Raises:
        DatasetError: for what is wrong with a file of it, or if masks overlap.
        OSError: if the target cannot be written.
    """
    headers = [(path, open_volume(path)[1]) for path in case.images]
    number = sum(header.channels for _, header in headers)
    if number != target.channels:
        raise DatasetError(
            f"{case.images[0]}: {number} channels, but {target.channels} are named: name each with "
            "`--channels`"
        )
    first_path, first = headers[0]
    for path, header in headers[1:]:
        check_same_grid(path, header, first_path, first)
    for source, name, channel in _images(case, headers):
        _place(source, target.folder / IMAGES / f"{name}{target.ending}", channel, target.link)
    place = target.folder / LABELS / f"{case.case_id}{target.ending}"
    if case.label is not None:
        opened, header = open_volume(
            case.label,
            as_label=True,
            image=first_path,
            names=list(target.labels),
            values=list(target.labels.values()),
        )
        check_same_grid(case.label, header, first_path, first)
        check_values(opened, target.labels)
        _place_label(opened, first_path, place, target.link)
        return WrittenCase()
    if os.path.lexists(place):
        # of a conversion that was cut off
        names = {name for name, _ in _masks(case, first, target.labels)}
        return _written(case, target, names, [])
    label, names, notes = merged(case, first, target)
    _write_label(label, first_path, place)
    return _written(case, target, names, notes)


def _written(
    case: SourceCase, target: Target, names: Collection[str], notes: Sequence[str]
) -> WrittenCase:
    """A case that has masks of these classes; it is not known where the others are."""
    absent = [name for name, value in target.labels.items() if value and name not in names]
    if not absent:
        return WrittenCase(tuple(notes))
    shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
    them = "that class" if len(absent) == 1 else "these classes"
    line = (
        f"{case.case_id} has no mask of {shown}: nothing is learnt of {them} from it (`labelled` "
        "in dataset.json); give it an empty mask where the patient has none"
    )
    there = tuple(name for name, value in target.labels.items() if value and name in names)
    return WrittenCase((*notes, line), there)


def _images(
    case: SourceCase, headers: list[tuple[Path, VolumeHeader]]
) -> Iterator[tuple[Path, str, int | None]]:
    """Each file with its name in the target, and the channel of it, None for the whole file."""
    number = 0
    for path, header in headers:
        flat = open_volume(path)[0].flat
        if header.channels > 1 and flat and len(headers) == 1:
            # a picture of colours, which is one file in nnU-Net as well
            yield path, case.case_id, None
            continue
        for channel in range(header.channels):
            chosen = channel if header.channels > 1 else None
            yield path, f"{case.case_id}_{number:04}", chosen
            number += 1


def merged(
    case: SourceCase, grid: VolumeHeader, target: Target
) -> tuple[NDArray[np.unsignedinteger[Any]], set[str], list[str]]:
    """The label map `(i, j, k)` of a case that has masks, their names, and notes about overlaps.

    Raises:
        DatasetError: if a file is no mask on the grid of the image, or two masks share voxels and
            `overlap` is `error`.
    """
    label = np.zeros(grid.shape, dtype=np.min_scalar_type(max(target.labels.values())))
    names = {value: name for name, value in target.labels.items()}
    shared: list[str] = []
    there: set[str] = set()
    for name, mask in _masks(case, grid, target.labels):
        there.add(name)
        value = target.labels[name]
        # a class may have several parts
        both = mask & (label > 0) & (label != value)
        if both.any():
            counts = np.bincount(label[both])
            shared += [
                f"{name} and {names[int(other)]} share {counts[other]} voxels"
                for other in np.flatnonzero(counts)
            ]
        if target.overlap == "first":
            mask &= label == 0
        label[mask] = value
    if not shared:
        return label, there, []
    text = f"{case.case_id}: {'; '.join(shared[:10])}{'; ...' if len(shared) > 10 else ''}"
    if target.overlap == "error":
        raise DatasetError(
            f"{text}: a voxel has one class. Choose with `--overlap first` or `--overlap last` "
            f"which of two classes it gets, by their order ({', '.join(list(names.values())[1:6])}"
            f"{', ...' if len(names) > 6 else ''}), or correct the masks"
        )
    return label, there, [f"{text}: they are of the {target.overlap} of them"]


def _masks(
    case: SourceCase, grid: VolumeHeader, labels: Mapping[str, int]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Name and mask of each class of a case."""
    if case.segmentation is not None:
        yield from _segments(case.segmentation, case.images[0], labels)
    for name, path in case.masks.items():
        opened, header = open_volume(path, as_label=True)
        check_same_grid(path, header, case.images[0], grid)
        yield name, _mask(opened)


def _segments(
    path: Path, image: Path, labels: Mapping[str, int]
) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Name and mask of each class of a DICOM-SEG or RTSTRUCT."""
    # pydicom may not be installed
    from training.data.raw.formats.dicom_labels import LabelReference, segment_masks

    reference = LabelReference(open_volume(image)[0], list(labels), list(labels.values()))
    try:
        masks = segment_masks(path, reference)
    except Exception as error:
        # damaged files make pydicom fail in ways of many types
        raise unreadable(path, error) from error
    names = {value: name for name, value in labels.items()}
    yield from ((names[value], masks[value]) for value in sorted(masks))


def check_values(opened: OpenedFile, labels: Mapping[str, int]) -> None:
    """Check that a label map has no other values than those that are named.

    Raises:
        DatasetError: naming the file and the values.
    """
    unknown = sorted(values_of(opened) - set(labels.values()))
    if unknown:
        known = ", ".join(f"{name}={value}" for name, value in list(labels.items())[:10])
        raise DatasetError(
            f"{opened.path}: has the values {', '.join(map(str, unknown[:10]))}, which no class "
            f"has ({known}): name them with `--labels`, or correct the file"
        )


def values_of(opened: OpenedFile) -> set[int]:
    """The values of a label map.

    Raises:
        DatasetError: if it cannot be read, or has values that are not whole numbers.
    """
    voxels = _voxels(opened)
    if voxels.ndim == 4 and voxels.shape[3] > 1:
        raise DatasetError(f"{opened.path}: a label map has 3 axes, but this has {voxels.shape}")
    found = np.unique(voxels)
    whole = np.rint(found)
    with np.errstate(invalid="ignore"):
        wrong = found[~(np.abs(found - whole) <= ROUNDING)]
    if wrong.size:
        raise DatasetError(
            f"{opened.path}: a label must be a whole number, but it has {wrong[0]:g}: was it "
            "interpolated? Resample label maps by nearest neighbour"
        )
    return {int(value) for value in whole}


ROUNDING = 1e-3
"""Distance from a whole number up to which a label is taken to be one that was rounded."""


def _mask(opened: OpenedFile) -> NDArray[np.bool_]:
    """Where a mask is set: it has one value beside 0.

    Raises:
        DatasetError: if it has more.
    """
    voxels = _voxels(opened)
    if voxels.ndim == 4:
        if voxels.shape[3] > 1:
            raise DatasetError(f"{opened.path}: a mask has 3 axes, but this has {voxels.shape}")
        voxels = voxels[..., 0]
    highest = voxels.max()
    mask = np.asarray(voxels == highest) if highest > 0 else np.zeros(voxels.shape, dtype=bool)
    others = np.count_nonzero(voxels != 0) - np.count_nonzero(mask)
    if others:
        raise DatasetError(
            f"{opened.path}: a mask has one value beside 0, but {others} voxels have others than "
            f"{highest:g}: is it a probability, or a map of several labels?"
        )
    return mask


def _place(source: Path, target: Path, channel: int | None, link: bool) -> None:
    """Write an image, or a channel of it, where it is not there yet."""
    if os.path.lexists(target):
        return
    if channel is None and _stays(source, target):
        _take(source, target, link)
        return
    opened, _ = open_volume(source)
    voxels = _voxels(opened)
    if voxels.ndim == 4:
        voxels = voxels[..., channel or 0]
    _write_nifti(voxels, opened, target)


def _place_label(opened: OpenedFile, image: Path, target: Path, link: bool) -> None:
    if os.path.lexists(target):
        return
    if _stays(opened.path, target):
        _take(opened.path, target, link)
        return
    voxels = _voxels(opened)
    whole = np.rint(voxels[..., 0] if voxels.ndim == 4 else voxels)
    _write_label(whole.astype(np.min_scalar_type(int(whole.max()))), image, target)


def _write_label(label: NDArray[np.unsignedinteger[Any]], image: Path, target: Path) -> None:
    opened, _ = open_volume(image)
    try:
        known_format(target).module.write_label(label, opened, target)
    except MemoryError as error:
        raise unreadable(image, error) from error


def _stays(source: Path, target: Path) -> bool:
    """Whether a file can be taken as it is: of the same ending, and one file alone."""
    one, other = split_name(source.name), split_name(target.name)
    return (
        one is not None
        and other is not None
        and one[1].lower() == other[1]
        and len(parts_of(source)) == 1
    )


def _take(source: Path, target: Path, link: bool) -> None:
    """Copy a file, or link to it; the target has its name when it is whole."""
    if link:
        partial = target.with_name(target.name + PARTIAL)
        partial.unlink(missing_ok=True)
        partial.symlink_to(source.resolve())
        partial.replace(target)
        return
    with source.open("rb") as file, durable_file(target) as copy:
        shutil.copyfileobj(file, copy, BLOCK)


def _write_nifti(voxels: NDArray[Any], opened: OpenedFile, target: Path) -> None:
    """Write an image as NIfTI in the geometry of its file."""
    name = voxels.dtype.newbyteorder("=").name
    voxels = voxels.astype(NARROWER.get(name, name), copy=False)
    header, kind = header_like(opened, voxels.dtype, voxels.shape)
    content = kind(voxels, header.get_best_affine(), header).to_bytes()
    write_durably(target, gzip.compress(content, compresslevel=1, mtime=0))


def _voxels(opened: OpenedFile) -> NDArray[Any]:
    try:
        return opened.read()
    except Exception as error:
        # gzip, numpy, nibabel and ITK have types of their own, and memory may end
        raise unreadable(opened.path, error) from error
