"""Names in a config: networks, losses, optimizers and more, by a key or an import path.

A registry maps each name to an import path, as text, so that reading the names imports nothing.
Something of ours is added as one function and one entry here: the config's validation, its schema,
the help and the tests of all entries follow. A user's own is named by its import path,
`package.module:function`, and takes no entry (a plug-in).

What a name stands for is called with keyword arguments, and takes those that it has parameters
for (`call`):

| Registry | Is given | Returns |
|---|---|---|
| MODELS | config; a plug-in num_classes, input_channels, patch_size, too | the network |
| LOSSES | config, weight | a module, called with logits and targets |
| REGION_LOSSES | config, weight | the same, where the config has regions |
| OPTIMIZERS | config, groups | an optimizer of the parameter groups |
| LR_SCHEDULES | config, optimizer, steps_per_epoch | a scheduler of torch, or None |
| CLASS_WEIGHTS | config, counts, voxels | a weight for each class |
| AUGMENTATIONS | image, label, rng, strength (a plug-in) | the changed image and label |
| METRICS | prediction, target, spacing, num_classes | the score of a case |
| MODULES | model, config | a `SegmentationLightningModule` |
"""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import MappingProxyType
from typing import Any

from training.errors import PluginError, reason_of, suggestion

__all__ = [
    "AUGMENTATIONS",
    "CLASS_WEIGHTS",
    "FIELDS",
    "LOSSES",
    "LR_SCHEDULES",
    "METRICS",
    "MODELS",
    "MODULES",
    "OPTIMIZERS",
    "REGION_LOSSES",
    "Registry",
    "call",
    "code_file",
    "import_path",
    "is_plugin",
    "load_function",
]

_IDENTIFIERS = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"

IMPORT_PATH = rf"{_IDENTIFIERS}:{_IDENTIFIERS}"
"""Pattern of an import path, `package.module:function`."""


class Registry(dict[str, str]):
    """Import paths of what this package has of a kind, by the name that a config gives it.

    Args:
        kind: What the names stand for, for messages.
        entries: Import paths by name.
        given: What the functions can be given; None where that is checked elsewhere.
    """

    def __init__(
        self, kind: str, entries: Mapping[str, str], given: tuple[str, ...] | None = None
    ) -> None:
        super().__init__(entries)
        self.kind = kind
        self.given = given

    def resolve(self, name: str) -> Any:
        """Import what a name stands for.

        Args:
            name: A key, or an import path.

        Raises:
            PluginError: if there is no such name, or the import path leads nowhere.
        """
        if name in self:
            return load(self[name], self.kind)
        if not is_plugin(name):
            raise PluginError(f"there is no {self.kind} {name!r}{suggestion(name, self)}")
        return load_function(name, self.kind)

    def check(self, name: str, function: Callable[..., Any]) -> None:
        """Check that what a name stands for can be called with what there is.

        Raises:
            PluginError: if it needs another argument.
        """
        if self.given is not None:
            taken(function, f"{self.kind} {name}", dict.fromkeys(self.given))

    def name_of(self, value: Any) -> Any:
        """The name of a function or class given in Python; any other value unchanged.

        Raises:
            PluginError: if it cannot be imported by a name.
        """
        if not callable(value):
            return value
        path = import_path(value)
        return next((name for name, own in self.items() if own == path), path)


def is_plugin(name: object) -> bool:
    """Whether a name is the import path of something of the user's own."""
    return isinstance(name, str) and re.fullmatch(IMPORT_PATH, name) is not None


def import_path(value: Any) -> str:
    """The import path of a function or class, by which any process can import it.

    Raises:
        PluginError: for a lambda, a function inside another, or one of the script or notebook
            that runs: no other process could import it.

    Example:
        >>> import_path(import_path)
        'training.registry:import_path'
    """
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None)
    if module is None or name is None:
        raise PluginError(
            f"{value!r} has no import path: give a function or a class of a module, or its path "
            "package.module:function"
        )
    way_out = "define it at the top of a module, e.g. my_nets.py, and import it from there"
    if module == "__main__":
        raise PluginError(
            f"{name} is defined in the script or notebook that runs, which no worker can import: "
            + way_out
        )
    if "<" in name:
        kind = "a lambda" if "<lambda>" in name else "defined inside a function"
        raise PluginError(f"{module}:{name} is {kind} and cannot be imported by name: {way_out}")
    path = f"{module}:{name}"
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not value:
        raise PluginError(f"{path} is not where {value!r} can be imported from: {way_out}")
    return path


