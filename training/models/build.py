"""Builds the network of a config: one of `MODELS`, or a user's own by its import path."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import nn

from training.config import ModelTrainingConfig
from training.errors import PluginError
from training.models.parameters import model_params_problem
from training.registry import MODELS, is_plugin, parameters_of, taken

_FIELD_OF_ARGUMENT = {
    "num_classes": "num_classes",
    "in_chan": "input_channels",
    "gradient_checkpointing": "gradient_checkpointing",
}
"""Arguments of our networks that have a field of their own."""

FIELDS_OF_PLUGINS = ("num_classes", "input_channels", "patch_size", "gradient_checkpointing")
"""Fields that a user's own network is given under their names, if it has such parameters."""


def build_model(config: ModelTrainingConfig) -> nn.Module:
    """The network that a config describes, with fresh weights drawn by `config.seed`.

    It takes volumes (batch, input_channels, depth, height, width) of any size and gives logits
    (batch, num_classes, depth, height, width), with regions one channel a region, while training a
    list of such of decreasing resolution where it has deep supervision. UNETR alone takes none
    larger than the `patch_size` that it was built for.

    A user's own network, `model_name: my_nets:build_tiny`, is a function or a class that is called
    with keyword arguments: `num_classes`, `input_channels`, `patch_size`, `gradient_checkpointing`
    and `config` where it has parameters of these names, and `config.model_params`, which must fit
    its other parameters.

    Raises:
        ValueError: if `model_params` do not fit the network, or one of your own cannot do gradient
            checkpointing, or it cannot be built for `patch_size` or `input_channels`.
        PluginError: if an import path leads to no network.

    Example:
        >>> params = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 4]}
        >>> build_model(ModelTrainingConfig(model_params=params)).num_classes
        3
    """
    # what a network calls its classes are its channels
    config = config.model_copy(
        update={
            "num_classes": config.output_channels,
            "label_values": None,
            "regions": None,
            "regions_class_order": None,
        }
    )
    own = is_plugin(config.model_name)
    fields = dict(zip(FIELDS_OF_PLUGINS, FIELDS_OF_PLUGINS, strict=True))
    for argument, field in (fields if own else _FIELD_OF_ARGUMENT).items():
        if argument in config.model_params:
            raise ValueError(
                f"model_params.{argument}={config.model_params[argument]!r}: "
                f"set the field {field} instead"
            )
    builder = MODELS.resolve(config.model_name)
    arguments = _plugin_arguments(builder, config) if own else {"config": config}
    # the weights depend on the seed alone, not on what was drawn before
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = builder(**arguments)
    if not isinstance(network, nn.Module):
        raise PluginError(
            f"model_name={config.model_name} gave {network!r}, which is not a torch.nn.Module"
        )
    return network


def _plugin_arguments(builder: Any, config: ModelTrainingConfig) -> dict[str, Any]:
    """Arguments of a user's own network; `model_params` are checked against its signature."""
    name = config.model_name
    module = getattr(builder, "__module__", None) or ""
    named = inspect.isroutine(builder) or inspect.isclass(builder)
    if named and module.partition(".")[0] in sys.stdlib_module_names:
        # os:system, say, which a bundle of somebody else's may name with a command
        raise PluginError(f"model_name={name} is a part of Python itself, not a network")
    given = {field: getattr(config, field) for field in FIELDS_OF_PLUGINS} | {"config": config}
    parameters = parameters_of(builder, name)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    known = {key for key, one in parameters.items() if one.kind is not one.VAR_KEYWORD}
    if not takes_any:
        for key in config.model_params:
            problem = model_params_problem(name, key, known - set(given))
            if problem is not None:
                raise ValueError(problem)
    if config.gradient_checkpointing and not known & {"gradient_checkpointing", "config"}:
        raise ValueError(
            f"gradient_checkpointing=true is not possible with {name}: turn it off, or give the "
            "network a parameter gradient_checkpointing (training.models.recompute has "
            "recompute_blocks)"
        )
    return taken(builder, f"model_name={name}", given, config.model_params)
