"""Training losses, and deep supervision over several resolutions."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from training.class_weights import VoxelCounts, class_weight_tensor
from training.config.labels import loss_without_regions
from training.errors import PluginError
from training.ignored_voxels import IGNORE_INDEX
from training.partial_labels import marginal_logits
from training.registry import LOSSES, REGION_LOSSES, call

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig

__all__ = [
    "LOSSES",
    "DeepSupervisionLoss",
    "SegmentationCrossEntropyLoss",
    "SegmentationDiceCrossEntropyLoss",
    "SegmentationFocalLoss",
    "SegmentationLoss",
    "SegmentationTverskyLoss",
    "build_loss",
]


class SegmentationLoss(nn.Module):
    """Checks what every loss here is given: logits `(b, c, *spatial)`, labels `(b, *spatial)`.

    Voxels whose label is `ignore_index` are left out: the loss is that of the others alone, as of
    a batch cut to them, and 0 where there are none.

    Args:
        weight: Weight of each class, background first; None weighs all alike.

    Raises:
        ValueError: for a weight that is not a list of non-negative numbers.
    """

    weight: Tensor | None

    num_classes: int | None = None
    """Classes of the targets, where that is not the number of channels."""

    ignore_index = IGNORE_INDEX
    """Label of voxels that are left out."""

    def __init__(self, weight: Sequence[float] | Tensor | None = None) -> None:
        super().__init__()
        if weight is not None:
            weight = torch.as_tensor(weight, dtype=torch.float32)
            if weight.ndim != 1 or not torch.isfinite(weight).all() or (weight < 0).any():
                raise ValueError(
                    "weight must be one finite, non-negative number a class, "
                    f"but got {weight.tolist()}"
                )
        # not persistent: the weights are part of the config, not of the model
        self.register_buffer("weight", weight, persistent=False)

    def forward(
        self,
        logits: Float[Tensor, "b c *spatial"],
        targets: Int[Tensor, "b *spatial"],
        labelled: Bool[Tensor, "b classes"] | None = None,
    ) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            logits: Scores of the classes, `(b, c, h, w)` or `(b, c, d, h, w)`.
            targets: Integer label map, `(b, h, w)` or `(b, d, h, w)`, with `ignore_index` where a
                voxel is left out.
            labelled: Which classes each item is labelled for, all by default. The others cost and
                teach nothing there, see `training.partial_labels`.

        Returns:
            A scalar.

        Raises:
            ValueError: for shapes, types or label values that do not fit together.
        """
        self._check_logits(logits)
        some_ignored = _check_targets(targets, logits, self.num_classes or logits.shape[1])
        if logits.dtype in (torch.float16, torch.bfloat16):
            # sums over all voxels of a patch do not fit into half precision
            logits = logits.float()
        targets = targets.long()
        if labelled is not None and bool(labelled.all()):
            labelled = None
        if labelled is not None:
            labelled = labelled.to(logits.device)
            logits = self._marginal(logits, labelled)
            labelled = labelled.reshape(*labelled.shape, *[1] * (logits.ndim - 2))
        if some_ignored:
            known = targets != IGNORE_INDEX
            if not known.any():
                # 0, with a gradient of 0: a step may see no labelled voxel
                return logits.sum() * 0
            # means and sums here are over all voxels of the batch, wherever they are
            logits = logits.movedim(1, -1)[known].T[None, :, :, None]
            if labelled is not None:
                of_voxels = labelled.movedim(1, -1).expand(*known.shape, -1)
                labelled = of_voxels[known].T[None, :, :, None]
            targets = targets[known][None, :, None]
        return self._loss(logits, targets, labelled)

    def _marginal(self, logits: Tensor, labelled: Tensor) -> Tensor:
        """Logits in which the classes that an item is not labelled for are background."""
        return marginal_logits(logits, labelled)

    def _weighted_mean(self, losses: Tensor, targets: Tensor) -> Tensor:
        """Mean over voxels by the weights of their classes; 0 where all weights are."""
        if self.weight is None:
            return losses.mean()
        weights = self.weight.to(losses.dtype)[targets]
        total = (weights * losses).sum()
        return total / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)

    def _mean_over_foreground(self, by_class: Tensor, labelled: Tensor | None) -> Tensor:
        """Mean of losses of the foreground classes, of those that some item is labelled for."""
        by_class = by_class.flatten()
        if labelled is None:
            return by_class.mean()
        counted = _any_by_channel(labelled)[1:]
        return (by_class * counted).sum() / counted.sum().clamp(min=1)

    def _loss(self, logits: Tensor, targets: Tensor, labelled: Tensor | None) -> Tensor:
        """The loss of checked logits; `labelled` broadcasts to voxels, None where all are."""
        raise NotImplementedError

    def _check_logits(self, logits: Tensor) -> None:
        if logits.ndim not in (4, 5):
            raise ValueError(
                "logits must be (b, c, h, w) or (b, c, d, h, w), "
                f"but got {logits.ndim} axes: {tuple(logits.shape)}"
            )
        if not logits.is_floating_point():
            raise ValueError(f"logits must be floating point, but got {logits.dtype}")
        if self.weight is not None and len(self.weight) != logits.shape[1]:
            raise ValueError(
                f"weight has {len(self.weight)} entries, but logits have {logits.shape[1]} classes"
            )


