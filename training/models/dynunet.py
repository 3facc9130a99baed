"""nnU-Net's U-Net: MONAI's DynUNet with the plan that nnU-Net makes of patch and spacing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.config import ModelTrainingConfig
from training.models.padding import PaddedNetwork
from training.models.parameters import (
    SHAPE_ARGUMENTS,
    check_model_params,
    stride_product,
)
from training.models.recompute import recompute_blocks
from training.models.slices import sliced

MIN_GRID = 4
"""Voxels that nnU-Net leaves of an axis in the coarsest grid."""

FIRST_FILTERS = 32

MAX_FILTERS = {2: 512, 3: 320}
"""Channels of a stage at most, of images and of volumes."""


@dataclass(frozen=True)
class UNetPlan:
    """Kernel, stride and filters of each stage, finest first.

    Attributes:
        kernels: Size of the convolutions.
        strides: Stride with which a stage begins, 1 for the first.
        filters: Channels.
    """

    kernels: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    filters: tuple[int, ...]

    @classmethod
    def of_config(cls, config: ModelTrainingConfig) -> UNetPlan:
        """The plan for the patches of a config; of slices with `spatial_dims: 2`."""
        dims = config.spatial_dims
        spacing = config.target_spacing or (1.0, 1.0, 1.0)
        return cls.of(config.known_patch_size[-dims:], spacing[-dims:])

    @classmethod
    def of(cls, patch_size: Sequence[int], spacing: Sequence[float]) -> UNetPlan:
        """nnU-Net's plan (Isensee et al., 2021) for patches of some spacing.

        An axis is halved while at least 4 voxels remain and its spacing is within twice the
        finest of those that can be halved. Convolutions leave an axis alone until its spacing
        is within twice the finest. Filters double from 32 to at most 320, of 2D images 512.

        Args:
            patch_size: Voxels of a patch along each axis.
            spacing: Size of a voxel along each axis.
        """
        axes = range(len(patch_size))
        size, voxel = list(patch_size), list(spacing)
        kernel = [1] * len(size)
        kernels: list[tuple[int, ...]] = []
        strides: list[tuple[int, ...]] = [(1,) * len(size)]
        while True:
            halved = [axis for axis in axes if size[axis] >= 2 * MIN_GRID]
            finest = min((voxel[axis] for axis in halved), default=math.inf)
            halved = [axis for axis in halved if voxel[axis] < 2 * finest]
            if not halved or (len(halved) == 1 and size[halved[0]] < 3 * MIN_GRID):
                break
            kernel = [3 if voxel[axis] < 2 * min(voxel) else kernel[axis] for axis in axes]
            kernels.append(tuple(kernel))
            strides.append(tuple(2 if axis in halved else 1 for axis in axes))
            for axis in halved:
                size[axis], voxel[axis] = -(-size[axis] // 2), voxel[axis] * 2
        kernels.append((3,) * len(size))
        most = MAX_FILTERS[len(size)]
        filters = tuple(min(FIRST_FILTERS * 2**stage, most) for stage in range(len(strides)))
        return cls(tuple(kernels), tuple(strides), filters)


class SupervisedDynUNet(nn.Module):
    """DynUNet that gives each head's logits at the head's own resolution, as nnU-Net trains.

    MONAI's forward enlarges them all to the image's size, which costs memory and compares
    coarse logits with fine labels.

    Args:
        network: MONAI's DynUNet with deep supervision.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, image: Float[Tensor, "batch channels *spatial"]) -> Tensor | list[Tensor]:
        """Logits of the image's size; in training those of all resolutions, finest first."""
        network = self.network
        logits: Tensor = network.output_block(network.skip_layers(image))
        heads: list[Tensor] = list(network.heads)
        # MONAI keeps them in the network: a graph that outlives its step and cannot be copied
        network.heads[:] = [torch.empty(0)] * len(heads)
        return [logits, *heads] if self.training else logits


def build_dynunet(config: ModelTrainingConfig) -> nn.Module:
    """nnU-Net's plain U-Net with deep supervision, planned by `patch_size` and `target_spacing`.

    Without a `target_spacing` voxels are taken for cubes. `model_params` may give
    `kernel_size`, `strides` and `filters` instead, and `deep_supervision: false`.
    """
    from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetResBlock, UnetUpBlock
    from monai.networks.nets import DynUNet

    params = dict(config.model_params)
    check_model_params(
        "dynunet", DynUNet, params, (*SHAPE_ARGUMENTS, "upsample_kernel_size", "deep_supr_num")
    )
    dims, patch = config.spatial_dims, config.known_patch_size
    plan = UNetPlan.of_config(config)
    strides = params.pop("strides", plan.strides)
    kernels = params.pop("kernel_size", plan.kernels)
    if len(strides) < 3:
        raise ValueError(
            f"dynunet needs at least 3 stages, but patch_size={list(patch)} allows "
            f"{len(strides)} (strides {[list(stride) for stride in plan.strides]}): choose a "
            f"larger patch_size, or give model_params.strides and model_params.kernel_size"
        )
    if len(kernels) != len(strides):
        raise ValueError(
            f"dynunet has {len(strides)} strides but {len(kernels)} kernel sizes: give "
            "model_params.strides and model_params.kernel_size one entry a stage each"
        )
    filters = params.pop("filters", None)
    if filters is not None and len(filters) < len(strides):
        raise ValueError(
            f"model_params.filters={list(filters)} needs one entry for each of the "
            f"{len(strides)} stages of dynunet"
        )
    arguments = {"deep_supervision": True, **params}
    network = DynUNet(
        dims,
        config.input_channels,
        config.num_classes,
        kernel_size=kernels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=filters,
        deep_supr_num=len(strides) - 2,
        **arguments,
    )
    if config.gradient_checkpointing:
        recompute_blocks(network, UnetBasicBlock, UnetResBlock, UnetUpBlock)
    if arguments["deep_supervision"]:
        network = SupervisedDynUNet(network)
    return PaddedNetwork(sliced(config, network), stride_product(strides, dims))