def load(path: str, kind: str) -> Any:
    """Import what an import path names.

    Args:
        path: `package.module:function`.
        kind: What it stands for, for messages.

    Raises:
        PluginError: if there is no such module, or it fails while it is imported, or has no such
            attribute.
    """
    module_name, _, attributes = path.partition(":")
    value: Any = _import(module_name, f"{kind} {path}")
    for part in attributes.split("."):
        if not hasattr(value, part):
            public = [name for name in vars(value) if not name.startswith("_")]
            raise PluginError(
                f"{kind} {path}: {module_name} ({_place(module_name)}) has no {attributes!r}"
                f"{suggestion(part, public) if public else ''}"
            )
        value = getattr(value, part)
    return value


def load_function(path: str, kind: str) -> Any:
    """Import a function or class, as `load` does.

    Raises:
        PluginError: as `load`, and for what cannot be called.
    """
    value = load(path, kind)
    if not callable(value):
        raise PluginError(f"{kind} {path} is {value!r}, which cannot be called: name a function")
    return value


def call(function: Callable[..., Any], name: str, /, **available: Any) -> Any:
    """Call a function with those of the available arguments that it has parameters for.

    Args:
        function: What a name stands for.
        name: The name, for messages.
        available: What it can be given.

    Raises:
        PluginError: if it needs an argument that is not available.
    """
    return function(**taken(function, name, available))


def taken(
    function: Callable[..., Any],
    name: str,
    available: Mapping[str, Any],
    chosen: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The arguments of a function: those available that it names, and those that a user chose.

    `**kwargs` take none of those that are available: as a rule they are meant for another
    function, or are those that every `torch.nn.Module` has.

    Raises:
        PluginError: if it needs another argument.
    """
    arguments = dict(chosen)
    for parameter in parameters_of(function, name).values():
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            continue
        if parameter.kind is not parameter.POSITIONAL_ONLY and parameter.name in available:
            arguments[parameter.name] = available[parameter.name]
        elif parameter.default is parameter.empty and parameter.name not in arguments:
            raise PluginError(
                f"{name} needs an argument {parameter.name!r}, but is given only "
                f"{', '.join([*available, *chosen])}: name its parameters so, or give others a "
                "default"
            )
    return arguments


def parameters_of(function: Callable[..., Any], name: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of what a name stands for.

    Raises:
        PluginError: if its signature cannot be read.
    """
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError) as error:
        raise PluginError(
            f"{name}: Python cannot read the parameters of {function!r}: wrap it in a function"
        ) from error


def code_file(path: str) -> Path | None:
    """Where the module of an import path, or its outermost package, would be imported from.

    Nothing is run to find out. None if there is no such module, or it is in no file.
    """
    top = path.partition(":")[0].partition(".")[0]
    loaded = sys.modules.get(top)
    spec = PathFinder.find_spec(top) if loaded is None else loaded.__spec__
    if spec is None:
        return None
    places = [spec.origin, *(spec.submodule_search_locations or [])]
    return next(
        (Path(place) for place in places if place not in (None, "built-in", "frozen")), None
    )


def _import(module_name: str, subject: str) -> Any:
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise PluginError(
                f"{subject}: {module_name} imports {missing}, which is not installed here"
            ) from error
        raise PluginError(_no_module(subject, module_name, missing)) from error
    except (Exception, SystemExit) as error:
        # whatever a user's module does while it is imported; a script may end itself
        raise PluginError(
            f"{subject}: importing {module_name} raised {type(error).__name__}: {reason_of(error)}"
        ) from error


def _no_module(subject: str, module_name: str, missing: str) -> str:
    parent, _, child = missing.rpartition(".")
    if parent in sys.modules:
        beside = pkgutil.iter_modules(getattr(sys.modules[parent], "__path__", []))
    else:
        beside = pkgutil.iter_modules()
    near = suggestion(child, [found.name for found in beside if not found.name.startswith("_")])
    return (
        f"{subject}: there is no module {missing}{near if 'did you mean' in near else ''}; modules "
        "are looked for beside the search space, in the working folder and in PYTHONPATH"
    )


