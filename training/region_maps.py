"""Regions of label maps and of predictions: there and back.

A network that is trained on regions has one channel a region, and the sigmoid of its logits is the
region's probability. Label maps have classes, of which a region is a union.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from training.config.regions import Regions

THRESHOLD = 0.5
"""Probability above which a voxel belongs to a region."""


def region_table(regions: Regions) -> Bool[Tensor, "regions classes"]:
    """Which classes each region has."""
    table = torch.zeros(len(regions), regions.num_classes, dtype=torch.bool)
    for row, classes in zip(table, regions.classes, strict=True):
        row[list(classes)] = True
    return table


def region_targets(
    targets: Int[Tensor, "b *spatial"], regions: Regions
) -> Bool[Tensor, "b regions *spatial"]:
    """The region masks of label maps: what a loss compares with a network's channels.

    Voxels that are left out (`IGNORE_INDEX`) are in no region.
    """
    table = region_table(regions).to(targets.device)
    known = targets.long().clamp(min=0)
    return torch.stack([row[known] for row in table], dim=1)


def classes_of_regions(
    probabilities: Float[Tensor, "b regions *spatial"], regions: Regions
) -> Int[Tensor, "b *spatial"]:
    """Classes of predicted regions, by nnU-Net's rule.

    Region after region, its class (`regions.order`) is written where its probability is above 0.5,
    over what was written before; the rest is background.
    """
    shape = (probabilities.shape[0], *probabilities.shape[2:])
    labels = torch.zeros(shape, dtype=torch.int64, device=probabilities.device)
    for channel, value in enumerate(regions.order):
        labels.masked_fill_(probabilities[:, channel] > THRESHOLD, value)
    return labels


def decode(
    probabilities: NDArray[Any], regions: Regions | None, axis: int = 0
) -> NDArray[np.integer[Any]]:
    """Classes of probabilities along an axis: the greatest, or by regions.

    Args:
        probabilities: Of classes, or of regions.
        regions: The regions; None for exclusive classes.
        axis: The axis of classes or regions.
    """
    if regions is None:
        return np.asarray(probabilities.argmax(axis=axis))
    channels = np.moveaxis(probabilities, axis, 0)
    labels = np.zeros(channels.shape[1:], dtype=np.int64)
    for channel, value in zip(channels, regions.order, strict=True):
        labels[channel > THRESHOLD] = value
    return labels


def region_mask(labels: NDArray[Any], regions: Regions, region: int) -> NDArray[np.bool_]:
    """Where a label map of classes has a region."""
    classes = regions.classes[region]
    mask: NDArray[np.bool_] = labels == classes[0]
    for value in classes[1:]:
        mask |= labels == value
    return mask
