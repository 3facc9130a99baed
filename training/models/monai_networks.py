"""MONAI's networks, made to accept volumes of any size.

MONAI is imported when a network is built, because its import takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from training.config import ModelTrainingConfig
from training.models.padding import FixedSizeNetwork, PaddedNetwork
from training.models.parameters import (
    SHAPE_ARGUMENTS,
    check_model_params,
    stride_product,
)
from training.models.recompute import recompute_blocks
from training.models.slices import cube, sliced

UNETR_PATCH = 16
"""Voxels of a UNETR token along each axis, fixed in its decoder."""


class _LinspaceOnCpu(TorchFunctionMode):
    """Lets a network be built without memory (device meta) whose constructor reads a linspace."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def _recompute(config: ModelTrainingConfig, network: nn.Module, *blocks: type[nn.Module]) -> None:
    """Let blocks recompute their activations, where the config says so."""
    if config.gradient_checkpointing:
        recompute_blocks(network, *blocks)


def build_unet3d(config: ModelTrainingConfig) -> nn.Module:
    """Residual U-Net; its five levels have 16 to 256 channels unless set otherwise."""
    from monai.networks.blocks import Convolution, ResidualUnit
    from monai.networks.nets import UNet

    check_model_params("unet3d", UNet, config.model_params, SHAPE_ARGUMENTS)
    arguments = {"num_res_units": 2, "norm": "INSTANCE", **_levels(config.model_params)}
    network = UNet(config.spatial_dims, config.input_channels, config.num_classes, **arguments)
    _recompute(config, network, Convolution, ResidualUnit)
    return PaddedNetwork(
        sliced(config, network), stride_product(arguments["strides"], config.spatial_dims)
    )


def build_attention_unet(config: ModelTrainingConfig) -> nn.Module:
    """Attention U-Net (Oktay et al., 2018); five levels of 16 to 256 channels by default."""
    from monai.networks.nets.attentionunet import AttentionBlock, AttentionUnet, ConvBlock, UpConv

    check_model_params("attention_unet", AttentionUnet, config.model_params, SHAPE_ARGUMENTS)
    arguments = _levels(config.model_params)
    network = AttentionUnet(
        config.spatial_dims, config.input_channels, config.num_classes, **arguments
    )
    _recompute(config, network, ConvBlock, UpConv, AttentionBlock)
    return PaddedNetwork(
        sliced(config, network), stride_product(arguments["strides"], config.spatial_dims)
    )