def _place(module_name: str) -> str:
    return str(getattr(sys.modules[module_name], "__file__", "no file"))


MODELS = Registry(
    "network",
    {
        "dformer3d": "training.models.dformer.build:build_dformer3d",
        "dynunet": "training.models.dynunet:build_dynunet",
        "resenc_unet": "training.models.resenc_unet:build_resenc_unet",
        "unet3d": "training.models.monai_networks:build_unet3d",
        "basic_unet": "training.models.monai_networks:build_basic_unet",
        "attention_unet": "training.models.monai_networks:build_attention_unet",
        "vnet": "training.models.monai_networks:build_vnet",
        "segresnet": "training.models.monai_networks:build_segresnet",
        "segresnet_ds": "training.models.monai_networks:build_segresnet_ds",
        "mednext": "training.models.monai_networks:build_mednext",
        "swin_unetr": "training.models.monai_networks:build_swin_unetr",
        "unetr": "training.models.monai_networks:build_unetr",
    },
)
"""Networks, see `training.models`."""

LOSSES = Registry(
    "loss",
    {
        "cross_entropy": "training.losses:cross_entropy",
        "dice_ce": "training.losses:dice_ce",
        "focal": "training.losses:focal",
        "tversky": "training.losses:tversky",
    },
    ("config", "weight"),
)
"""Training losses, see `training.losses`."""

REGION_LOSSES = Registry(
    "loss of regions",
    {
        "dice_bce": "training.region_losses:dice_bce",
        "bce": "training.region_losses:bce",
        "sigmoid_focal": "training.region_losses:sigmoid_focal",
        "sigmoid_tversky": "training.region_losses:sigmoid_tversky",
    },
    ("config", "weight"),
)
"""Training losses where the config has regions, see `training.region_losses`."""

CLASS_WEIGHTS = Registry(
    "class-weight preset",
    {
        "inverse_frequency": "training.class_weights:inverse_frequency",
        "median_frequency": "training.class_weights:median_frequency",
        "effective_number": "training.class_weights:effective_number",
    },
    ("config", "counts", "voxels"),
)
"""Class weights that are computed from the labels; `uniform` needs none, and is not an entry."""

OPTIMIZERS = Registry(
    "optimizer",
    {
        "adam": "training.optimizers:adam",
        "adamw": "training.optimizers:adamw",
        "sgd": "training.optimizers:sgd",
    },
    ("config", "groups"),
)
"""Optimizers, see `training.optimizers`."""

LR_SCHEDULES = Registry(
    "learning-rate schedule",
    {
        "none": "training.lr_schedules:no_scheduler",
        "step": "training.lr_schedules:step",
        "exponential": "training.lr_schedules:exponential",
        "plateau": "training.lr_schedules:plateau",
        "cosine": "training.lr_schedules:cosine",
        "poly": "training.lr_schedules:poly",
        "one_cycle": "training.lr_schedules:one_cycle",
        "wsd": "training.lr_schedules:wsd",
    },
    ("config", "optimizer", "steps_per_epoch"),
)
"""Learning-rate schedules, the field `scheduler`, see `training.lr_schedules`."""

AUGMENTATIONS = Registry(
    "augmentation",
    {
        "none": "training.data.patches.augmentation:NO_CHANGE",
        "flip": "training.data.patches.augmentation:FLIP",
        "default": "training.data.patches.augmentation:DEFAULT",
        "nnunet": "training.data.patches.augmentation:NNUNET",
    },
    ("image", "label", "rng", "strength"),
)
"""Augmentations of training patches, see `training.data.patches.augmentation`."""

FIELDS = {
    "model_name": MODELS,
    "loss": LOSSES,
    "class_weights": CLASS_WEIGHTS,
    "optimizer": OPTIMIZERS,
    "scheduler": LR_SCHEDULES,
    "augmentation": AUGMENTATIONS,
}
"""Registry of each config field that names an entry of one."""

METRICS = Registry("metric", {}, ("prediction", "target", "spacing", "num_classes"))
"""Metrics by import path, see `training.metrics.own`; ours are logged without being asked for."""

MODULES = Registry("Lightning module", {}, ("model", "config"))
"""Lightning modules by import path, subclasses of `SegmentationLightningModule`."""
