"""The one configuration of a training run: flat, typed, and validated whenever it changes.

Its fields are in the modules beside this one, by what they are about. None of them imports torch
or ray, so that a search space can be checked in milliseconds on a machine that has no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

from pydantic import model_validator

from training.config.data import DEFAULT_TEST_FRACTION, DataFields
from training.config.labels import LabelFields, with_weight
from training.config.optimisation import OptimisationFields
from training.config.regions import PRESETS
from training.config.run import RunFields
from training.config.task import TaskFields
from training.config.types import (
    MIRROR_AXES,
    NORMALISATION_SCHEMES,
    AugmentationName,
    ClassWeightPreset,
    LossName,
    MirrorAxis,
    MissingChannels,
    Mode,
    ModelName,
    NormalisationScheme,
    OptimizerName,
    Precision,
    SchedulerName,
)
from training.errors import FieldsError
from training.registry import LOSSES, REGION_LOSSES

__all__ = [
    "DEFAULT_TEST_FRACTION",
    "LOSS_OF_REGIONS",
    "MIRROR_AXES",
    "NORMALISATION_SCHEMES",
    "AugmentationName",
    "ClassWeightPreset",
    "LossName",
    "MirrorAxis",
    "MissingChannels",
    "Mode",
    "ModelName",
    "ModelTrainingConfig",
    "NormalisationScheme",
    "OptimizerName",
    "Precision",
    "SchedulerName",
]


LOSS_OF_REGIONS = "dice_bce"
"""Loss of a config with regions that names none."""


# pydantic has the fields of the last base first
class ModelTrainingConfig(RunFields, OptimisationFields, TaskFields, DataFields, LabelFields):
    """Every hyperparameter and setting of one training run, one field each.

    The config is validated on construction and on every assignment; unknown fields are
    refused. Spatial triples are in array order: depth, height, width, which is the order
    (superior, anterior, right) of a volume in the preprocessed cache.

    Raises:
        pydantic.ValidationError: (a `ValueError`) names each field that is wrong and why.

    Example:
        >>> config = ModelTrainingConfig(model_name="dformer3d", learning_rate=1e-4)
        >>> config.target_label = 2
        >>> config.gpus = -1
        Traceback (most recent call last):
        ...
        pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelTrainingConfig
        ...
    """

    @model_validator(mode="before")
    @classmethod
    def _loss_of_regions(cls, values: Any) -> Any:
        """Regions cannot be trained with the default loss, so they have a default of their own."""
        if isinstance(values, Mapping) and values.get("regions") and "loss" not in values:
            return {**values, "loss": LOSS_OF_REGIONS}
        return values

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        # the data may bring the regions that a loss of regions needs, see `build_loss`
        if self.regions is not None and self.loss in LOSSES:
            raise FieldsError(
                f"loss={self.loss} has a softmax, which makes classes exclusive, but regions "
                f"overlap; choose {', '.join(REGION_LOSSES)}, or leave regions out",
                ("loss", "regions"),
            )
        return self

    @model_validator(mode="after")
    def _check_class_weights(self) -> Self:
        weights = self.class_weights
        if not isinstance(weights, list):
            return self
        if self.regions is not None:
            preset = isinstance(self.regions, str)
            names = PRESETS[str(self.regions)] if preset else tuple(self.regions)
            if len(weights) != len(names):
                raise FieldsError(
                    f"class_weights has {len(weights)} entries ({weights}), but there are "
                    f"{len(names)} regions ({', '.join(names)}): give one weight a "
                    "region",
                    ("class_weights", "regions"),
                )
        elif len(weights) != self.num_classes:
            given = "num_classes" in self.model_fields_set
            default = "" if given else " (the default; give your own)"
            raise FieldsError(
                f"class_weights has {len(weights)} entries "
                f"({weights}) but num_classes={self.num_classes}{default}: "
                "give one weight a class, background first",
                ("class_weights", "num_classes"),
            )
        if not math.fsum(weights) > 0:
            raise FieldsError(
                "class_weights are all 0: at least one class must count", ("class_weights",)
            )
        return self

    @classmethod
    def from_flat(cls, values: Mapping[str, Any]) -> Self:
        """Build a config from flat values in which nested parts have dotted keys.

        `model_params.embed_dim` sets one network argument. `class_weights.2` sets the
        weight of the label with the value 2; the others keep theirs from `class_weights`, or 1.

        Raises:
            pydantic.ValidationError: for unknown fields and wrong values.
            FieldsError: (a `ValueError`) for a dotted key that does not fit its field.
        """
        plain = {key: value for key, value in values.items() if "." not in key}
        if isinstance(plain.get("model_params"), Mapping):
            plain["model_params"] = dict(plain["model_params"])
        for key in sorted(key for key in values if "." in key):
            field, _, entry = key.partition(".")
            if field == "model_params":
                plain.setdefault("model_params", {})[entry] = values[key]
            elif field == "class_weights":
                plain["class_weights"] = with_weight(
                    plain.get("class_weights", "uniform"),
                    cls._weighted_names(plain),
                    entry,
                    values[key],
                    key,
                )
            else:
                raise FieldsError(
                    f"{key!r} is not a field: only model_params and class_weights take dotted keys",
                    (key,),
                )
        return cls(**plain)

    @classmethod
    def _weighted_names(cls, plain: Mapping[str, Any]) -> list[str]:
        """What has a class weight, by values that are not validated yet."""
        regions = plain.get("regions")
        if isinstance(regions, Mapping) or regions in PRESETS:
            return [str(name) for name in (PRESETS.get(str(regions)) or regions)]
        if plain.get("label_values"):
            return [str(value) for value in plain["label_values"]]
        default = cls.model_fields["num_classes"].default
        given = plain.get("num_classes", default)
        return [str(value) for value in range(given if isinstance(given, int) else default)]