def _check_targets(targets: Tensor, logits: Tensor, num_classes: int) -> bool:
    """Check targets; whether there are voxels that are left out."""
    expected = (logits.shape[0], *logits.shape[2:])
    if tuple(targets.shape) != expected:
        hint = (
            "; squeeze the channel axis: targets[:, 0]"
            if tuple(targets.shape) == (logits.shape[0], 1, *logits.shape[2:])
            else ""
        )
        raise ValueError(
            f"targets must be {expected} for logits {tuple(logits.shape)}, "
            f"but got {tuple(targets.shape)}{hint}"
        )
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise ValueError(f"targets must be integer labels, but got {targets.dtype}")
    if targets.numel() == 0:
        raise ValueError(f"targets are empty: shape {tuple(targets.shape)}")
    low, high = (int(value) for value in torch.aminmax(targets))
    some_ignored = low == IGNORE_INDEX
    if some_ignored:
        # the rest must be classes
        low = int(torch.where(targets == IGNORE_INDEX, 0, targets).min())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"labels must be 0 to {num_classes - 1} for {num_classes} classes, or "
            f"{IGNORE_INDEX} for voxels to leave out, but targets hold {low} to {high}"
        )
    return some_ignored


class SegmentationCrossEntropyLoss(SegmentationLoss):
    """Voxel-wise cross-entropy; with weights the weighted mean, as `torch.nn.CrossEntropyLoss`.

    Where torch gives nan, for a batch that holds only classes of weight 0, the loss is 0.

    Example:
        >>> loss = SegmentationCrossEntropyLoss(weight=[0.5, 1.0, 2.0])
        >>> float(loss(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.long)))
        1.0986123085021973
    """

    def _loss(self, logits: Tensor, targets: Tensor, labelled: Tensor | None) -> Tensor:
        return self._weighted_mean(F.cross_entropy(logits, targets, reduction="none"), targets)


class SegmentationFocalLoss(SegmentationLoss):
    """Cross-entropy of each voxel times (1 - p)^gamma, p the probability of its class.

    Lin et al., 2017, for several exclusive classes; gamma = 0 is the cross-entropy. Weights
    take the weighted mean, as for the cross-entropy.

    Args:
        weight: Weight of each class, background first; None weighs all alike.
        gamma: How much less a voxel counts that is right already.
    """

    def __init__(
        self, weight: Sequence[float] | Tensor | None = None, *, gamma: float = 2.0
    ) -> None:
        super().__init__(weight)
        if not gamma >= 0:
            raise ValueError(f"gamma must be 0 or more, but got {gamma}")
        self.gamma = gamma

    def _loss(self, logits: Tensor, targets: Tensor, labelled: Tensor | None) -> Tensor:
        cross_entropy = F.cross_entropy(logits, targets, reduction="none")
        # below this the power's own slope is infinite for gamma under 1
        wrong = (-torch.expm1(-cross_entropy)).clamp(min=1e-6)
        return self._weighted_mean(wrong**self.gamma * cross_entropy, targets)