def _levels(model_params: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a U-Net with the default channels, and strides of 2 between its levels."""
    channels: Sequence[int] = model_params.get("channels", (16, 32, 64, 128, 256))
    return {"channels": channels, "strides": (2,) * (len(channels) - 1), **model_params}


def build_basic_unet(config: ModelTrainingConfig) -> nn.Module:
    """The plain U-Net of Falk et al., 2019, with instance norm; 32 to 256 channels by default."""
    from monai.networks.nets.basic_unet import BasicUNet, TwoConv, UpCat

    check_model_params("basic_unet", BasicUNet, config.model_params, SHAPE_ARGUMENTS)
    network = BasicUNet(
        config.spatial_dims, config.input_channels, config.num_classes, **config.model_params
    )
    _recompute(config, network, TwoConv, UpCat)
    return PaddedNetwork(sliced(config, network), cube(config, 2**4))


def build_vnet(config: ModelTrainingConfig) -> nn.Module:
    """V-Net (Milletari et al., 2016), with batch norm and dropout as published.

    Raises:
        ValueError: if its 16 first channels cannot repeat the input channels evenly.
    """
    from monai.networks.nets.vnet import (
        DownTransition,
        InputTransition,
        OutputTransition,
        UpTransition,
        VNet,
    )

    check_model_params("vnet", VNet, config.model_params, (*SHAPE_ARGUMENTS, "dropout_prob"))
    if 16 % config.input_channels:
        raise ValueError(
            f"vnet cannot take input_channels={config.input_channels}: it needs 1, 2, 4, 8 or 16"
        )
    network = VNet(
        config.spatial_dims, config.input_channels, config.num_classes, **config.model_params
    )
    _recompute(config, network, InputTransition, DownTransition, UpTransition, OutputTransition)
    return PaddedNetwork(sliced(config, network), cube(config, 2**4))


def build_segresnet(config: ModelTrainingConfig) -> nn.Module:
    """SegResNet (Myronenko, 2018); its first level has 16 filters unless set otherwise."""
    from monai.networks.blocks.segresnet_block import ResBlock
    from monai.networks.nets import SegResNet

    check_model_params("segresnet", SegResNet, config.model_params, SHAPE_ARGUMENTS)
    arguments = {"init_filters": 16, "blocks_down": (1, 2, 2, 4), **config.model_params}
    network = SegResNet(
        spatial_dims=config.spatial_dims,
        in_channels=config.input_channels,
        out_channels=config.num_classes,
        **arguments,
    )
    _recompute(config, network, ResBlock)
    return PaddedNetwork(
        sliced(config, network), cube(config, 2 ** (len(arguments["blocks_down"]) - 1))
    )


def build_segresnet_ds(config: ModelTrainingConfig) -> nn.Module:
    """SegResNet with deep supervision, as in Auto3DSeg: 5 levels from 32 filters, 4 heads."""
    from monai.networks.nets.segresnet_ds import SegResBlock, SegResNetDS

    check_model_params(
        "segresnet_ds", SegResNetDS, config.model_params, (*SHAPE_ARGUMENTS, "preprocess")
    )
    blocks: Sequence[int] = config.model_params.get("blocks_down", (1, 2, 2, 4, 4))
    arguments = {
        "norm": "INSTANCE",
        "blocks_down": blocks,
        "dsdepth": min(4, len(blocks) - 1),
        **config.model_params,
    }
    network = SegResNetDS(
        spatial_dims=config.spatial_dims,
        in_channels=config.input_channels,
        out_channels=config.num_classes,
        **arguments,
    )
    *flat, height, width = network.shape_factor()
    _recompute(config, network, SegResBlock)
    return PaddedNetwork(sliced(config, network), (flat[0] if flat else 1, height, width))


def build_mednext(config: ModelTrainingConfig) -> nn.Module:
    """MedNeXt (Roy et al., 2023), its small form with kernels of 3 unless set otherwise."""
    from monai.networks.blocks.mednext_block import MedNeXtBlock
    from monai.networks.nets import MedNeXt

    check_model_params("mednext", MedNeXt, config.model_params, SHAPE_ARGUMENTS)
    arguments = {
        "kernel_size": 3,
        "use_residual_connection": True,
        "blocks_down": (2, 2, 2, 2),
        **config.model_params,
    }
    network = MedNeXt(
        spatial_dims=config.spatial_dims,
        in_channels=config.input_channels,
        out_channels=config.num_classes,
        **arguments,
    )
    _recompute(config, network, MedNeXtBlock)
    return PaddedNetwork(sliced(config, network), cube(config, 2 ** len(arguments["blocks_down"])))


def build_swin_unetr(config: ModelTrainingConfig) -> nn.Module:
    """SwinUNETR (Hatamizadeh et al., 2022); its first stage is 24 wide unless set otherwise."""
    from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
    from monai.networks.nets.swin_unetr import SwinTransformerBlock, SwinUNETR

    fixed = (*SHAPE_ARGUMENTS, "use_checkpoint")
    check_model_params("swin_unetr", SwinUNETR, config.model_params, fixed)
    arguments = {"feature_size": 24, "patch_size": 2, **config.model_params}
    with _LinspaceOnCpu():
        network = SwinUNETR(
            in_channels=config.input_channels,
            out_channels=config.num_classes,
            spatial_dims=config.spatial_dims,
            **arguments,
        )
    _recompute(config, network, SwinTransformerBlock, UnetrBasicBlock, UnetrUpBlock)
    return PaddedNetwork(sliced(config, network), cube(config, arguments["patch_size"] ** 5))


def build_unetr(config: ModelTrainingConfig) -> nn.Module:
    """UNETR (Hatamizadeh et al., 2022) for patches of `patch_size`.

    Raises:
        ValueError: if an axis of `patch_size` is not a multiple of 16.
    """
    from monai.networks.blocks.transformerblock import TransformerBlock
    from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
    from monai.networks.nets import UNETR

    fixed = (*SHAPE_ARGUMENTS, "img_size", "save_attn")
    check_model_params("unetr", UNETR, config.model_params, fixed)
    patch = config.known_patch_size
    seen = patch[-config.spatial_dims :]
    if any(size % UNETR_PATCH for size in seen):
        raise ValueError(
            f"unetr cannot be built for patch_size={list(patch)}: it cuts a patch "
            f"into cubes of {UNETR_PATCH} voxels, so each entry must be a multiple of "
            f"{UNETR_PATCH}"
        )
    network = UNETR(
        config.input_channels,
        config.num_classes,
        img_size=seen,
        spatial_dims=config.spatial_dims,
        **config.model_params,
    )
    for block in network.vit.blocks:
        # MONAI gives every block a norm for a cross-attention that UNETR has not
        block.norm_cross_attn.requires_grad_(False)
    _recompute(config, network, TransformerBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock)
    return FixedSizeNetwork(sliced(config, network), patch)
