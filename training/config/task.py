"""Fields of the task and its loss."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from training.config.base import ConfigPart
from training.config.types import ClassWeightPreset, Float, LossName, PositiveWeight
from training.errors import FieldsError


class TaskFields(ConfigPart):
    """The task and its loss."""

    loss: LossName = "dice_ce"
    """Training loss: a key of `training.registry.LOSSES`, with regions one of `REGION_LOSSES` (then
    dice_bce by default), or an import path of your own."""

    class_weights: ClassWeightPreset | list[PositiveWeight] = "uniform"
    """Weight of each class in the loss: a list, or a preset computed from the labels.

    With `target_label` the list still has one entry a class; background's and the
    target's are used. With regions it has one a region, and `class_weights.NAME` is that of
    one. The presets are those of `training.class_weights`.
    """

    effective_number_beta: Annotated[Float, Field(ge=0, lt=1)] = 0.9999
    """Beta of the class weights `effective_number`: 0 weighs all alike, near 1 by frequency."""

    focal_gamma: Annotated[Float, Field(ge=0)] = 2.0
    """Exponent of the focal loss; 0 is cross-entropy."""

    tversky_alpha: Annotated[Float, Field(ge=0)] = 0.3
    """Weight of false positives in the Tversky loss; alpha = beta = 0.5 is Dice."""

    tversky_beta: Annotated[Float, Field(ge=0)] = 0.7
    """Weight of false negatives in the Tversky loss."""

    @model_validator(mode="after")
    def _check_task_fields(self) -> Self:
        if self.tversky_alpha == self.tversky_beta == 0:
            raise FieldsError(
                "tversky_alpha and tversky_beta are both 0: no error would cost",
                ("tversky_alpha", "tversky_beta"),
            )
        return self