class SegmentationTverskyLoss(SegmentationLoss):
    """1 - TP / (TP + alpha FP + beta FN), a mean over the foreground classes.

    Salehi et al., 2017; soft counts over the whole batch, by MONAI's `TverskyLoss`.
    alpha = beta = 0.5 is soft Dice; a larger beta makes a missed voxel dearer. Weights take
    the weighted mean over the foreground classes.

    Args:
        weight: Weight of each class, background first; None weighs all alike.
        alpha: Weight of false positives.
        beta: Weight of false negatives.
    """

    def __init__(
        self,
        weight: Sequence[float] | Tensor | None = None,
        *,
        alpha: float = 0.3,
        beta: float = 0.7,
    ) -> None:
        super().__init__(weight)
        if not (alpha >= 0 and beta >= 0 and alpha + beta > 0):
            raise ValueError(
                f"alpha and beta must be 0 or more and not both 0, but got {alpha} and {beta}"
            )
        self.alpha = alpha
        self.beta = beta

    def _loss(self, logits: Tensor, targets: Tensor, labelled: Tensor | None) -> Tensor:
        from monai.losses import TverskyLoss

        by_class: Tensor = TverskyLoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            alpha=self.alpha,
            beta=self.beta,
            batch=True,
            reduction="none",
        )(logits, targets[:, None])
        if self.weight is None:
            return self._mean_over_foreground(by_class, labelled)
        weights = self.weight[1:]
        if labelled is not None:
            weights = weights * _any_by_channel(labelled)[1:]
        return (weights * by_class).sum() / weights.sum().clamp(min=torch.finfo().tiny)


class SegmentationDiceCrossEntropyLoss(SegmentationLoss):
    """Sum of soft Dice over the foreground classes and cross-entropy, as nnU-Net trains.

    The Dice part is MONAI's `DiceLoss`, summed over the batch, background left out; weights
    multiply the losses of the foreground classes before their mean, as in MONAI's `DiceCELoss`.
    """

    def _loss(self, logits: Tensor, targets: Tensor, labelled: Tensor | None) -> Tensor:
        # MONAI takes seconds to import, which a user of the cross-entropy never needs
        from monai.losses import DiceLoss

        dice: Tensor = DiceLoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            weight=None if self.weight is None else self.weight[1:],
            reduction="none",
        ).to(logits.device)(logits, targets[:, None])
        cross_entropy = F.cross_entropy(logits, targets, reduction="none")
        return self._mean_over_foreground(dice, labelled) + self._weighted_mean(
            cross_entropy, targets
        )


def _any_by_channel(labelled: Tensor) -> Tensor:
    """Whether any item or voxel has a True, `(c,)`."""
    return labelled.movedim(1, 0).flatten(1).any(dim=1)


