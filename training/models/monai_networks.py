"""MONAI's networks, made to accept volumes of any size.

MONAI is imported when a network is built, because its import takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from training.models.parameters import check_model_params, refuse_checkpointing

_SHAPE_ARGUMENTS = ("spatial_dims", "in_channels", "out_channels")


class PaddedNetwork(nn.Module):
    """Pads volumes to a size that a network can halve, and crops its logits.

    The last voxels are repeated at the far ends. The coarsest grid keeps at least two
    voxels, because an instance norm has no statistics over one.

    Args:
        network: logits of a volume's size from volumes whose size the divisor divides.
        divisor: voxels of the coarsest grid's voxel (depth, height, width).
    """

    def __init__(self, network: nn.Module, divisor: tuple[int, int, int]) -> None:
        super().__init__()
        self.network = network
        self.divisor = divisor

    def forward(
        self, image: Float[Tensor, "batch channels depth height width"]
    ) -> Float[Tensor, "batch classes depth height width"]:
        """Logits of every voxel, at the image's size."""
        depth, height, width = image.shape[2:]
        missing = [-size % d for size, d in zip(image.shape[2:], self.divisor, strict=True)]
        if (depth + missing[0], height + missing[1], width + missing[2]) == self.divisor:
            missing[2] += self.divisor[2]
        if any(missing):
            pad = (0, missing[2], 0, missing[1], 0, missing[0])
            image = F.pad(image, pad, mode="replicate")
        logits: Tensor = self.network(image)
        return logits[:, :, :depth, :height, :width]


def build_unet3d(
    num_classes: int, in_chan: int, *, gradient_checkpointing: bool = False, **model_params: Any
) -> nn.Module:
    """MONAI's residual U-Net; its five levels have 16 to 256 channels unless told otherwise."""
    from monai.networks.nets import UNet

    refuse_checkpointing("unet3d", gradient_checkpointing)
    check_model_params("unet3d", UNet, model_params, _SHAPE_ARGUMENTS)
    channels: Sequence[int] = model_params.pop("channels", (16, 32, 64, 128, 256))
    strides: Sequence[int | Sequence[int]] = model_params.pop("strides", (2,) * (len(channels) - 1))
    arguments = {"num_res_units": 2, "norm": "INSTANCE", **model_params}
    network = UNet(3, in_chan, num_classes, channels=channels, strides=strides, **arguments)
    divisor = [1, 1, 1]
    for stride in strides:
        per_axis = (stride,) * 3 if isinstance(stride, int) else stride
        divisor = [d * s for d, s in zip(divisor, per_axis, strict=True)]
    return PaddedNetwork(network, (divisor[0], divisor[1], divisor[2]))


def build_swin_unetr(
    num_classes: int, in_chan: int, *, gradient_checkpointing: bool = False, **model_params: Any
) -> nn.Module:
    """MONAI's SwinUNETR; its first stage is 24 wide unless told otherwise."""
    from monai.networks.nets import SwinUNETR

    check_model_params("swin_unetr", SwinUNETR, model_params, (*_SHAPE_ARGUMENTS, "use_checkpoint"))
    arguments = {"feature_size": 24, "patch_size": 2, **model_params}
    network = SwinUNETR(
        in_channels=in_chan,
        out_channels=num_classes,
        use_checkpoint=gradient_checkpointing,
        spatial_dims=3,
        **arguments,
    )
    divisor = arguments["patch_size"] ** 5
    return PaddedNetwork(network, (divisor, divisor, divisor))


def build_segresnet(
    num_classes: int, in_chan: int, *, gradient_checkpointing: bool = False, **model_params: Any
) -> nn.Module:
    """MONAI's SegResNet; its first level has 16 filters unless told otherwise."""
    from monai.networks.nets import SegResNet

    refuse_checkpointing("segresnet", gradient_checkpointing)
    check_model_params("segresnet", SegResNet, model_params, _SHAPE_ARGUMENTS)
    arguments = {"init_filters": 16, "blocks_down": (1, 2, 2, 4), **model_params}
    network = SegResNet(spatial_dims=3, in_channels=in_chan, out_channels=num_classes, **arguments)
    divisor = 2 ** (len(arguments["blocks_down"]) - 1)
    return PaddedNetwork(network, (divisor, divisor, divisor))
