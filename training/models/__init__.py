"""The networks that can be trained: `MODELS` by name, and `build_model` from a config."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from training.config import ModelName, ModelTrainingConfig
from training.models.dformer.network import SegNetwork
from training.models.dynunet import build_dynunet
from training.models.monai_networks import (
    build_attention_unet,
    build_basic_unet,
    build_mednext,
    build_segresnet,
    build_segresnet_ds,
    build_swin_unetr,
    build_unet3d,
    build_unetr,
    build_vnet,
)
from training.models.parameters import check_model_params

__all__ = ["MODELS", "build_model"]


def build_dformer3d(config: ModelTrainingConfig) -> nn.Module:
    """D-Former in its published settings unless told otherwise."""
    fixed = ("num_classes", "in_chan", "gradient_checkpointing")
    check_model_params("dformer3d", SegNetwork, config.model_params, fixed)
    return SegNetwork(
        config.num_classes,
        config.input_channels,
        gradient_checkpointing=config.gradient_checkpointing,
        **config.model_params,
    )


MODELS: dict[ModelName, Callable[[ModelTrainingConfig], nn.Module]] = {
    "dformer3d": build_dformer3d,
    "dynunet": build_dynunet,
    "unet3d": build_unet3d,
    "basic_unet": build_basic_unet,
    "attention_unet": build_attention_unet,
    "vnet": build_vnet,
    "segresnet": build_segresnet,
    "segresnet_ds": build_segresnet_ds,
    "mednext": build_mednext,
    "swin_unetr": build_swin_unetr,
    "unetr": build_unetr,
}
"""Builders by name; `config.model_params` are keyword arguments of the network.

A network takes volumes (batch, input_channels, depth, height, width) of any size and gives
logits (batch, num_classes, depth, height, width), while training a list of such of decreasing
resolution where it has deep supervision. UNETR alone takes none larger than the `patch_size`
that it was built for.
"""

_FIELD_OF_ARGUMENT = {
    "num_classes": "num_classes",
    "in_chan": "input_channels",
    "gradient_checkpointing": "gradient_checkpointing",
}


def build_model(config: ModelTrainingConfig) -> nn.Module:
    """The network that a config describes, with fresh weights drawn by `config.seed`.

    Raises:
        ValueError: if `model_params` do not fit the network, or it cannot do gradient
            checkpointing, or it cannot be built for `patch_size` or `input_channels`.

    Example:
        >>> params = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4]}
        >>> build_model(ModelTrainingConfig(model_params=params)).num_classes
        3
    """
    for argument, field in _FIELD_OF_ARGUMENT.items():
        if argument in config.model_params:
            raise ValueError(
                f"model_params.{argument}={config.model_params[argument]!r}: "
                f"set the field {field} instead"
            )
    # the weights depend on the seed alone, not on what was drawn before
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return MODELS[config.model_name](config)