class DeepSupervisionLoss(nn.Module):
    """A loss over logits of decreasing resolution, weighted 1, 1/2, 1/4, ... to a sum of 1.

    Targets are brought to each resolution by nearest neighbour, as in nnU-Net.

    Args:
        loss: Loss of one resolution.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(
        self,
        scales: Sequence[Tensor] | Tensor,
        targets: Int[Tensor, "b *spatial"],
        labelled: Bool[Tensor, "b classes"] | None = None,
    ) -> Float[Tensor, ""]:
        """The weighted loss; of a single tensor, its loss alone.

        Args:
            scales: Logits `(b, c, *spatial)`, the first at the resolution of `targets`.
            targets: Integer label map, with `IGNORE_INDEX` where a voxel is left out.
            labelled: Which classes each item is labelled for, all by default. A loss of the user's
                own that has no such parameter gets logits in which the others are background, see
                `training.partial_labels.marginal_logits`.

        Raises:
            PluginError: for voxels that are left out, if the loss does not say that it does so.
        """
        if isinstance(scales, Tensor):
            scales = [scales]
        _check_leaves_out(self.loss, targets)
        factors = [0.5**index for index in range(len(scales))]
        losses: list[Tensor] = [
            factor * self._of_scale(logits, _resize(targets, logits.shape[2:]), labelled)
            for factor, logits in zip(factors, scales, strict=True)
        ]
        return torch.stack(losses).sum() / sum(factors)

    def _of_scale(self, logits: Tensor, targets: Tensor, labelled: Tensor | None) -> Tensor:
        loss: Tensor
        if labelled is None:
            loss = self.loss(logits, targets)
        elif self._takes_labelled:
            loss = self.loss(logits, targets, labelled=labelled)
        elif logits.shape[1] == labelled.shape[1]:
            loss = self.loss(marginal_logits(logits, labelled), targets)
        else:
            raise PluginError(
                f"the loss {type(self.loss).__name__} must take an argument `labelled` (b, "
                "classes): cases are labelled for some classes only, and a region has a channel"
            )
        return loss

    @cached_property
    def _takes_labelled(self) -> bool:
        return "labelled" in inspect.signature(self.loss.forward).parameters


def _check_leaves_out(loss: nn.Module, targets: Tensor) -> None:
    """Refuse a loss of the user's own that would learn voxels that nobody labelled."""
    if getattr(loss, "ignore_index", None) != IGNORE_INDEX and bool(
        (targets == IGNORE_INDEX).any()
    ):
        raise PluginError(
            f"the loss {type(loss).__name__} must leave out voxels with the `ignore` label of the "
            f"data, whose target is {IGNORE_INDEX}, and say so with an attribute "
            f"ignore_index = {IGNORE_INDEX} (as torch.nn.CrossEntropyLoss has it)"
        )


def _resize(targets: Tensor, size: torch.Size) -> Tensor:
    if targets.shape[1:] == size:
        return targets
    resized = F.interpolate(targets[:, None].float(), size=tuple(size), mode="nearest-exact")
    return resized[:, 0].long()


def cross_entropy(config: ModelTrainingConfig, weight: Tensor | None) -> nn.Module:
    """Cross-entropy."""
    return SegmentationCrossEntropyLoss(weight)


def dice_ce(config: ModelTrainingConfig, weight: Tensor | None) -> nn.Module:
    """Dice and cross-entropy."""
    return SegmentationDiceCrossEntropyLoss(weight)


def focal(config: ModelTrainingConfig, weight: Tensor | None) -> nn.Module:
    """The focal loss with `config.focal_gamma`."""
    return SegmentationFocalLoss(weight, gamma=config.focal_gamma)


def tversky(config: ModelTrainingConfig, weight: Tensor | None) -> nn.Module:
    """The Tversky loss with the weights of the config."""
    return SegmentationTverskyLoss(weight, alpha=config.tversky_alpha, beta=config.tversky_beta)


def build_loss(config: ModelTrainingConfig, voxel_counts: VoxelCounts | None = None) -> nn.Module:
    """The loss of a config.

    Args:
        config: Names the loss, its settings and its class weights.
        voxel_counts: Voxels of each class in the training labels, of all cases together or of
            each case.

    Raises:
        ValueError: if class weights are to be computed and there are no voxel counts, or the loss
            is for regions and the config has none.
    """
    weight = class_weight_tensor(config, voxel_counts)
    if config.regions is None and config.loss in REGION_LOSSES:
        raise ValueError(loss_without_regions(config.loss))
    kinds = LOSSES if config.regions is None else REGION_LOSSES
    loss: nn.Module = call(kinds.resolve(config.loss), config.loss, config=config, weight=weight)
    return loss
