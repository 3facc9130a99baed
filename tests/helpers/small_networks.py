"""Small forms of every network, for tests."""

from __future__ import annotations

from typing import Any

from training.config import ModelName

SMALL: dict[str, dict[str, Any]] = {
    "dformer3d": {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4]},
    "dynunet": {"filters": [4, 8, 8, 8, 8]},
    "resenc_unet": {"filters": [4, 8, 8, 8, 8], "blocks": [1, 1, 2, 1, 1]},
    "unet3d": {"channels": [4, 8, 8], "num_res_units": 1},
    "basic_unet": {"features": [4, 4, 8, 8, 8, 4]},
    "attention_unet": {"channels": [4, 8, 8]},
    "vnet": {},
    "segresnet": {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]},
    "segresnet_ds": {"init_filters": 8, "blocks_down": [1, 1, 1]},
    "mednext": {"init_filters": 4, "blocks_down": [1, 1], "blocks_up": [1, 1]},
    "swin_unetr": {"feature_size": 12, "depths": [1, 1, 1, 1]},
    "unetr": {"hidden_size": 24, "num_heads": 2, "mlp_dim": 24, "feature_size": 8},
}
"""`model_params` of each network."""

SUPERVISED: dict[ModelName, dict[str, Any]] = {
    "dformer3d": {"deep_supervision": True},
    "dynunet": {},
    "resenc_unet": {},
    "segresnet_ds": {},
    "mednext": {"deep_supervision": True},
}
"""What gives logits of several resolutions, of the networks that can."""
