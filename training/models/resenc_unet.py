"""nnU-Net's residual-encoder U-Net (Isensee et al., 2024, arXiv:2404.09556)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.config import ModelTrainingConfig
from training.models.dynunet import UNetPlan
from training.models.padding import PaddedNetwork
from training.models.parameters import check_model_params, stride_product
from training.models.recompute import recompute_blocks
from training.models.slices import sliced

BLOCKS = (1, 3, 4, 6)
"""Residual blocks of the first stages, finest first; further stages have as many as the last."""

Triple = Sequence[int]


def convolution(channels: int, filters: int, kernel: Triple, stride: Triple | int = 1) -> nn.Conv3d:
    """A convolution that keeps the size of a volume but for its stride."""
    padding = [size // 2 for size in kernel]
    return nn.Conv3d(channels, filters, tuple(kernel), stride, tuple(padding))  # type: ignore[arg-type]


class Normalised(nn.Sequential):
    """A layer, an instance norm with a scale and a shift, and a leaky ReLU.

    Args:
        layer: The layer.
        filters: Its output channels.
    """

    def __init__(self, layer: nn.Module, filters: int) -> None:
        super().__init__(
            layer, nn.InstanceNorm3d(filters, affine=True), nn.LeakyReLU(0.01, inplace=True)
        )


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut, which is pooled where they have a stride.

    The shortcut is that of ResNet-D (He et al., 2019, arXiv:1812.01187): average pooling, then a
    convolution of one voxel, in place of a convolution that skips voxels.

    Args:
        channels: Input channels.
        filters: Output channels.
        kernel: Size of the convolutions.
        stride: Stride of the first one.
    """

    def __init__(self, channels: int, filters: int, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.first = Normalised(convolution(channels, filters, kernel, tuple(stride)), filters)
        self.second = convolution(filters, filters, kernel)
        self.norm = nn.InstanceNorm3d(filters, affine=True)
        self.activation = nn.LeakyReLU(0.01, inplace=True)
        shortcut: list[nn.Module] = []
        if max(stride) > 1:
            shortcut.append(nn.AvgPool3d(tuple(stride), tuple(stride)))  # type: ignore[arg-type]
        if channels != filters:
            shortcut.append(nn.Conv3d(channels, filters, 1, bias=False))
            shortcut.append(nn.InstanceNorm3d(filters, affine=True))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(
        self, features: Float[Tensor, "batch channels depth height width"]
    ) -> Float[Tensor, "batch filters half_depth half_height half_width"]:
        """The block's features."""
        new = self.norm(self.second(self.first(features)))
        result: Tensor = self.activation(new + self.shortcut(features))
        return result


class ResEncUNet(nn.Module):
    """A U-Net with residual blocks in its encoder, and one convolution a stage in its decoder.

    Args:
        in_channels: Channels of an image.
        out_channels: Classes.
        strides: Stride with which each stage begins, finest first, 1 for the first.
        kernel_size: Size of the convolutions of each stage.
        filters: Channels of each stage.
        blocks: Residual blocks of each stage.
        deep_supervision: Whether it gives logits of each resolution of the decoder in training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        strides: Sequence[Triple],
        kernel_size: Sequence[Triple],
        filters: Sequence[int],
        blocks: Sequence[int],
        deep_supervision: bool = True,
    ) -> None:
        super().__init__()
        self.stem = Normalised(convolution(in_channels, filters[0], kernel_size[0]), filters[0])
        self.encoder = nn.ModuleList()
        channels = filters[0]
        for stride, kernel, width, count in zip(strides, kernel_size, filters, blocks, strict=True):
            stage = [ResidualBlock(channels, width, kernel, stride)]
            stage += [ResidualBlock(width, width, kernel, (1, 1, 1)) for _ in range(count - 1)]
            self.encoder.append(nn.Sequential(*stage))
            channels = width
        # from coarse to fine
        self.enlarge, self.decoder, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in reversed(range(len(strides) - 1)):
            width, step = filters[level], tuple(strides[level + 1])
            self.enlarge.append(
                nn.ConvTranspose3d(filters[level + 1], width, step, step)  # type: ignore[arg-type]
            )
            merge = convolution(2 * width, width, kernel_size[level])
            self.decoder.append(Normalised(merge, width))
            if deep_supervision or level == 0:
                self.heads.append(nn.Conv3d(width, out_channels, 1))
        self.deep_supervision = deep_supervision
        self.apply(_initialise)

    def forward(
        self, image: Float[Tensor, "batch channels depth height width"]
    ) -> Tensor | list[Tensor]:
        """Logits of the image's size; in training those of all resolutions, finest first."""
        features = self.stem(image)
        skips = []
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        scales = []
        levels = zip(self.enlarge, self.decoder, reversed(skips[:-1]), strict=True)
        for enlarge, convolve, skip in levels:
            features = convolve(torch.cat([enlarge(features), skip], dim=1))
            scales.append(features)
        if self.training and self.deep_supervision:
            heads = zip(self.heads, scales, strict=True)
            return [head(scale) for head, scale in heads][::-1]
        logits: Tensor = self.heads[-1](features)
        return logits


def _initialise(module: nn.Module) -> None:
    """Draw weights as nnU-Net does (He et al., 2015); a residual block begins as its shortcut."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, ResidualBlock):
        nn.init.zeros_(module.norm.weight)


def build_resenc_unet(config: ModelTrainingConfig) -> nn.Module:
    """nnU-Net's residual-encoder U-Net (Isensee et al., 2024), planned as `dynunet` is.

    Stages have 1, 3, 4, 6, 6, ... residual blocks. Its published forms M, L and XL are this network
    with larger patches and batches, for GPUs of 8, 24 and 40 GB. `model_params` may give
    `kernel_size`, `strides`, `filters` and `blocks` instead, and `deep_supervision: false`.
    """
    params = dict(config.model_params)
    check_model_params("resenc_unet", ResEncUNet, params, ("in_channels", "out_channels"))
    dims, patch = config.spatial_dims, config.known_patch_size
    plan = UNetPlan.of_config(config)
    strides = [_triple(stride, dims) for stride in params.pop("strides", plan.strides)]
    kernels = [_triple(kernel, dims) for kernel in params.pop("kernel_size", plan.kernels)]
    stages = len(strides)
    if stages < 2:
        raise ValueError(
            f"resenc_unet needs at least 2 stages, but patch_size={list(patch)} allows "
            f"{stages}: choose a larger patch_size, or give model_params.strides"
        )
    if len(kernels) != stages:
        raise ValueError(
            f"resenc_unet has {stages} strides but {len(kernels)} kernel sizes: give "
            "model_params.strides and model_params.kernel_size one entry a stage each"
        )
    filters = _for_each_stage("filters", params.pop("filters", plan.filters), stages)
    usual = (*BLOCKS, *[BLOCKS[-1]] * stages)
    blocks = _for_each_stage("blocks", params.pop("blocks", usual), stages)
    network = ResEncUNet(
        config.input_channels, config.num_classes, strides, kernels, filters, blocks, **params
    )
    if config.gradient_checkpointing:
        recompute_blocks(network, ResidualBlock, Normalised)
    # kernels of one slice make a 2D network of it
    return PaddedNetwork(sliced(config, network, keep_depth=True), stride_product(strides))


def _triple(size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """A size along each axis of a volume; along the depth 1 for sizes within slices."""
    along = (size,) * dims if isinstance(size, int) else tuple(size)
    return (1, *along) if dims == 2 else along


def _for_each_stage(name: str, given: Sequence[int], stages: int) -> Sequence[int]:
    """The entries of the stages that there are; more may be given, for other patches."""
    if len(given) < stages or min(given) < 1:
        raise ValueError(
            f"model_params.{name}={list(given)} needs one entry of 1 or more for each of the "
            f"{stages} stages of resenc_unet"
        )
    return given[:stages]
