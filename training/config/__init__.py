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
from training.config.network import NetworkFields
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
class ModelTrainingConfig(RunFields, OptimisationFields, TaskFields, DataFields, NetworkFields):
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
        if self.target_label is not None and self.target_label >= self.num_classes:
            raise FieldsError(
                f"target_label={self.target_label} must be below num_classes={self.num_classes}"
                f"{default}: labels are 0 (background) to {self.num_classes - 1}",
                ("target_label", "num_classes"),
            )
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
        weight of class 2; the other classes keep their weight from `class_weights`, or 1.

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
                num_classes = given if isinstance(given, int) else default
                plain["class_weights"] = _with_weight(
                    plain.get("class_weights", "uniform"), num_classes, entry, values[key]
                )
            else:
                raise FieldsError(
                    f"{key!r} is not a field: only model_params and class_weights take dotted keys",
                    (key,),
                )
        return cls(**plain)


def _with_weight(base: Any, num_classes: int, entry: str, weight: Any) -> list[Any]:
    """The class weights `base` with the weight of class `entry` replaced."""
    if base == "uniform":
        weights: list[Any] = [1.0] * num_classes
    elif isinstance(base, list | tuple):
        weights = list(base)
    else:
        raise FieldsError(
            f"class_weights.{entry}={weight} cannot change one entry of the preset "
            f"class_weights={base!r}: use a list or 'uniform', or a `when` condition",
            (f"class_weights.{entry}", "class_weights"),
        )
    if not entry.isdecimal() or int(entry) >= len(weights):
        raise FieldsError(
            f"class_weights.{entry} names no class: classes are 0 to {len(weights) - 1}",
            (f"class_weights.{entry}", "num_classes"),
        )
    weights[int(entry)] = weight
    return weights
