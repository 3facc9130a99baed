"""Callbacks of a training run: checkpoints, early stopping, seeds, divergence."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor

from training.checkpoints import (
    BEST_CHECKPOINT,
    LAST_CHECKPOINT,
    EpochCheckpoint,
    score_is_undefined,
)
from training.ema import WeightMovingAverage
from training.errors import TrainingDivergedError
from training.logged_names import RATE, best_name

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig

logger = logging.getLogger(__name__)


class StopOnDivergence(Callback):
    """Raise `TrainingDivergedError` as soon as the loss or the weights are not finite.

    The loss is checked after every step and after validation, the weights once an epoch. A step
    that mixed precision leaves out because its gradients overflowed changes neither.

    A monitored score that is not defined (see `training.metrics`) is not a divergence: a network
    that rightly finds nothing in any validation case has one. It is logged, and the epoch counts
    for nothing: no best checkpoint, nothing for early stopping or the plateau scheduler.

    Args:
        monitor: The monitored metric.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Check the loss of a training step."""
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is not None and not torch.isfinite(loss).all():
            raise TrainingDivergedError(
                f"the training loss is {float(loss)} at step {trainer.global_step} "
                f"(epoch {_epoch(trainer)})"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the weights of an epoch, which the loss of a later step alone would show."""
        for name, tensor in pl_module.state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                value = "nan" if tensor.isnan().any() else "inf"
                raise TrainingDivergedError(
                    f"the weight {name} is {value} at epoch {_epoch(trainer)}"
                )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the validation loss of an epoch, and log if its score is not defined."""
        loss = trainer.callback_metrics.get("val_loss")
        if loss is not None and not math.isfinite(loss):
            raise TrainingDivergedError(f"val_loss is {float(loss)} at epoch {_epoch(trainer)}")
        if score_is_undefined(trainer, self.monitor):
            logger.warning(
                "%s is not defined at epoch %d: no validation case has what it measures, in its "
                "label or in its prediction; the epoch is ignored, and training goes on",
                self.monitor,
                _epoch(trainer),
            )


def _epoch(trainer: Trainer) -> int:
    """The epoch that is trained, from 1, as in `metrics.csv` and everywhere else."""
    return trainer.current_epoch + 1


class SeedSteps(Callback):
    """Seed torch before every training step by (seed, step, rank).

    So what a network draws, in dropout or stochastic depth, depends on the step alone, and a
    resumed run draws what an uninterrupted one does.

    Args:
        seed: Seed of the run.
        accumulate: Batches of an optimizer step, which draw unlike each other.
    """

    def __init__(self, seed: int, accumulate: int = 1) -> None:
        self.seed = seed
        self.accumulate = accumulate

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed the step."""
        entropy = [self.seed, trainer.global_step, trainer.global_rank]
        part = batch_idx % self.accumulate
        if part:
            entropy.append(part)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))


class EpochLearningRate(LearningRateMonitor):
    """Logs the learning rate that each epoch begins with, as `lr` whatever the optimizer.

    Lightning's own monitor names it after the optimizer and the group of parameters. Here it is
    that of the first group, which all groups of `training.optimizers` share.
    """

    def on_train_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Begin with no rates."""
        self.lrs = {RATE: []}

    def on_train_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Nothing: one value an epoch."""

    def on_train_epoch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Note the rate of the epoch that begins."""
        self.lrs[RATE].append(float(trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_epoch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Log the rate of an epoch that was trained: a trial may be stopped before the next."""
        rate = self.lrs[RATE][-1]
        trainer.callback_metrics[RATE] = torch.tensor(rate)
        for experiment_logger in trainer.loggers:
            experiment_logger.log_metrics({RATE: rate}, step=trainer.current_epoch + 1)


class BestScore(Callback):
    """Logs the best value so far of the monitored metric, epoch by epoch.

    A run that is cut off at any time has logged its best score, which TensorBoard's HParams tab
    shows. Scores that are not finite are passed over.

    Args:
        monitor: The monitored metric.
        mode: Whether a greater ("max") or smaller ("min") value is better.
        run: Name of the run. The best score of another run's checkpoint is not used.
    """

    def __init__(self, monitor: str, mode: str, run: str) -> None:
        self.monitor = monitor
        self.run = run
        self._better = max if mode == "max" else min
        self._best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        """The best score, and the run that it is of."""
        return {"run": self.run, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score of this run."""
        if state_dict["run"] == self.run:
            self._best = state_dict["best"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the best score up to this epoch."""
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if trainer.sanity_checking or not math.isfinite(score):
            return
        self._best = score if self._best is None else self._better(self._best, score)
        for experiment_logger in trainer.loggers:
            experiment_logger.log_metrics(
                {best_name(self.monitor): self._best}, step=trainer.current_epoch + 1
            )
            experiment_logger.save()


class PatientEarlyStopping(EarlyStopping):
    """Early stopping whose patience is the config's, also when a checkpoint had another.

    An epoch whose score is not defined does not count as an epoch without improvement;
    Lightning's own callback would end the training there.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge an epoch that has a score."""
        if not score_is_undefined(trainer, self.monitor):
            super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge an epoch that has a score."""
        if not score_is_undefined(trainer, self.monitor):
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over best score and waiting time."""
        super().load_state_dict({**state_dict, "patience": self.patience})


def get_callbacks(config: ModelTrainingConfig) -> list[Callback]:
    """ModelCheckpoint (best and last), EarlyStopping and LearningRateMonitor of `config`.

    With `config.ema_decay` also the moving average of the weights.

    The best checkpoint by `config.monitor` is `best.ckpt` and the newest is `last.ckpt`, in
    `config.checkpoint_dir`; there is no best one while the monitored score is not defined in any
    epoch. EarlyStopping is left out when
    `config.early_stopping_patience` is null.
    """
    checkpoint = EpochCheckpoint(
        dirpath=config.checkpoint_dir,
        filename=BEST_CHECKPOINT,
        monitor=config.monitor,
        mode=config.monitor_mode,
        save_top_k=1,
        save_last=True,
        enable_version_counter=False,
    )
    checkpoint.CHECKPOINT_NAME_LAST = LAST_CHECKPOINT
    callbacks: list[Callback] = [checkpoint]
    if config.early_stopping_patience is not None:
        callbacks.append(
            PatientEarlyStopping(
                monitor=config.monitor,
                mode=config.monitor_mode,
                patience=config.early_stopping_patience,
            )
        )
    callbacks.append(EpochLearningRate(logging_interval="epoch"))
    if config.ema_decay is not None:
        callbacks.append(WeightMovingAverage(config.ema_decay))
    return callbacks
