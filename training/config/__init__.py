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

__all__ = [
    "DEFAULT_TEST_FRACTION",
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

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        default = "" if "num_classes" in self.model_fields_set else " (the default; give your own)"
        if isinstance(self.class_weights, list):
            if len(self.class_weights) != self.num_classes:
                raise FieldsError(
                    f"class_weights has {len(self.class_weights)} entries "
                    f"({self.class_weights}) but num_classes={self.num_classes}{default}: "
                    "give one weight a class, background first",
                    ("class_weights", "num_classes"),
                )
            if not math.fsum(self.class_weights) > 0:
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
                default = cls.model_fields["num_classes"].default
                given = plain.get("num_classes", default)
                classes = range(given if isinstance(given, int) else default)
                plain["class_weights"] = with_weight(
                    plain.get("class_weights", "uniform"),
                    plain.get("label_values") or classes,
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
