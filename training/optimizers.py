"""Optimizers and learning-rate schedulers by the name that a config gives them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

if TYPE_CHECKING:
    from training.config import ModelTrainingConfig, OptimizerName, SchedulerName

__all__ = ["OPTIMIZERS", "SCHEDULERS", "get_optimizer"]

Parameters = list[nn.Parameter]
Scheduler = LRScheduler | ReduceLROnPlateau


def adam(config: ModelTrainingConfig, parameters: Parameters) -> Optimizer:
    """Adam with L2 weight decay (Kingma and Ba, 2015)."""
    return Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def adamw(config: ModelTrainingConfig, parameters: Parameters) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
    return AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def sgd(config: ModelTrainingConfig, parameters: Parameters) -> Optimizer:
    """Stochastic gradient descent with momentum, Nesterov's form if asked for."""
    return SGD(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


def no_scheduler(config: ModelTrainingConfig, optimizer: Optimizer) -> None:
    """A constant learning rate."""
    return


def step(config: ModelTrainingConfig, optimizer: Optimizer) -> Scheduler:
    """Decay by `lr_decay` every `step_size` epochs."""
    return StepLR(optimizer, step_size=config.step_size, gamma=config.lr_decay)


def plateau(config: ModelTrainingConfig, optimizer: Optimizer) -> Scheduler:
    """Decay by `lr_decay` when the monitored metric stops improving."""
    return ReduceLROnPlateau(
        optimizer,
        mode=config.monitor_mode,
        factor=config.lr_decay,
        patience=config.plateau_patience,
        # torch's relative threshold takes standing still for progress below zero
        threshold_mode="abs",
    )


def cosine(config: ModelTrainingConfig, optimizer: Optimizer) -> Scheduler:
    """Linear warm-up, then half a cosine down to 0 at `max_epochs` (Loshchilov, 2017).

    Epoch e, from 0, of w warm-up epochs has the factor (e + 1) / (w + 1) while e < w, then
    (1 + cos(pi * (e - w) / (max_epochs - w))) / 2.
    """
    warmup, total = config.warmup_epochs, config.max_epochs

    def factor(epoch: int) -> float:
        if epoch < warmup:
            return (epoch + 1) / (warmup + 1)
        progress = min(1.0, (epoch - warmup) / (total - warmup))
        return (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def poly(config: ModelTrainingConfig, optimizer: Optimizer) -> Scheduler:
    """The factor (1 - epoch / max_epochs) ** poly_power, as nnU-Net uses it."""

    def factor(epoch: int) -> float:
        return float((1 - min(epoch, config.max_epochs) / config.max_epochs) ** config.poly_power)

    return LambdaLR(optimizer, factor)


OPTIMIZERS: dict[OptimizerName, Callable[[ModelTrainingConfig, Parameters], Optimizer]] = {
    "adam": adam,
    "adamw": adamw,
    "sgd": sgd,
}
"""Optimizers by name."""

SCHEDULERS: dict[SchedulerName, Callable[[ModelTrainingConfig, Optimizer], Scheduler | None]] = {
    "none": no_scheduler,
    "step": step,
    "plateau": plateau,
    "cosine": cosine,
    "poly": poly,
}
"""Schedulers by name; each is stepped once an epoch."""


def get_optimizer(
    config: ModelTrainingConfig, model: nn.Module
) -> tuple[Optimizer, Scheduler | None]:
    """Optimizer and scheduler of a config for the trainable parameters of a model.

    Raises:
        ValueError: if the model has no trainable parameter.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            f"{type(model).__name__} has no parameter that requires a gradient: nothing to train"
        )
    optimizer = OPTIMIZERS[config.optimizer](config, parameters)
    return optimizer, SCHEDULERS[config.scheduler](config, optimizer)
