"""Training losses, their class weights, and deep supervision over several resolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from training.config import LossName, ModelTrainingConfig

__all__ = [
    "LOSSES",
    "DeepSupervisionLoss",
    "SegmentationCrossEntropyLoss",
    "SegmentationDiceCrossEntropyLoss",
    "build_loss",
    "class_weight_tensor",
]


class _SegmentationLoss(nn.Module):
    """Checks what every loss here is given: logits `(b, c, *spatial)`, labels `(b, *spatial)`.

    Args:
        weight: Weight of each class, background first; None weighs all alike.

    Raises:
        ValueError: for a weight that is no list of non-negative numbers.
    """

    weight: Tensor | None

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
        self, logits: Float[Tensor, "b c *spatial"], targets: Int[Tensor, "b *spatial"]
    ) -> Float[Tensor, ""]:
        """The loss of a batch.

        Args:
            logits: Scores of the classes, `(b, c, h, w)` or `(b, c, d, h, w)`.
            targets: Integer label map, `(b, h, w)` or `(b, d, h, w)`.

        Returns:
            A scalar.

        Raises:
            ValueError: for shapes, types or label values that do not fit together.
        """
        self._check_logits(logits)
        _check_targets(targets, logits)
        return self._loss(logits, targets.long())

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
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


def _check_targets(targets: Tensor, logits: Tensor) -> None:
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
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"labels must be 0 to {logits.shape[1] - 1} for {logits.shape[1]} classes, "
            f"but targets hold {low} to {high}"
        )


class SegmentationCrossEntropyLoss(_SegmentationLoss):
    """Voxel-wise cross-entropy; with weights the weighted mean, as `torch.nn.CrossEntropyLoss`.

    Example:
        >>> loss = SegmentationCrossEntropyLoss(weight=[0.5, 1.0, 2.0])
        >>> float(loss(torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.long)))
        1.0986123085021973
    """

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, weight=self.weight)


class SegmentationDiceCrossEntropyLoss(_SegmentationLoss):
    """Sum of soft Dice over the foreground classes and cross-entropy, as nnU-Net trains.

    The computation is MONAI's `DiceCELoss`; Dice is summed over the batch and leaves the
    background out.
    """

    def _loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        # MONAI takes seconds to import, which a user of the cross-entropy never needs
        from monai.losses import DiceCELoss

        loss: Tensor = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            weight=self.weight,
        ).to(logits.device)(logits, targets[:, None])
        return loss


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
        self, scales: Sequence[Tensor] | Tensor, targets: Int[Tensor, "b *spatial"]
    ) -> Float[Tensor, ""]:
        """The weighted loss; of a single tensor, its loss alone.

        Args:
            scales: Logits `(b, c, *spatial)`, the first at the resolution of `targets`.
            targets: Integer label map.
        """
        if isinstance(scales, Tensor):
            scales = [scales]
        factors = [0.5**index for index in range(len(scales))]
        losses: list[Tensor] = [
            factor * self.loss(logits, _resize(targets, logits.shape[2:]))
            for factor, logits in zip(factors, scales, strict=True)
        ]
        return torch.stack(losses).sum() / sum(factors)


def _resize(targets: Tensor, size: torch.Size) -> Tensor:
    if targets.shape[1:] == size:
        return targets
    resized = F.interpolate(targets[:, None].float(), size=tuple(size), mode="nearest-exact")
    return resized[:, 0].long()


LOSSES: dict[LossName, Callable[[Tensor | None], nn.Module]] = {
    "cross_entropy": SegmentationCrossEntropyLoss,
    "dice_ce": SegmentationDiceCrossEntropyLoss,
}
"""Losses by the name that a config gives them; each takes the class weights."""


def build_loss(config: ModelTrainingConfig, voxel_counts: Sequence[int] | None = None) -> nn.Module:
    """The loss of a config.

    Args:
        config: Names the loss and its class weights.
        voxel_counts: Voxels of each class in the training labels.

    Raises:
        ValueError: if class weights are to be computed and there are no voxel counts.
    """
    return LOSSES[config.loss](class_weight_tensor(config, voxel_counts))


def class_weight_tensor(
    config: ModelTrainingConfig, voxel_counts: Sequence[int] | None
) -> Float[Tensor, " c"] | None:
    """Weight of each class, None for equal weights.

    `inverse_frequency` weighs a class by the inverse of its share of the training voxels,
    scaled to a mean of 1; a class without voxels has weight 0. With a target label there
    are two classes, all else and the target.

    Raises:
        ValueError: if the preset needs voxel counts and they are missing or do not fit.
    """
    target = config.target_label
    if isinstance(config.class_weights, list):
        weights = config.class_weights
        chosen = weights if target is None else [weights[0], weights[target]]
        return torch.tensor(chosen, dtype=torch.float32)
    if config.class_weights == "uniform":
        return None
    if voxel_counts is None:
        raise ValueError(
            "class_weights='inverse_frequency' is computed from the training labels, but there "
            "are no voxel counts: give them, or a list of weights"
        )
    if len(voxel_counts) != config.num_classes:
        raise ValueError(
            f"the labels have {len(voxel_counts)} classes, but num_classes={config.num_classes}"
        )
    counts = torch.tensor(voxel_counts, dtype=torch.float64)
    if target is not None:
        counts = torch.stack([counts.sum() - counts[target], counts[target]])
    present = counts > 0
    inverse = torch.where(present, counts.sum() / counts.clamp(min=1), 0.0)
    return (inverse / inverse[present].mean()).float()
