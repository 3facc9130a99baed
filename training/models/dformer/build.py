"""Builds the D-Former that a config describes."""

from __future__ import annotations

from torch import nn

from training.config import ModelTrainingConfig
from training.models.dformer.network import SegNetwork
from training.models.parameters import check_model_params
from training.models.slices import sliced


def build_dformer3d(config: ModelTrainingConfig) -> nn.Module:
    """D-Former in its published settings unless set otherwise."""
    fixed = ("num_classes", "in_chan", "gradient_checkpointing")
    check_model_params("dformer3d", SegNetwork, config.model_params, fixed)
    # with spatial_dims: 2 a token has one slice, and so has a group
    flat = {"patch_size": (1, 4, 4), "group_size": (1, 8, 8)} if config.spatial_dims == 2 else {}
    network = SegNetwork(
        config.num_classes,
        config.input_channels,
        gradient_checkpointing=config.gradient_checkpointing,
        **{**flat, **config.model_params},
    )
    return sliced(config, network, keep_depth=True)
