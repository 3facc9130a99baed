"""Weights of the classes in a loss: given, or computed from the training labels.

With n_c voxels of class c, N voxels in all, and f_c = n_c / N:

- `uniform`: 1.
- `inverse_frequency`: 1 / f_c, scaled to a mean of 1.
- `median_frequency` (Eigen and Fergus, 2015): median(f) / f_c, where f_c is the share of class c
  in the cases that hold it. A class of median frequency has weight 1.
- `effective_number` (Cui et al., 2019): (1 - beta) / (1 - beta^n_c), scaled to a mean of 1. It is
  counted in voxels, so only classes with fewer than a few times 1 / (1 - beta) voxels differ:
  beta = 0.9999 distinguishes classes up to about 10^5 voxels; larger ones need a larger beta.

A case that is not labelled for a class (`training.partial_labels`) says nothing of it: the class's
share is that of the cases that are, and so is its number of voxels.

A class without voxels has weight 0 and does not count in mean or median. With a target label
there are two classes, all else and the target. With regions each has a weight, by its voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from training.region_maps import region_table
from training.registry import CLASS_WEIGHTS, call

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig

__all__ = ["CLASS_WEIGHTS", "VoxelCounts", "class_weight_tensor"]

VoxelCounts = Sequence[int] | Sequence[Sequence[float]]
"""Voxels of each class: of all cases together, or of each case.

Those of a case are nan for a class that it is not labelled for.
"""

Counts = Float[Tensor, "cases classes"]


def inverse_frequency(
    counts: Counts, config: ModelTrainingConfig, voxels: Float[Tensor, " cases"]
) -> Float[Tensor, " c"]:
    """Each class by the inverse of its share of the voxels."""
    total = counts.nansum(dim=0)
    of_labelled = (voxels[:, None] * ~counts.isnan()).sum(dim=0)
    return _mean_of_1(of_labelled / total, total > 0)


def median_frequency(
    counts: Counts, config: ModelTrainingConfig, voxels: Float[Tensor, " cases"]
) -> Float[Tensor, " c"]:
    """Each class by the inverse of its share of the cases that hold it."""
    holds = counts > 0
    of_holding_cases = (voxels[:, None] * holds).sum(dim=0)
    frequency = counts.nansum(dim=0) / of_holding_cases
    present = holds.any(dim=0)
    # torch's median is the lower of the two middle values, the paper's their mean
    median = torch.quantile(frequency[present], 0.5)
    return torch.where(present, median / frequency, 0.0)


def effective_number(counts: Counts, config: ModelTrainingConfig) -> Float[Tensor, " c"]:
    """Each class by the inverse of its effective number of voxels."""
    total = counts.nansum(dim=0)
    beta = config.effective_number_beta
    log_beta = math.log(beta) if beta else -math.inf
    # -expm1(n log beta) is 1 - beta^n, and keeps its digits where beta^n is near 1
    return _mean_of_1((1 - beta) / -torch.expm1(total * log_beta), total > 0)


def _mean_of_1(weights: Float[Tensor, " c"], present: Tensor) -> Float[Tensor, " c"]:
    return torch.where(present, weights / weights[present].mean(), 0.0)


def class_weight_tensor(
    config: ModelTrainingConfig, voxel_counts: VoxelCounts | None
) -> Float[Tensor, " c"] | None:
    """Weight of each class, None for equal weights.

    Args:
        config: Names the preset or lists the weights.
        voxel_counts: Voxels of each class in the training labels, `(classes,)` or
            `(cases, classes)`; only `median_frequency` tells the two apart.

    Raises:
        ValueError: if the preset needs voxel counts and they are missing or do not fit.
    """
    target = config.target_class
    if isinstance(config.class_weights, list):
        weights = config.class_weights
        chosen = weights if target is None else [weights[0], weights[target]]
        return torch.tensor(chosen, dtype=torch.float32)
    if config.class_weights == "uniform":
        return None
    if voxel_counts is None:
        raise ValueError(
            f"class_weights={config.class_weights!r} is computed from the training labels, but "
            "there are no voxel counts: give them, or a list of weights"
        )
    counts = torch.tensor(voxel_counts, dtype=torch.float64)
    counts = counts if counts.ndim == 2 else counts[None]
    if counts.shape[1] != config.num_classes:
        raise ValueError(
            f"the labels have {counts.shape[1]} classes, but num_classes={config.num_classes}"
        )
    if not counts.nansum() > 0:
        raise ValueError(
            f"class_weights={config.class_weights!r} is computed from the training labels, but "
            "they have no voxels: give a list of weights"
        )
    voxels = counts.nansum(dim=1)
    regions = config.label_regions
    if regions is not None:
        # a case is labelled for a region if it is for all of its classes
        counts = torch.stack([counts[:, row].sum(dim=1) for row in region_table(regions)], dim=1)
    if target is not None:
        of_target = counts[:, target]
        known = ~of_target.isnan()
        # a case that is not labelled for the target has no part in its task
        of_target, voxels = of_target[known], voxels[known]
        counts = torch.stack([voxels - of_target, of_target], dim=1)
    preset = CLASS_WEIGHTS.resolve(config.class_weights)
    computed: Tensor = call(
        preset, config.class_weights, config=config, counts=counts, voxels=voxels
    )
    return computed.float()
