"""A moving average of the weights, which is what gets validated, tested and exported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


class WeightMovingAverage(WeightAveraging):
    """Averages the weights over the optimizer steps: a := d a + (1 - d) w after each.

    d is `decay`, and less in the first steps, min(decay, (1 + n) / (10 + n)) after n of them,
    so that the average soon forgets the random weights that it began with (as TensorFlow's
    ExponentialMovingAverage does). Running statistics of batch norms are averaged too.

    The average takes the network's place during validation and when the training has ended. In
    a checkpoint `state_dict` is the average, so that whatever reads one tests or exports it,
    and `current_model_state` are the weights that training goes on with. A run that is resumed
    without this callback goes on from the average.

    Args:
        decay: Decay a step, between 0 and 1.

    Raises:
        ValueError: for a decay that is not between 0 and 1.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must be between 0 and 1, but got {decay}")
        super().__init__(multi_avg_fn=_moving_average(decay))
        self.decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begin with the weights as they are, on the device that trains."""
        # the module itself is moved there only later
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: the last checkpoint, which is written here, holds average and weights."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the network's place."""
        self._copy_average_to_current(pl_module)
        self._average_model = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with average and weights; outside of a fit the average alone matters."""
        if self._average_model is None:
            return
        if "averaging_state" in checkpoint:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        else:
            self._average_model.module.load_state_dict(checkpoint["state_dict"])


def _moving_average(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    def average(averaged: list[Tensor], current: list[Tensor], steps: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            # a batch norm's count of batches
            torch._foreach_copy_(averaged, current)
            return
        count = int(steps)
        weight = 1 - min(decay, (1 + count) / (10 + count))
        torch._foreach_lerp_(averaged, current, weight)

    return average
