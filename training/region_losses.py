"""Losses of regions: sigmoids that may overlap, in place of a softmax over exclusive classes.

Each is called as the losses of `training.losses`: with logits `(b, r, *spatial)`, one channel a
region, and the label map of classes `(b, *spatial)`, of which a region is a union. Weights are
those of the regions: the result is the weighted mean of the regions' losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from training.losses import SegmentationLoss
from training.region_maps import region_table

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig
    from training.config.regions import Regions

__all__ = [
    "RegionCrossEntropyLoss",
    "RegionDiceCrossEntropyLoss",
    "RegionFocalLoss",
    "RegionTverskyLoss",
]


class _RegionLoss(SegmentationLoss):
    """A weighted mean over regions.

    Args:
        regions: The regions.
        weight: Weight of each region; None weighs all alike.

    Raises:
        ValueError: for a weight that is not a list of non-negative numbers.
    """

    table: Tensor

    def __init__(self, regions: Regions, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__(weight)
        self.num_classes = regions.num_classes
        self.register_buffer("table", region_table(regions), persistent=False)

    def _loss(self, logits: Tensor, targets: Tensor, labelled: Tensor | None) -> Tensor:
        masks = torch.stack([row[targets] for row in self.table], dim=1).to(logits.dtype)
        known = None
        if labelled is not None:
            # an item is labelled for a region if it is for all of its classes
            known = torch.stack([labelled[:, row].all(dim=1) for row in self.table], dim=1)
        by_region = self._by_region(logits, masks, known)
        if self.weight is None and known is None:
            return by_region.mean()
        weights = torch.ones_like(by_region) if self.weight is None else self.weight
        weights = weights.to(by_region.dtype)
        if known is not None:
            weights = weights * known.movedim(1, 0).flatten(1).any(dim=1)
        return (weights * by_region).sum() / weights.sum().clamp(min=torch.finfo().tiny)

    def _marginal(self, logits: Tensor, labelled: Tensor) -> Tensor:
        # channels of regions do not depend on each other: those not labelled are left out
        return logits

    def _by_region(
        self,
        logits: Float[Tensor, "b r *spatial"],
        masks: Float[Tensor, "b r *spatial"],
        known: Tensor | None,
    ) -> Float[Tensor, " r"]:
        """The loss of each region, over the items that are labelled for it (`known`)."""
        raise NotImplementedError

    def _check_logits(self, logits: Tensor) -> None:
        super()._check_logits(logits)
        if logits.shape[1] != len(self.table):
            raise ValueError(
                f"logits have {logits.shape[1]} channels, but there are {len(self.table)} regions: "
                "a network has one channel a region, and none for the background"
            )


class RegionCrossEntropyLoss(_RegionLoss):
    """Binary cross-entropy of each region, the mean over its voxels."""

    def _by_region(self, logits: Tensor, masks: Tensor, known: Tensor | None) -> Tensor:
        return _mean_by_channel(_binary_cross_entropy(logits, masks), known)


class RegionFocalLoss(_RegionLoss):
    """Binary cross-entropy of each voxel times (1 - p)^gamma (Lin et al., 2017).

    Args:
        regions: The regions.
        weight: Weight of each region; None weighs all alike.
        gamma: How much less a voxel counts that is right already.
    """

    def __init__(
        self,
        regions: Regions,
        weight: Sequence[float] | Tensor | None = None,
        *,
        gamma: float = 2.0,
    ) -> None:
        super().__init__(regions, weight)
        if not gamma >= 0:
            raise ValueError(f"gamma must be 0 or more, but got {gamma}")
        self.gamma = gamma

    def _by_region(self, logits: Tensor, masks: Tensor, known: Tensor | None) -> Tensor:
        cross_entropy = _binary_cross_entropy(logits, masks)
        # below this the power's own slope is infinite for gamma under 1
        wrong = (-torch.expm1(-cross_entropy)).clamp(min=1e-6)
        return _mean_by_channel(wrong**self.gamma * cross_entropy, known)


class RegionTverskyLoss(_RegionLoss):
    """1 - TP / (TP + alpha FP + beta FN) of each region, soft counts over the whole batch.

    Args:
        regions: The regions.
        weight: Weight of each region; None weighs all alike.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
    """

    def __init__(
        self,
        regions: Regions,
        weight: Sequence[float] | Tensor | None = None,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
    ) -> None:
        super().__init__(regions, weight)
        if not (alpha >= 0 and beta >= 0 and alpha + beta > 0):
            raise ValueError(
                f"alpha and beta must be 0 or more and not both 0, but got {alpha} and {beta}"
            )
        self.alpha = alpha
        self.beta = beta

    def _by_region(self, logits: Tensor, masks: Tensor, known: Tensor | None) -> Tensor:
        return _tversky(logits, masks, known, self.alpha, self.beta)


class RegionDiceCrossEntropyLoss(_RegionLoss):
    """Sum of soft Dice and binary cross-entropy of each region, as nnU-Net trains regions.

    nnU-Net's `DC_and_BCE_loss` with Dice over the whole batch, plus 1: at best it is 0.
    """

    def _by_region(self, logits: Tensor, masks: Tensor, known: Tensor | None) -> Tensor:
        cross_entropy = _mean_by_channel(_binary_cross_entropy(logits, masks), known)
        return _tversky(logits, masks, known, 0.5, 0.5) + cross_entropy


SMOOTH = 5e-6
"""What is added to hits and to their bound, so that an empty region counts: half of nnU-Net's 1e-5,
which is added to twice the hits."""


def _tversky(
    logits: Tensor, masks: Tensor, known: Tensor | None, alpha: float, beta: float
) -> Tensor:
    """The loss of each channel, over batch and voxels; alpha = beta = 0.5 is soft Dice."""
    probabilities = torch.sigmoid(logits)
    if known is not None:
        probabilities, masks = probabilities * known, masks * known
    hits = _sum_by_channel(probabilities * masks)
    false_positives = _sum_by_channel(probabilities * (1 - masks))
    false_negatives = _sum_by_channel((1 - probabilities) * masks)
    bottom = hits + alpha * false_positives + beta * false_negatives
    return 1 - (hits + SMOOTH) / (bottom + SMOOTH)


def _binary_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, masks, reduction="none")


def _sum_by_channel(values: Tensor) -> Tensor:
    return values.sum(dim=[0, *range(2, values.ndim)])


def _mean_by_channel(values: Tensor, known: Tensor | None) -> Tensor:
    """Mean of each channel over batch and voxels, of those that are known."""
    if known is None:
        return values.mean(dim=[0, *range(2, values.ndim)])
    number = _sum_by_channel(known.expand_as(values).to(values.dtype))
    return _sum_by_channel(values * known) / number.clamp(min=1)


def _regions_of(config: ModelTrainingConfig) -> Regions:
    regions = config.label_regions
    if regions is None:
        raise ValueError(f"loss={config.loss} needs regions: choose another loss, or set regions")
    return regions


def dice_bce(config: ModelTrainingConfig, weight: Tensor | None) -> nn.Module:
    """Dice and binary cross-entropy."""
    return RegionDiceCrossEntropyLoss(_regions_of(config), weight)


def bce(config: ModelTrainingConfig, weight: Tensor | None) -> nn.Module:
    """Binary cross-entropy."""
    return RegionCrossEntropyLoss(_regions_of(config), weight)


def sigmoid_focal(config: ModelTrainingConfig, weight: Tensor | None) -> nn.Module:
    """The focal loss of sigmoids with `config.focal_gamma`."""
    return RegionFocalLoss(_regions_of(config), weight, gamma=config.focal_gamma)


def sigmoid_tversky(config: ModelTrainingConfig, weight: Tensor | None) -> nn.Module:
    """The Tversky loss of sigmoids with the weights of the config."""
    return RegionTverskyLoss(
        _regions_of(config), weight, alpha=config.tversky_alpha, beta=config.tversky_beta
    )
