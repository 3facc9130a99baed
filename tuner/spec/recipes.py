"""The known good default of each network: a published recipe, where the file says nothing else.

A trial trains with the recipe of its network in all that neither `config` nor `space` names
(`unnamed_values`). In the fields that a space varies it is the study's first trial, and the centre
of searchers that want one. What belongs to an optimizer, its learning rate above all, is that of
the optimizer which the trial really has.

A user's own network may bring a recipe along: an attribute `recipe` of its function, or of its
module, that maps config fields to values. It is read for fields that vary alone, since a search
space is read without importing code of others. Where there is none the defaults of
`ModelTrainingConfig` hold, which are nnU-Net's training.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from training.config import LOSS_OF_REGIONS, ModelTrainingConfig
from training.errors import PluginError, suggestion
from training.registry import LOSSES, MODELS, is_plugin

__all__ = [
    "DEFAULTS_OF_FORMAT_1",
    "DEFAULTS_OF_FORMAT_2",
    "RECIPES",
    "Recipe",
    "recipe_values",
    "unnamed_values",
    "usual_optimizer",
]


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
    "resenc_unet": _convolutional(
        "nnU-Net's residual-encoder U-Net (Isensee et al., 2024, arXiv:2404.09556), trained as "
        "nnU-Net's plain U-Net"
    ),
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


DEFAULTS_OF_FORMAT_1 = MappingProxyType(
    {
        "loss": "cross_entropy",
        "scheduler": "none",
        "augmentation": "default",
        "gradient_clip": None,
        "precision": "32-true",
    }
)
"""What `ModelTrainingConfig` had for fields that a study of format 1 does not name."""


DEFAULTS_OF_FORMAT_2 = MappingProxyType({"normalisation": "modality"})
"""What studies of formats 1 and 2 have for fields of which they do not know."""


OF_OPTIMIZERS = frozenset({"learning_rate", "weight_decay", "momentum", "nesterov"})
"""Fields whose values a recipe has for its own optimizer alone."""


def usual_optimizer(model_name: str) -> str:
    """The optimizer of a network's recipe, or the config's default."""
    if is_plugin(model_name):
        named = own_recipe(model_name).get("optimizer")
    else:
        named = RECIPES[model_name].optimizer if model_name in RECIPES else None
    return str(named or ModelTrainingConfig.model_fields["optimizer"].default)


def recipe_values(model_name: str, optimizer: str, max_epochs: int) -> dict[str, Any]:
    """The recipe of a network as values of config fields.

    Args:
        model_name: The network.
        optimizer: The optimizer that the values are for.
        max_epochs: Epochs of a full training, which the warm-up is a share of.

    Raises:
        PluginError: if the recipe of a user's own network is not a mapping of config fields.
    """
    if is_plugin(model_name):
        recipe = own_recipe(model_name)
        if optimizer != usual_optimizer(model_name):
            recipe = {name: value for name, value in recipe.items() if name not in OF_OPTIMIZERS}
        return recipe
    if model_name not in RECIPES:
        return {}
    ours = RECIPES[model_name]
    return {
        **ours.values,
        **ours.optimizers.get(optimizer, {}),
        "warmup_epochs": min(round(ours.warmup * max_epochs), max_epochs - 1),
    }


def unnamed_values(given: Mapping[str, Any], named: Collection[str]) -> dict[str, Any]:
    """The recipe of a trial's network, in the fields that its search space does not name.

    Args:
        given: Values of the trial's config that are known.
        named: Fields that the search space names, fixed or varying.
    """
    fields = ModelTrainingConfig.model_fields
    model_name = given.get("model_name", fields["model_name"].default)
    if is_plugin(model_name):
        return {}
    if "optimizer" in named:
        optimizer = given.get("optimizer", fields["optimizer"].default)
    else:
        optimizer = usual_optimizer(model_name)
    max_epochs = given.get("max_epochs", fields["max_epochs"].default)
    recipe = {"optimizer": optimizer, **recipe_values(model_name, optimizer, max_epochs)}
    if given.get("momentum") == 0:
        # there is no Nesterov's form of none
        recipe.pop("nesterov", None)
    if given.get("regions") is not None and recipe.get("loss") in LOSSES:
        recipe["loss"] = LOSS_OF_REGIONS
    return {name: value for name, value in recipe.items() if name not in named}


def own_recipe(model_name: str) -> dict[str, Any]:
    """The recipe that a user's own network brings along; empty if it has none.

    A network that cannot be imported here has none: a study can be looked at without its code.

    Raises:
        PluginError: if it is not a mapping of config fields.
    """
    try:
        builder = MODELS.resolve(model_name)
    except PluginError:
        return {}
    module = sys.modules[model_name.partition(":")[0]]
    recipe = getattr(builder, "recipe", None) or getattr(module, "recipe", None) or {}
    fields = ModelTrainingConfig.model_fields
    if not isinstance(recipe, Mapping):
        raise PluginError(
            f"the recipe of {model_name} must map config fields to values, but is {recipe!r}"
        )
    for name in recipe:
        if name not in fields:
            raise PluginError(
                f"the recipe of {model_name} names {name!r}, which is not a config field"
                f"{suggestion(name, fields)}"
            )
    return dict(recipe)
