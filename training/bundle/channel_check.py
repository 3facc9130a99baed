"""Checks that images to predict have the channels that a model was trained on.

What cannot be right is refused: channels that a dataset.json names in another order or otherwise, a
CT for a model of MR images and the other way round, by the file beside the image or by its
intensities. What is only doubtful is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import Preprocessing
from training.data.prepared.normalisation import ChannelNormalisation
from training.data.raw.channel_kinds import (
    contradict,
    kind_in_file_name,
    kind_in_header,
    kind_in_sidecar,
    kind_of,
)
from training.data.raw.dataset_channels import read_channels
from training.data.raw.hounsfield import looks_like_ct, range_text
from training.data.raw.layouts import DATASET_JSON
from training.errors import BundleError, DatasetError

WAY_OUT = (
    "give it other images, or predict with --no-channel-check (check_channels=False) if {} wrong"
)

AIR_IN_CT = -200.0
"""Hounsfield units that are in every CT with air or lung in it, and below fat."""


def declared_channels_lines(channels: Sequence[str], images: Sequence[Path]) -> list[str]:
    """Compare the channels of a model with those that the dataset.json of images names.

    It is looked for beside the images and, where their folder is named as nnU-Net does it
    (`imagesTs`), above them.

    Args:
        channels: Name of each channel of the model.
        images: Image files or folders of them.

    Returns:
        Warnings about names that differ, where nothing says that they are other channels.

    Raises:
        BundleError: if they must be other channels, or in another order.
    """
    lines = []
    for source, found in _descriptions(images):
        if _folded(found) == _folded(channels):
            continue
        named = f"{source} names the channels {', '.join(found)}"
        trained = f"the model was trained on {', '.join(channels)}"
        way_out = WAY_OUT.format("these names are")
        if sorted(_folded(found)) == sorted(_folded(channels)):
            raise BundleError(f"{named}, but {trained}, in this order: {way_out}")
        kinds = zip(map(kind_of, found), map(kind_of, channels), strict=False)
        if len(found) != len(channels) or any(contradict(one, other) for one, other in kinds):
            raise BundleError(f"{named}, but {trained}: {way_out}")
        lines.append(f"warning: {named}, and {trained}: are they the same?")
    return lines


def check_image_files(
    channels: Sequence[str], images: Sequence[Path], present: Sequence[int] | None
) -> list[str]:
    """Compare the channels of a model with what is said of each file of a case.

    Args:
        channels: Name of each channel of the model.
        images: The files, one a channel, or one of all channels.
        present: Number of the channel that each file is, where the case lacks others.

    Returns:
        Warnings about names and headers of files that stand for another channel.

    Raises:
        BundleError: if the JSON file beside an image says that it is of another modality.
    """
    lines = []
    numbers = range(len(channels)) if present is None else present
    # a file of several channels is no single one
    for path, number in zip(images, numbers, strict=False) if len(images) == len(numbers) else ():
        name = channels[number]
        sidecar = kind_in_sidecar(path)
        if sidecar is not None and contradict(sidecar[1], kind_of(name)):
            raise BundleError(
                f"{path}: a {sidecar[1]} image by {sidecar[0].name}, but channel {number} of the "
                f"model is {name}: {WAY_OUT.format('that file is')}"
            )
        for kind, what in (
            (kind_in_file_name(path), "its name stands for {}"),
            (kind_in_header(path), "its header has an echo time, as {} images have"),
        ):
            if contradict(kind, kind_of(name)):
                lines.append(
                    f"warning: {path}: {what.format(kind)}, but channel {number} of the model is "
                    f"{name}"
                )
    return lines


def check_intensities(
    channels: Sequence[str],
    preprocessing: Preprocessing,
    path: Path,
    voxels: NDArray[np.float32],
    present: Sequence[int] | None,
) -> list[str]:
    """Compare intensities with those of the modality that the model was trained on.

    Args:
        channels: Name of each channel of the model.
        preprocessing: What the model knows of its training data.
        path: The image.
        voxels: Its channels `(c, i, j, k)`.
        present: Number of the channel that each is, where the case lacks others.

    Returns:
        Warnings about intensities that are unlike those of the channel.

    Raises:
        BundleError: if a channel must be of another modality.
    """
    lines = []
    for number, channel in zip(
        range(len(channels)) if present is None else present, voxels, strict=True
    ):
        doubt, certain = _intensity_doubt(preprocessing.channels[number], channel)
        if certain:
            raise BundleError(
                f"{path}: channel {number} of the model is {channels[number]}, but {doubt}: "
                f"{WAY_OUT.format('this is')}"
            )
        if doubt:
            lines.append(f"warning: {path}: is it {channels[number]}? {doubt}")
    return lines


def _intensity_doubt(
    trained: ChannelNormalisation, voxels: NDArray[np.float32]
) -> tuple[str, bool]:
    """What is unlike the training data, empty if nothing is; and whether it must be wrong."""
    minima = trained.minima
    if trained.modality == "CT" or trained.scheme == "CT":
        if voxels.min() < 0 or (trained.low >= 0 and minima is None):
            return "", False
        if minima is None or minima[1] <= AIR_IN_CT:
            others = "" if minima is None else ", and every image that it was trained on has some"
            return (
                f"no voxel is below 0 (they are {range_text(voxels)}){others}: not a CT in "
                "Hounsfield units"
            ), minima is not None
        return "", False
    # images that are named otherwise and are Hounsfield units were trained on as they are
    if (minima is None or minima[0] >= 0) and looks_like_ct(voxels):
        return f"voxels of {range_text(voxels)} look like a CT", minima is not None
    return "", False


def _descriptions(images: Sequence[Path]) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The dataset.json of each folder of images, with the channels that it names."""
    folders = dict.fromkeys(path if path.is_dir() else path.parent for path in images)
    for folder in folders:
        folder = folder.absolute()
        above = [folder.parent] if folder.name.lower().startswith("images") else []
        for place in (folder, *above):
            source = place / DATASET_JSON
            if not source.is_file():
                continue
            try:
                description = json.loads(source.read_text(encoding="utf-8-sig"))
                names = read_channels(description, source)
            except (OSError, ValueError, AttributeError, RecursionError, DatasetError):
                # it is not needed to predict
                continue
            yield source, names
            break


def _folded(names: Sequence[str]) -> list[str]:
    return [name.strip().casefold() for name in names]
