"""The networks that can be trained: `MODELS` by name, and `build_model` from a config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from training.config import ModelName, ModelTrainingConfig
from training.models.dformer import SegNetwork
from training.models.monai_networks import build_segresnet, build_swin_unetr, build_unet3d
from training.models.parameters import check_model_params

__all__ = ["MODELS", "build_model"]


def build_dformer3d(
    num_classes: int, in_chan: int, *, gradient_checkpointing: bool = False, **model_params: Any
) -> nn.Module:
    """D-Former in its published settings unless told otherwise."""
    fixed = ("num_classes", "in_chan", "gradient_checkpointing")
    check_model_params("dformer3d", SegNetwork, model_params, fixed)
    return SegNetwork(
        num_classes, in_chan, gradient_checkpointing=gradient_checkpointing, **model_params
    )


MODELS: dict[ModelName, Callable[..., nn.Module]] = {
    "dformer3d": build_dformer3d,
    "unet3d": build_unet3d,
    "swin_unetr": build_swin_unetr,
    "segresnet": build_segresnet,
}
"""Builders `(num_classes, in_chan, *, gradient_checkpointing=False, **model_params)`.

A network takes volumes (batch, in_chan, depth, height, width) of any size and gives logits
(batch, num_classes, depth, height, width).
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
            checkpointing.

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
        return MODELS[config.model_name](
            config.num_classes,
            config.input_channels,
            gradient_checkpointing=config.gradient_checkpointing,
            **config.model_params,
        )
