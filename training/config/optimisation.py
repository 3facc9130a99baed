"""Fields of the optimisation: optimizer, learning rate and its schedule."""

from __future__ import annotations

import math
from typing import Annotated, Self

from pydantic import Field, model_validator

from training.config.base import ConfigPart
from training.config.types import Bool, Float, Int, OptimizerName, SchedulerName
from training.errors import FieldsError

OPEN_SCHEDULES = ("none", "step", "exponential", "plateau")
"""Schedules that do not look at `max_epochs`: a training may end after any epoch."""


class OptimisationFields(ConfigPart):
    """Optimizer, learning rate and its schedule."""

    optimizer: OptimizerName = "adamw"
    """Optimizer: a key of `training.registry.OPTIMIZERS`, or an import path of your own."""

    learning_rate: Annotated[Float, Field(gt=0)] = 1e-4
    """Learning rate at the end of the warm-up."""

    weight_decay: Annotated[Float, Field(ge=0)] = 1e-5
    """Weight decay: decoupled for adamw, L2 for adam and sgd."""

    decay_norms_and_biases: Bool = False
    """Whether norms and biases decay too, as in nnU-Net; by default kernels and matrices alone."""

    momentum: Annotated[Float, Field(ge=0, lt=1)] = 0.9
    """Momentum of sgd."""

    nesterov: Bool = False
    """Nesterov's form of momentum, for sgd."""

    scheduler: SchedulerName = "poly"
    """Learning-rate schedule: a key of `training.registry.LR_SCHEDULES`, or an import path of your
    own."""

    warmup_epochs: Annotated[Int, Field(ge=0)] = 0
    """Epochs of linear warm-up, before any scheduler: it has the epochs that are left."""

    step_size: Annotated[Int, Field(ge=1)] = 30
    """Epochs in which the step and exponential schedulers decay by `lr_decay`."""

    lr_decay: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    """Factor of a decay of the step, exponential and plateau schedulers."""

    plateau_patience: Annotated[Int, Field(ge=0)] = 5
    """Epochs without improvement before the plateau scheduler decays."""

    poly_power: Annotated[Float, Field(gt=0)] = 0.9
    """Exponent of the poly scheduler: lr = lr0 * (1 - epoch / max_epochs) ** power."""

    one_cycle_peak: Annotated[Float, Field(gt=0, lt=1)] = 0.3
    """Share of the training after which one_cycle has risen to `learning_rate`."""

    decay_share: Annotated[Float, Field(gt=0, lt=1)] = 0.2
    """Share of `max_epochs` in which wsd decays, at its end."""

    ema_decay: Annotated[Float, Field(gt=0, lt=1)] | None = None
    """Decay a step of a moving average of the weights, e.g. 0.999; null keeps none.

    The averaged weights are those that are validated, tested and exported.
    """

    gradient_clip: Annotated[Float, Field(gt=0)] | None = 12.0
    """Largest norm of the gradient; null does not clip."""

    accumulate: Annotated[Int, Field(ge=1)] = 1
    """Batches whose gradients are averaged for one optimizer step: `accumulate: 4` with a
    `train_batch_size` of 2 steps as a batch of 8 does, in the memory of 2.

    Schedules by step, `gradient_clip` and `ema_decay` go by optimizer steps, and so does
    `steps_per_epoch`: an epoch has `accumulate` times as many batches. Batch norms see each batch
    by itself.
    """

    max_epochs: Annotated[Int, Field(ge=1)] = 100
    """Epochs of a full training run."""

    @property
    def stable_epochs(self) -> int:
        """Epochs of warm-up and constant rate of wsd, before its decay."""
        return max(self.warmup_epochs, _stable(self.max_epochs, self.decay_share))

    def shortest_ending(self, epoch: int) -> int:
        """Epochs of the shortest training that goes on after `epoch` and ends its schedule.

        Its learning rates up to `epoch` are those of this config, so a run may be given its
        `max_epochs` then, and is the run that it would have been with them from the start.
        """
        if self.scheduler in OPEN_SCHEDULES:
            return min(max(epoch, self.warmup_epochs + 1), self.max_epochs)
        if self.scheduler != "wsd" or epoch > self.stable_epochs:
            return self.max_epochs
        stable = max(epoch, self.warmup_epochs)
        epochs = max(stable + 1, math.floor(stable / (1 - self.decay_share)) - 1)
        while _stable(epochs, self.decay_share) < stable:
            epochs += 1
        return min(epochs, self.max_epochs)

    @model_validator(mode="after")
    def _check_optimisation_fields(self) -> Self:
        if self.nesterov and self.momentum == 0:
            raise FieldsError(
                "nesterov=true needs momentum > 0, but got momentum=0", ("nesterov", "momentum")
            )
        if self.warmup_epochs >= self.max_epochs:
            raise FieldsError(
                f"warmup_epochs={self.warmup_epochs} must be below max_epochs={self.max_epochs}",
                ("warmup_epochs", "max_epochs"),
            )
        return self


def _stable(epochs: int, decay_share: float) -> int:
    """Epochs of a training before its decay, which has one epoch at least."""
    return epochs - max(1, round(decay_share * epochs))
