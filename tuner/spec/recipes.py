"""The known good default of each network: a published recipe, where the file says nothing else.

A recipe is used for fields that a space varies and its file does not fix, as the study's first
trial and as the centre of searchers that want one. What belongs to an optimizer, its learning
rate above all, is that of the optimizer which the trial really has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["RECIPES", "Recipe", "recipe_values"]


@dataclass(frozen=True)
class Recipe:
    """How a network is usually trained.

    Attributes:
        source: Where that is published.
        optimizer: The optimizer.
        optimizers: Learning rate, and what else depends on it, of each optimizer.
        values: The other fields.
        warmup: Share of the epochs that the learning rate rises.
    """

    source: str
    optimizer: str
    optimizers: Mapping[str, Mapping[str, Any]]
    values: Mapping[str, Any]
    warmup: float = 0.0


NNUNET_SGD = MappingProxyType(
    {"learning_rate": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
)
"""nnU-Net's optimizer (Isensee et al., 2021)."""

NNUNET_TRAINING = MappingProxyType(
    {
        "scheduler": "poly",
        "poly_power": 0.9,
        "loss": "dice_ce",
        "class_weights": "uniform",
        "augmentation": "nnunet",
        "augmentation_strength": 1.0,
        "foreground_fraction": 1 / 3,
        "decay_norms_and_biases": True,
        "gradient_clip": 12.0,
        "ema_decay": None,
    }
)
"""nnU-Net's training but for the optimizer (Isensee et al., 2021)."""

TRANSFORMER_TRAINING = MappingProxyType(
    {**NNUNET_TRAINING, "scheduler": "cosine", "decay_norms_and_biases": False}
)
"""nnU-Net's training with the schedule of transformers, whose norms do not decay."""


def _adaptive(learning_rate: float, weight_decay: float) -> dict[str, Any]:
    return {"learning_rate": learning_rate, "weight_decay": weight_decay}


def _convolutional(source: str, adaptive: float = 1e-3) -> Recipe:
    """nnU-Net's recipe, and a learning rate for Adam where the file asks for that."""
    return Recipe(
        source,
        "sgd",
        {
            "sgd": NNUNET_SGD,
            "adam": _adaptive(adaptive, 3e-5),
            "adamw": _adaptive(adaptive, 3e-5),
        },
        NNUNET_TRAINING,
    )


def _transformer(source: str, learning_rate: float, weight_decay: float = 1e-5) -> Recipe:
    """AdamW with warm-up and cosine; nnU-Net's SGD where the file asks for that."""
    return Recipe(
        source,
        "adamw",
        {
            "sgd": NNUNET_SGD,
            "adam": _adaptive(learning_rate, weight_decay),
            "adamw": _adaptive(learning_rate, weight_decay),
        },
        TRANSFORMER_TRAINING,
        warmup=0.05,
    )


NNUNET = "nnU-Net (Isensee et al., 2021, doi:10.1038/s41592-020-01008-z)"

RECIPES: dict[str, Recipe] = {
    "dformer3d": _transformer(
        "AdamW, warm-up and cosine as Swin UNETR (Hatamizadeh et al., 2022, arXiv:2201.01266), "
        "in the training of nnU-Net",
        8e-4,
    ),
    "dynunet": _convolutional(NNUNET),
    "unet3d": _convolutional(NNUNET),
    "basic_unet": _convolutional(NNUNET),
    "attention_unet": _convolutional(NNUNET),
    "vnet": _convolutional(NNUNET),
    "segresnet": _transformer(
        "MONAI Auto3DSeg's SegResNet: AdamW 2e-4, warm-up and cosine (after Myronenko, 2018, "
        "arXiv:1810.11654)",
        2e-4,
    ),
    "segresnet_ds": _transformer(
        "MONAI Auto3DSeg's SegResNet: AdamW 2e-4, warm-up and cosine (after Myronenko, 2018, "
        "arXiv:1810.11654)",
        2e-4,
    ),
    "mednext": Recipe(
        "MedNeXt (Roy et al., 2023, arXiv:2303.09975): AdamW 1e-3 in the training of nnU-Net",
        "adamw",
        {
            "sgd": NNUNET_SGD,
            "adam": _adaptive(1e-3, 3e-5),
            "adamw": _adaptive(1e-3, 3e-5),
        },
        NNUNET_TRAINING,
    ),
    "swin_unetr": _transformer("Swin UNETR (Hatamizadeh et al., 2022, arXiv:2201.01266)", 8e-4),
    "unetr": _transformer("UNETR (Hatamizadeh et al., 2022, arXiv:2103.10504)", 1e-4),
}
"""The recipe of each network."""


def recipe_values(model_name: str, optimizer: str, max_epochs: int) -> dict[str, Any]:
    """The recipe of a network as values of config fields.

    Args:
        model_name: The network.
        optimizer: The optimizer that the values are for.
        max_epochs: Epochs of a full training, which the warm-up is a share of.
    """
    recipe = RECIPES[model_name]
    return {
        **recipe.values,
        **recipe.optimizers[optimizer],
        "warmup_epochs": min(round(recipe.warmup * max_epochs), max_epochs - 1),
    }
