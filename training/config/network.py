"""Fields of the network."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from training.config.base import NOT_SEARCHABLE, ConfigPart
from training.config.types import Bool, Int, ModelName


class NetworkFields(ConfigPart):
    """The network and its shape."""

    model_name: ModelName = "dformer3d"
    """Network to train: a key of `training.registry.MODELS`, or an import path of your own,
    `my_nets:build_tiny`."""

    model_params: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the network, e.g. `model_params.embed_dim`."""

    spatial_dims: Literal[2, 3] = 3
    """Whether the network sees volumes, or each slice along the depth by itself: 2 is nnU-Net's
    configuration `2d`, for pictures and for thick slices.

    Patches are then of one slice, whatever the depth of `patch_size` is. Networks are the 2D ones
    of their kind; D-Former has tokens and groups of one slice.
    """

    num_classes: Annotated[Int, Field(ge=2)] = Field(default=3, json_schema_extra=NOT_SEARCHABLE)
    """Output channels of the network, background included."""

    input_channels: Annotated[Int, Field(ge=1)] = Field(default=1, json_schema_extra=NOT_SEARCHABLE)
    """Image channels of a case (MR sequences, or 1 for CT)."""

    gradient_checkpointing: Bool = False
    """Recompute the activations of blocks in the backward pass: less memory, about a third more
    time, the same result."""
